//! How a run was called, kept beside its journal, so that commands without FILE can plan the same pipeline again.

use std::path::{Path, PathBuf};

use mpcc_engine::journal::RunRecord;
use serde::{Deserialize, Serialize};

use crate::cli::ValueArgs;
use crate::report::Failure;

/// The words of a run that decide its plan.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Invocation {
    /// The pipeline file, absolute.
    pub(crate) file: PathBuf,
    /// `--profile`.
    pub(crate) profile: Option<String>,
    /// `--set`.
    pub(crate) sets: Vec<(String, String)>,
    /// `--inventory`.
    pub(crate) inventory: Option<String>,
    /// `--executor`.
    #[serde(default)]
    pub(crate) executor: Option<String>,
    /// `--numerics`.
    #[serde(default)]
    pub(crate) numerics: Vec<String>,
}

impl Invocation {
    /// Of these arguments.
    pub(crate) fn new(file: &Path, values: &ValueArgs) -> Self {
        Self {
            file: file.to_owned(),
            profile: values.profile.clone(),
            sets: values.sets.clone(),
            inventory: values.inventory.clone(),
            executor: values.executor.clone(),
            numerics: values.numerics.clone(),
        }
    }

    /// The arguments again.
    pub(crate) fn values(self) -> ValueArgs {
        let Self { profile, sets, inventory, executor, numerics, .. } = self;
        ValueArgs { profile, sets, inventory, executor, numerics }
    }

    fn path(store: &Path, run: &str) -> PathBuf {
        store.join("runs").join(run).join("invocation.json")
    }

    /// Keeps it for the run called `run`.
    pub(crate) fn keep(&self, store: &Path, run: &str) -> std::io::Result<()> {
        std::fs::write(Self::path(store, run), serde_json::to_vec(self).expect("plain data"))
    }

    /// How `run` was called; as far as its journal tells, when nothing was kept.
    pub(crate) fn of(store: &Path, run: &RunRecord) -> Result<Self, Failure> {
        let path = Self::path(store, &run.id);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Failure::machine(format_args!("{}: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let values = ValueArgs { profile: run.profile.clone(), ..ValueArgs::default() };
                Ok(Self::new(&run.file, &values))
            }
            Err(error) => Err(Failure::io(&path, &error)),
        }
    }
}
