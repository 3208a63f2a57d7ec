//! `mpcc init`: a commented starter pipeline.

use std::io::Write;

use super::Answer;
use crate::cli::InitArgs;
use crate::report::{DONE, Failure};
use crate::ui::say;

/// What `init` writes. A test runs it.
const STARTER: &str = include_str!("starter.yaml");

/// Writes the starter pipeline; never over anything.
pub(super) fn init(args: &InitArgs) -> Answer {
    let path = &args.file;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|error| Failure::io(folder, &error))?;
    }
    let mut file = std::fs::File::create_new(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::wrong(format_args!("{} exists; name another file: mpcc init FILE", path.display()))
        }
        _ => Failure::io(path, &error),
    })?;
    file.write_all(STARTER.as_bytes()).map_err(|error| Failure::io(path, &error))?;
    say(format_args!("wrote {0}\n\nnext:\n  mpcc plan {0}\n  mpcc run {0}", path.display()));
    Ok(DONE)
}
