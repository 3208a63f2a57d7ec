//! Errors -> text and exit code.

use std::fmt::Display;
use std::path::Path;

use mpcc_engine::cache::StoreError;
use mpcc_engine::diagnostic::Diagnostics;
use mpcc_engine::journal::JournalError;
use mpcc_engine::plan::SelectError;
use mpcc_engine::run::RunError;

/// Done.
pub(crate) const DONE: u8 = 0;
/// A stage failed, or does not do the same each time.
pub(crate) const FAILED: u8 = 1;
/// The pipeline or the command line is wrong, or something declared is missing; nothing has run.
pub(crate) const WRONG: u8 = 2;
/// The machine.
pub(crate) const MACHINE: u8 = 3;

/// Why a command ends without doing what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What to print on standard error.
    pub(crate) text: String,
}

impl Failure {
    /// The pipeline or the command line is wrong.
    pub(crate) fn wrong(message: impl Display) -> Self {
        Self { code: WRONG, text: format!("error: {message}") }
    }

    /// The machine failed.
    pub(crate) fn machine(message: impl Display) -> Self {
        Self { code: MACHINE, text: format!("error: {message}") }
    }

    /// An I/O error on `path`.
    pub(crate) fn io(path: &Path, error: &std::io::Error) -> Self {
        Self::machine(format_args!("{}: {error}", path.display()))
    }
}

impl From<Diagnostics> for Failure {
    fn from(diagnostics: Diagnostics) -> Self {
        let count = match diagnostics.len() {
            1 => "1 problem".to_owned(),
            count => format!("{count} problems"),
        };
        Self { code: WRONG, text: format!("{diagnostics}\n\nerror: {count}; nothing has run") }
    }
}

impl From<SelectError> for Failure {
    fn from(error: SelectError) -> Self {
        Self::wrong(error)
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let code = error.exit_code();
        let text = match &error {
            RunError::Missing(_) => {
                format!("error: the pipeline asks for what is not there; nothing has run\n{}", indent(&error))
            }
            RunError::Unfit(_) => format!("error: this host is too small; nothing has run\n{}", indent(&error)),
            _ => format!("error: {error}"),
        };
        Self { code, text }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::NoRun { .. } => Self::wrong(error),
            _ => Self::machine(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::machine(error)
    }
}

impl From<mpcc_stages::models::ModelError> for Failure {
    fn from(error: mpcc_stages::models::ModelError) -> Self {
        use mpcc_stages::models::ModelError;
        match error {
            ModelError::Write { .. } | ModelError::Device(_) | ModelError::Tensor(_) => Self::machine(error),
            _ => Self::wrong(error),
        }
    }
}

#[cfg(feature = "remote")]
impl From<mpcc_engine::cache::remote::RemoteError> for Failure {
    fn from(error: mpcc_engine::cache::remote::RemoteError) -> Self {
        if error.is_wrong() {
            Self::wrong(error)
        } else if error.is_passing() {
            Self::machine(format_args!("{error}, then run the same command again: what is complete is not moved twice"))
        } else {
            Self::machine(error)
        }
    }
}

fn indent(text: &impl Display) -> String {
    text.to_string().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
