//! The folder of one attempt, and what lies in it. Blocking.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mpcc_cache::Digest;
use serde::{Deserialize, Serialize};

use super::SlurmOptions;
use super::script::script;
use crate::job::{Job, Outcome, Usage};

/// Where the folders of attempts lie, below the checkpoints of their recipe: they go when those go.
const FOLDER: &str = ".slurm";

/// What a start says last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    /// How it ended.
    pub(super) outcome: Outcome,
    /// What it used.
    pub(super) usage: Usage,
}

/// What is known of a job that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its number; nothing until `sbatch` has answered.
    pub(super) job: Option<u64>,
}

/// The starts of an attempt so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Starts {
    /// The newest, from 1; 0 before the first.
    pub(super) newest: u32,
    /// What the newest said.
    pub(super) said: Option<Said>,
    /// A start that is done, whichever.
    pub(super) done: Option<(u32, Said)>,
}

/// The folder of one attempt.
#[derive(Clone, Debug)]
pub(super) struct Place {
    folder: PathBuf,
}

impl Place {
    /// The place of a new attempt. Its name tells the recipe, and is used once: a job's own folder is.
    pub(super) fn of(job: &Job) -> Self {
        let recipe = job.partial.file_name().unwrap_or_default().to_string_lossy();
        let short: String = recipe.chars().take(12).collect();
        let attempt = Digest::of(job.folder.as_os_str().as_encoded_bytes()).hex();
        Self { folder: job.partial.join(FOLDER).join(format!("mpcc-{short}-{}", &attempt[..12])) }
    }

