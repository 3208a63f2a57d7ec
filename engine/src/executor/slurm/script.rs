//! What is submitted: the batch script and the options of `sbatch`.
//!
//! | of the stage | option |
//! |---|---|
//! | `cpus` | `--cpus-per-task`, one task on one host |
//! | `memory` | `--mem`, rounded up to MiB; the cluster's default when not stated |
//! | `gpus` | `--gres=gpu:N` |
//! | `timeout` | `--time`, in whole minutes and later than the engine's own limit, which is exact: `-t 0:05` would be a minute |
//! | `secrets` | `--export=NAME,...`; without secrets `--export=NONE` |
//!
//! `--requeue`: a host that is lost or a preemption starts the job again, which the claim of a folder by each start makes safe.
//! `--chdir` and `--output` name what exists, because Slurm would run in `/tmp` or fail without a word.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::SlurmOptions;
use super::place::Place;
use crate::executor::process::thread_variables;
use crate::job::Job;

/// Minutes that Slurm's time limit lies behind the engine's: a job in its grace period must not be cut off.
const MARGIN: u64 = 2;

/// The words after `sbatch`.
pub(super) fn words(options: &SlurmOptions, job: &Job, place: &Place) -> Vec<OsString> {
    let plain = |text: String| OsString::from(text);
    let mut words = vec![
        plain("--parsable".into()),
        plain(format!("--job-name={}", place.name())),
        plain(format!("--comment=mpcc {}", one_line(&job.node))),
        plain("--requeue".into()),
        plain("--open-mode=append".into()),
        plain("--nodes=1".into()),
        plain("--ntasks=1".into()),
        plain(format!("--cpus-per-task={}", job.threads.max(1))),
        plain(format!("--export={}", exported(options, job))),
        joined("--chdir=", place.folder()),
        escaped("--output=", &place.log()),
    ];
    let resources = &job.resources;
    if resources.memory > 0 {
        words.push(plain(format!("--mem={}M", resources.memory.div_ceil(1 << 20))));
    }
    if resources.gpus > 0 {
        words.push(plain(format!("--gres=gpu:{}", resources.gpus)));
    }
    if job.timeout_s > 0 {
        let grace = options.grace.as_secs();
        words
            .push(plain(format!("--time={}", job.timeout_s.saturating_add(grace).div_ceil(60).saturating_add(MARGIN))));
    }
    words.extend(options.options.iter().map(OsString::from));
    words.push(place.script().into_os_string());
    words
}

/// The secrets that the job names and the caller knows; `NONE` without any.
fn exported(options: &SlurmOptions, job: &Job) -> String {
    let names: Vec<String> = secrets(options, job).into_iter().map(|(name, _)| name).collect();
    if names.is_empty() { "NONE".to_owned() } else { names.join(",") }
}

/// Names and values of the job's secrets.
pub(super) fn secrets(options: &SlurmOptions, job: &Job) -> Vec<(String, String)> {
    job.secret_names()
        .into_iter()
        .filter_map(|name| Some((name.clone(), options.secrets.get(&name)?.clone())))
        .collect()
}

/// The batch script. Slurm copies it elsewhere, so every path in it is absolute.
pub(super) fn script(options: &SlurmOptions, job: &Job, place: &Place) -> Vec<u8> {
    let mut text = format!("#!/bin/sh\n# mpcc: {}\n", one_line(&job.node)).into_bytes();
    let threads = thread_variables(job.threads).into_iter().map(|(name, value)| (name.into(), value.into()));
    for (name, value) in options.exported.iter().cloned().chain(threads) {
        text.extend([b"export ", name.as_bytes(), b"=", &quoted(&value), b"\n"].concat());
    }
    let program = quoted(options.program.as_os_str());
    text.extend([b"exec ".as_slice(), &program, b" worker --claim ", &quoted(place.job().as_os_str()), b"\n"].concat());
    text
}

/// A word for the shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let inner: Vec<u8> =
        word.as_bytes().iter().flat_map(|byte| if *byte == b'\'' { b"'\\''".to_vec() } else { vec![*byte] }).collect();
    [b"'".as_slice(), &inner, b"'"].concat()
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut word = OsString::from(option);
    word.push(path);
    word
}

/// A path in which Slurm finds no pattern such as `%j`.
fn escaped(option: &str, path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let doubled: Vec<u8> =
        bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, 1 + usize::from(*byte == b'%'))).collect();
    joined(option, Path::new(OsStr::from_bytes(&doubled)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::tests::{job, options};

    fn texts(words: Vec<OsString>) -> Vec<String> {
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn resources_become_options() {
        let mut job = job(Path::new("/s/50%/job"));
        job.threads = 4;
        job.resources.memory = (3 << 30) + 1;
        job.resources.gpus = 2;
        job.timeout_s = 61;
        let place = Place::of(&job);
        let words = texts(words(&options(), &job, &place));
        for word in ["--cpus-per-task=4", "--mem=3073M", "--gres=gpu:2", "--export=NONE", "--requeue", "--time=4"] {
            assert!(words.iter().any(|one| one == word), "{word} in {words:?}");
        }
        assert!(words.iter().any(|one| one.starts_with("--output=/") && one.contains("50%%")), "{words:?}");
        assert_eq!(words[words.len() - 2..], ["--partition=gpu".to_owned(), place.script().display().to_string()]);
    }

    #[test]
    fn what_is_not_asked_for_is_not_said() {
        let job = job(Path::new("/s/job"));
        let words = texts(words(&options(), &job, &Place::of(&job)));
        for option in ["--mem", "--gres", "--time"] {
            assert!(!words.iter().any(|word| word.starts_with(option)), "{words:?}");
        }
    }

    #[test]
    fn only_named_secrets_go_along_and_never_in_the_script() {
        let mut job = job(Path::new("/s/job"));
        job.secrets = vec!["KEY".into(), "ABSENT".into()];
        let place = Place::of(&job);
        let words = texts(words(&options(), &job, &place));
        assert!(words.iter().any(|word| word == "--export=KEY"), "{words:?}");
        assert_eq!(secrets(&options(), &job), [("KEY".to_owned(), "hunter2".to_owned())]);
        let script = String::from_utf8(script(&options(), &job, &place)).unwrap();
        assert!(!script.contains("hunter2") && !words.iter().any(|word| word.contains("hunter2")));
    }

    #[test]
    fn the_script_quotes_what_it_is_given() {
        let job = job(Path::new("/s/it's/job"));
        let mut options = options();
        options.exported.push(("WORD".into(), "a 'b' $c".into()));
        let script = String::from_utf8(script(&options, &job, &Place::of(&job))).unwrap();
        assert!(script.starts_with("#!/bin/sh\n") && script.contains(r"export WORD='a '\''b'\'' $c'"), "{script}");
        assert!(script.contains(r"exec '/opt/mpcc' worker --claim '/s/it'\''s/"), "{script}");
    }
}
