//! The job's side: one start of a job on one host.
//!
//! Slurm may start a job again while an earlier start of it lives on, on a host that Slurm takes for lost, and both carry one
//! job number. So each start claims a folder of its own, by `mkdir` of the first free number, and writes nowhere else but into
//! the recipe's checkpoints. A start that finds its folder gone (the attempt is over) or another one behind its own kills what
//! it has started and itself. A start that follows one without an end first gives that one the time to notice.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::place::{NOTES, STARTS, Said, say, start_folder};
use crate::executor::redact::Redactor;
use crate::fingerprint::Numerics;
use crate::job::{Job, Outcome, Usage};
use crate::resources::Inventory;

/// How often a start looks whether its folder is still its own.
const WATCH: Duration = Duration::from_secs(1);

/// A start that has claimed its folder.
pub(crate) struct Start {
    attempt: PathBuf,
    number: u32,
    began: Instant,
}

impl Start {
    /// Claims the next folder of the attempt whose job lies in `file`; the job with its paths moved there.
    pub(crate) fn claim(file: &Path) -> io::Result<(Self, Job)> {
        let attempt = file.parent().ok_or_else(|| io::Error::other("a job file lies in a folder"))?.to_owned();
        let number = next(&attempt)?;
        let start = Self { attempt, number, began: Instant::now() };
        if number > 1 && !start_folder(&start.attempt, number - 1).join("end.json").exists() {
            std::thread::sleep(2 * WATCH);
        }
        let job = moved(Job::read(file).map_err(io::Error::other)?, &start.folder());
        job.prepare()?;
        Ok((start, job))
    }

    fn folder(&self) -> PathBuf {
        start_folder(&self.attempt, self.number)
    }

    /// Where its notes go.
    pub(crate) fn notes(&self) -> io::Result<File> {
        File::options().create(true).append(true).open(self.folder().join(NOTES))
    }

    /// Calls `end` as soon as the folder is no longer its own.
    pub(crate) fn watch(&self, end: impl Fn() + Send + 'static) {
        let (own, next) = (self.folder(), start_folder(&self.attempt, self.number + 1));
        std::thread::spawn(move || {
            while !(is_gone(&own) || next.exists()) {
                std::thread::sleep(WATCH);
            }
            end();
        });
    }

    /// Says the end, as the last thing. Notes, outputs and log must be written.
    pub(crate) fn end(&self, outcome: &Outcome, usage: Usage, redactor: &Redactor) -> io::Result<()> {
        let usage = Usage { wall_s: self.began.elapsed().as_secs_f64(), ..usage };
        let text = serde_json::to_vec(&Said { outcome: outcome.clone(), usage }).expect("plain data");
        say(&self.folder(), &redactor.clean(&text))
    }
}

/// Makes the first folder that is not there.
fn next(attempt: &Path) -> io::Result<u32> {
    for number in 1.. {
        match fs::create_dir(start_folder(attempt, number)) {
            Ok(()) => return Ok(number),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let place = attempt.join(STARTS);
                let message =
                    format!("{}: this attempt is over, or this host lacks the store's file system", place.display());
                return Err(io::Error::new(error.kind(), message));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("no number is left"))
}

/// A file system that fails for a moment has not taken the folder away.
fn is_gone(folder: &Path) -> bool {
    fs::metadata(folder).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The job with its folder and outputs below `start`.
fn moved(job: Job, start: &Path) -> Job {
    let mut job = Job { folder: start.to_owned(), ..job };
    for (port, output) in &mut job.outputs {
        output.path = Job::output_in(start, port);
    }
    job
}

/// Refuses a host that would compute other bytes than the recipe says.
pub(crate) fn foreign(job: &Job) -> Option<Outcome> {
    let wanted = job.numerics.as_deref()?;
    let classes = Numerics::of(&Inventory::detect());
    let here = classes.class(job.devices.len());
    (here != wanted).then(|| {
        Outcome::invalid(format!(
            "its recipe is made for `{wanted}`, this host computes as `{here}`: state what the cluster has with --numerics \
             {here}, or pick its hosts with --slurm-option=--constraint=..."
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::place::Place;
    use crate::executor::slurm::tests::{job, options};
    use std::sync::mpsc::channel;

    #[test]
    fn each_start_has_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let place = Place::of(&job);
        place.create(&options(), &job).unwrap();
        let (first, moved) = Start::claim(&place.job()).unwrap();
        assert!(moved.outputs["y"].path.starts_with(first.folder()) && moved.scratch().is_dir());
        first.end(&Outcome::Done, Usage::default(), &Redactor::default()).unwrap();
        let (second, _) = Start::claim(&place.job()).unwrap();
        assert_eq!((first.number, second.number), (1, 2));
        let starts = place.starts().unwrap();
        assert_eq!((starts.newest, starts.said, starts.done.unwrap().0), (2, None, 1));
    }

    #[test]
    fn a_host_of_another_numerics_class_is_refused() {
        let mut job = job(Path::new("/s"));
        assert_eq!(foreign(&job), None, "most kinds have none");
        job.numerics = Some(Numerics::of(&Inventory::detect()).cpu);
        assert_eq!(foreign(&job), None);
        job.numerics = Some("cpu/f32/abacus".to_owned());
        let refused = foreign(&job).unwrap();
        assert!(!refused.may_pass_again() && refused.describe().contains("--numerics"), "{refused:?}");
    }

    #[test]
    fn a_start_that_was_followed_or_closed_ends() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let place = Place::of(&job);
        place.create(&options(), &job).unwrap();
        let (sender, receiver) = channel();
        let (first, _) = Start::claim(&place.job()).unwrap();
        let followed = sender.clone();
        first.watch(move || followed.send("followed").unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(receiver.try_recv().is_err());
        let (second, _) = Start::claim(&place.job()).unwrap();
        assert_eq!(receiver.try_recv(), Ok("followed"), "it had the time to notice");
        place.close(&job).unwrap();
        second.watch(move || sender.send("closed").unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok("closed"));
        assert!(Start::claim(&place.job()).is_err_and(|error| error.to_string().contains("over")));
    }
}
