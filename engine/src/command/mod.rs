//! Command stages: `run` and `each` of the pipeline file, carried out in the worker.
//!
//! | file | does |
//! |---|---|
//! | [`substitute`] | puts paths where `${inputs.x}` and `${outputs.y}` stand |
//! | `program` | starts the command and tells how it ended |
//! | `each` | record stages: long-lived processes, one record a line |
//! | `record_process` | one such process |

mod each;
mod program;
mod record_process;
pub mod substitute;

pub(crate) use program::{cannot_start, ended, words};
pub(crate) use substitute::Ports;

use std::path::Path;

use crate::job::Outcome;
use crate::plan::Command;
use crate::stage::Context;

/// Carries out `command`. `failed_records` is where a record stage keeps the records that failed.
pub fn carry_out(command: &Command, ctx: &Context, failed_records: &Path) -> Outcome {
    let ended = match &command.each {
        Some(port) => each::run(command, port, ctx, failed_records),
        None => program::run(command, ctx),
    };
    ended.err().unwrap_or(Outcome::Done)
}
