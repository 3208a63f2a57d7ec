//! A harness that runs one stage outside any pipeline: for the tests of stage kinds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use mpcc_cache::{Artifact, ArtifactKind, Digest};

use crate::asking::Asking;
pub use crate::stage::MemoryMemo;
use crate::stage::{Bound, Context, Input, Memo, ModelInput, Note, NoteSink, Stage, StageError};

/// Keeps every note.
#[derive(Default)]
pub struct NoteLog(Mutex<Vec<Note>>);

impl NoteLog {
    /// The notes so far.
    pub fn notes(&self) -> Vec<Note> {
        self.0.lock().expect("unpoisoned").clone()
    }
}

impl NoteSink for NoteLog {
    fn note(&self, note: Note) {
        self.0.lock().expect("unpoisoned").push(note);
    }
}

/// Runs a stage on given paths in a folder.
pub struct Harness {
    context: Context,
    /// The notes of the stage.
    pub notes: Arc<NoteLog>,
}

impl Harness {
    /// A harness that writes below `folder`.
    pub fn new(folder: &Path) -> Self {
        let notes = Arc::new(NoteLog::default());
        let context = Context {
            node: "harness".to_owned(),
            matrix: Vec::new(),
            seed: 17,
            threads: 1,
            devices: Vec::new(),
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            scratch: folder.join("scratch"),
            partial: folder.join("partial"),
            memo: Arc::new(MemoryMemo::default()),
            asking: Asking::alone(),
            notes: notes.clone(),
            cancel: Arc::new(AtomicBool::new(false)),
        };
        Self { context, notes }
    }

    /// Connects `path` to input `port`; repeated calls make a list. The digest is that of the path's text, not of its content.
    pub fn input(mut self, port: &str, path: &Path) -> Self {
        let kind = if path.is_dir() { ArtifactKind::Tree } else { ArtifactKind::File };
        let artifact = Artifact { kind, digest: Digest::of(path.as_os_str().as_encoded_bytes()), bytes: 0 };
        let input = Input { node: port.to_owned(), matrix: Vec::new(), artifact, path: path.to_owned() };
        self.context.inputs.entry(port.to_owned()).or_default().push(Bound::Artifact(input));
        self
    }

    /// Connects a model to input `port`.
    pub fn model(mut self, port: &str, model: ModelInput) -> Self {
        self.context.inputs.entry(port.to_owned()).or_default().push(Bound::Model(model));
        self
    }

    /// Sets the seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.context.seed = seed;
        self
    }

    /// Replaces the memo, to share it between runs.
    pub fn memo(mut self, memo: Arc<dyn Memo>) -> Self {
        self.context.memo = memo;
        self
    }

    /// Replaces what models are asked with.
    pub fn asking(mut self, asking: Asking) -> Self {
        self.context.asking = asking;
        self
    }

    /// Runs `stage`; returns where each output lies.
    pub fn run<S: Stage>(mut self, stage: &S) -> Result<BTreeMap<String, PathBuf>, StageError> {
        let folder = self.context.scratch.parent().expect("scratch has a parent").join("outputs");
        for path in [&folder, &self.context.scratch, &self.context.partial] {
            std::fs::create_dir_all(path).map_err(|error| StageError::io(path, error))?;
        }
        for port in S::signature().outputs {
            let path = folder.join(&port.name);
            if port.ty.is_tree() {
                std::fs::create_dir_all(&path).map_err(|error| StageError::io(&path, error))?;
            }
            self.context.outputs.insert(port.name, path);
        }
        stage.run(&self.context)?;
        Ok(self.context.outputs)
    }
}