    /// The places that earlier attempts of the job's recipe have left.
    pub(super) fn left(job: &Job) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(job.partial.join(FOLDER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut places = Vec::new();
        for entry in entries {
            places.push(Self { folder: entry?.path() });
        }
        places.sort_by(|a, b| a.folder.cmp(&b.folder));
        Ok(places)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The job's name in Slurm.
    pub(super) fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(super) fn job(&self) -> PathBuf {
        self.folder.join("job.json")
    }

    pub(super) fn script(&self) -> PathBuf {
        self.folder.join("script.sh")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub(super) fn notes(&self, start: u32) -> PathBuf {
        start_folder(&self.folder, start).join(NOTES)
    }

    /// Makes the folder with job and script.
    pub(super) fn create(&self, options: &SlurmOptions, job: &Job) -> io::Result<()> {
        fs::create_dir_all(self.folder.join(STARTS))?;
        if let Some(parent) = job.log.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(self.job(), serde_json::to_vec(job).expect("a job is plain data"))?;
        fs::write(self.script(), script(options, job, self))
    }

    /// Writes the record; from here on a job of this name may exist.
    pub(super) fn record(&self, record: Record) -> io::Result<()> {
        let text = serde_json::to_vec(&record).expect("plain data");
        replace(&self.folder.join("record.json"), &text)
    }

    /// The record; none when nothing was submitted.
    pub(super) fn recorded(&self) -> io::Result<Option<Record>> {
        match fs::read(self.folder.join("record.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            text => serde_json::from_slice(&text?).map(Some).map_err(io::Error::other),
        }
    }

    /// Which starts there are, and what they said.
    pub(super) fn starts(&self) -> io::Result<Starts> {
        let mut starts = Starts::default();
        for entry in fs::read_dir(self.folder.join(STARTS))? {
            let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let said = said(&start_folder(&self.folder, number))?;
            if let Some(said) = said.clone().filter(|said| said.outcome == Outcome::Done) {
                starts.done = Some((number, said));
            }
            if number > starts.newest {
                starts.newest = number;
                starts.said = said;
            }
        }
        Ok(starts)
    }

    /// Takes the folder away from every start, into the job's own folder, which the caller of the attempt removes. Starts that
    /// still run find theirs gone and end; those that come later find nothing to claim.
    pub(super) fn close(&self, job: &Job) -> io::Result<Self> {
        fs::create_dir_all(&job.folder)?;
        let closed = job.folder.join(self.name());
        fs::rename(&self.folder, &closed)?;
        Ok(Self { folder: closed })
    }

    /// Puts the outputs of start `number` of a closed place where the job promises them.
    pub(super) fn deliver(&self, number: u32, job: &Job) -> io::Result<()> {
        let outputs = start_folder(&self.folder, number).join("outputs");
        fs::rename(outputs, job.folder.join("outputs"))
    }
}

/// Folder of the starts in an attempt's folder.
pub(super) const STARTS: &str = "starts";
/// Notes of a start, in its folder.
pub(super) const NOTES: &str = "notes.jsonl";

/// The folder of start `number` of the attempt in `folder`.
pub(super) fn start_folder(folder: &Path, number: u32) -> PathBuf {
    folder.join(STARTS).join(number.to_string())
}

fn end(start: &Path) -> PathBuf {
    start.join("end.json")
}

/// What the start in this folder said last, if it has.
fn said(start: &Path) -> io::Result<Option<Said>> {
    match fs::read(end(start)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => serde_json::from_slice(&text?).map(Some).map_err(io::Error::other),
    }
}

/// Writes the end of the start in this folder. What it wrote before must be whole by then.
pub(super) fn say(start: &Path, text: &[u8]) -> io::Result<()> {
    replace(&end(start), text)
}

/// Writes a file so that it appears at once and whole, also on another host.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = File::create(&draft)?;
    file.write_all(text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::slurm::tests::{job, options};

    fn ended(place: &Place, number: u32, outcome: Outcome) {
        let said = Said { outcome, usage: Usage::default() };
        say(&start_folder(place.folder(), number), &serde_json::to_vec(&said).unwrap()).unwrap();
    }

    #[test]
    fn names_tell_recipe_and_attempt() {
        let (one, mut other) = (job(Path::new("/s/one")), job(Path::new("/s/one")));
        assert_eq!(Place::of(&one).name(), Place::of(&other).name());
        other.folder = "/s/two".into();
        assert_ne!(Place::of(&one).name(), Place::of(&other).name());
        assert!(Place::of(&one).name().starts_with("mpcc-recipe-"), "{}", Place::of(&one).name());
    }

    #[test]
    fn a_done_start_counts_whichever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let place = Place::of(&job);
        place.create(&options(), &job).unwrap();
        assert_eq!(place.starts().unwrap(), Starts::default());
        for number in [1, 2, 10] {
            fs::create_dir_all(start_folder(place.folder(), number).join("outputs")).unwrap();
        }
        fs::write(start_folder(place.folder(), 2).join("end.draft"), "{").unwrap();
        let starts = place.starts().unwrap();
        assert_eq!((starts.newest, &starts.said, &starts.done), (10, &None, &None));
        ended(&place, 10, Outcome::failed("no luck"));
        ended(&place, 1, Outcome::Done);
        let starts = place.starts().unwrap();
        assert_eq!(starts.said.unwrap().outcome, Outcome::failed("no luck"));
        assert_eq!(starts.done.unwrap().0, 1);
    }

    #[test]
    fn closing_takes_the_folder_from_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let job = job(folder.path());
        let place = Place::of(&job);
        place.create(&options(), &job).unwrap();
        place.record(Record { job: Some(7) }).unwrap();
        fs::create_dir_all(start_folder(place.folder(), 1).join("outputs")).unwrap();
        fs::write(start_folder(place.folder(), 1).join("outputs/y"), "text").unwrap();
        assert_eq!(Place::left(&job).unwrap()[0].recorded().unwrap(), Some(Record { job: Some(7) }));
        let closed = place.close(&job).unwrap();
        assert!(Place::left(&job).unwrap().is_empty() && place.starts().is_err());
        assert!(fs::create_dir(start_folder(place.folder(), 2)).is_err(), "a late start finds nothing to claim");
        closed.deliver(1, &job).unwrap();
        assert_eq!(fs::read_to_string(Job::output_in(&job.folder, "y")).unwrap(), "text");
    }
}
