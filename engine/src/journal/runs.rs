//! Reading journals back.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::record::{NodeRecord, RunRecord, Status};
use super::{JournalError, events_file, runs_folder};
use crate::event::{Event, VERSION, What};

/// Runs looked at for durations.
const RUNS_FOR_DURATIONS: usize = 6;

/// The ids of all runs of the store, newest first.
pub fn list(store: &Path) -> Result<Vec<String>, JournalError> {
    let folder = runs_folder(store);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(JournalError::io(&folder, error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| JournalError::io(&folder, error))?;
        if events_file(&entry.path()).exists() {
            ids.extend(entry.file_name().into_string());
        }
    }
    ids.sort_by_cached_key(|id| std::cmp::Reverse(age_key(id)));
    Ok(ids)
}

/// `base` and `base-2` began in one millisecond, in this order.
fn age_key(id: &str) -> (String, u32) {
    match id.splitn(4, '-').collect::<Vec<_>>()[..] {
        [day, time, millis, count] => (format!("{day}-{time}-{millis}"), count.parse().unwrap_or(1)),
        _ => (id.to_owned(), 1),
    }
}

/// The newest run, if there is one.
pub fn latest(store: &Path) -> Result<Option<RunRecord>, JournalError> {
    for id in list(store)? {
        match read(store, &id) {
            // A run that was killed before it wrote its first line did nothing.
            Err(JournalError::NoJournal { .. }) => {}
            record => return record.map(Some),
        }
    }
    Ok(None)
}

/// The run called `id`; a prefix that fits one run alone will do.
pub fn read(store: &Path, id: &str) -> Result<RunRecord, JournalError> {
    let missing = || JournalError::NoRun { store: store.to_owned(), id: id.to_owned() };
    let mut folder = runs_folder(store).join(id);
    if id.is_empty() || id.contains('/') || !events_file(&folder).exists() {
        let ids = list(store)?;
        let fitting: Vec<_> = ids.iter().filter(|known| !id.is_empty() && known.starts_with(id)).collect();
        let [only] = fitting[..] else { return Err(missing()) };
        folder = runs_folder(store).join(only);
    }
    replay(&events_file(&folder))
}

fn replay(path: &Path) -> Result<RunRecord, JournalError> {
    let io = |error| JournalError::io(path, error);
    let file = File::open(path).map_err(io)?;
    let alive = flock(&file, FlockOperation::NonBlockingLockShared).is_err();
    let mut lines = BufReader::new(file).split(b'\n');
    let first = lines.next().transpose().map_err(io)?.unwrap_or_default();
    let first: Event = serde_json::from_slice(&first).map_err(|_| JournalError::NoJournal { path: path.to_owned() })?;
    if let What::RunStarted { version, .. } = first.what
        && version > VERSION
    {
        return Err(JournalError::Version { path: path.to_owned(), found: version });
    }
    let mut record = RunRecord::begin(&first).ok_or_else(|| JournalError::NoJournal { path: path.to_owned() })?;
    if let What::RunStarted { since: Some(base), .. } = &first.what {
        let runs = path.parent().and_then(Path::parent).unwrap_or(path);
        record.stand_on(replay(&events_file(&runs.join(base)))?);
    }
    for line in lines {
        // The torn last line of a killed run, and events of a later version, are skipped.
        if let Ok(event) = serde_json::from_slice(&line.map_err(io)?) {
            record.apply(&event);
        }
    }
    if !alive {
        record.died();
    }
    Ok(record)
}

/// What a node was seen to use when it was last executed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Wall time in seconds.
    pub wall_s: f64,
    /// Most main memory in bytes; 0 when it is not known.
    pub peak_rss_bytes: u64,
    /// Most memory on one GPU in bytes; 0 when it is not known.
    pub gpu_peak_bytes: u64,
    /// Whether another node of the same stage was seen, not this one.
    pub of_sibling: bool,
}

/// What the newest runs of a pipeline tell of its nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// By node.
    pub nodes: BTreeMap<String, Measured>,
    /// The largest GPU peak of any node of a stage in bytes, by stage.
    stages: BTreeMap<String, u64>,
}

impl Past {
    /// What is known of a node, or, when it never ran, the GPU peak of its stage's other nodes.
    pub fn of(&self, node: &str, stage: &str) -> Measured {
        let unknown = || {
            let gpu_peak_bytes = self.stages.get(stage).copied().unwrap_or(0);
            Measured { gpu_peak_bytes, of_sibling: true, ..Measured::default() }
        };
        self.nodes.get(node).copied().unwrap_or_else(unknown)
    }

    fn learn(&mut self, node: &NodeRecord) {
        let Some(wall_s) = node.wall_s else { return };
        let (peak_rss_bytes, gpu_peak_bytes) = (node.peak_rss_bytes.unwrap_or(0), node.gpu_peak_bytes.unwrap_or(0));
        let Entry::Vacant(place) = self.nodes.entry(node.header.node.clone()) else { return };
        place.insert(Measured { wall_s, peak_rss_bytes, gpu_peak_bytes, of_sibling: false });
        if gpu_peak_bytes > 0 {
            let most = self.stages.entry(node.header.stage.clone()).or_default();
            *most = gpu_peak_bytes.max(*most);
        }
    }
}

/// How long each node of the pipeline `file` took when it was last executed, in seconds; see [`past`].
pub fn durations(store: &Path, file: &Path) -> BTreeMap<String, f64> {
    past(store, file).nodes.into_iter().map(|(node, measured)| (node, measured.wall_s)).collect()
}

/// What each node of the pipeline `file` used when it was last executed, from the newest runs. Journals that cannot be read tell
/// nothing.
pub fn past(store: &Path, file: &Path) -> Past {
    let mut past = Past::default();
    let ids = list(store).unwrap_or_default();
    let records = ids.iter().take(RUNS_FOR_DURATIONS).filter_map(|id| read(store, id).ok());
    for record in records.filter(|record| record.file == file) {
        let done = |node: &&NodeRecord| matches!(node.status, Status::Executed | Status::Cached);
        record.nodes.iter().filter(done).for_each(|node| past.learn(node));
        // A run that came to its end carries what is known of its cached nodes along.
        if record.summary.is_some_and(|summary| summary.executed + summary.cached == record.nodes.len()) {
            break;
        }
    }
    past
}
