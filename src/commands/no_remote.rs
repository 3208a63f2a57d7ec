//! What stands in for the remote cache in a program that was built without it.

use mpcc_engine::cache::Store;

use super::Answer;
use crate::cli::RemoteArgs;
use crate::report::Failure;

fn without() -> Failure {
    Failure::wrong("this mpcc was built without the remote cache; build it with the feature `remote`")
}

/// Nothing is ever fetched.
pub(super) struct Behind;

impl Behind {
    /// Says nothing.
    pub(super) fn say(&self) {}
}

/// The store alone.
pub(super) fn behind(store: Store, url: Option<&str>) -> Result<(Store, Behind), Failure> {
    if url.is_none_or(str::is_empty) { Ok((store, Behind)) } else { Err(without()) }
}

/// `mpcc cache push`.
pub(super) fn push(_: &Store, _: &[String], _: bool, _: &RemoteArgs) -> Answer {
    Err(without())
}

/// `mpcc cache pull`.
pub(super) fn pull(_: &Store, _: &[String], _: &RemoteArgs) -> Answer {
    Err(without())
}
