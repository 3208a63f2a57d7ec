//! The states of a node and the one function that moves it from one to the next.

use serde::{Deserialize, Serialize};

/// How a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It ran in this run and its outputs are in the store.
    Executed,
    /// Its outputs were in the store already.
    Cached,
    /// Its last attempt failed.
    Failed,
    /// It is below a failure.
    Skipped,
    /// It waits for a person, or is below a node that does.
    Waiting,
    /// It was stopped, or not started, because the run was interrupted or stopped at a failure elsewhere.
    Cancelled,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Something above it has not ended.
    Blocked,
    /// Its recipe is being computed and looked up.
    Keying,
    /// It must run and waits for resources.
    Queued,
    /// It holds a grant.
    Running,
    /// Another run executes it.
    Following,
    /// Its last attempt failed and the next one is not due yet.
    Resting,
    /// It is over.
    Ended(Verdict),
}

/// What may happen to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// All above it has ended well.
    Unblock,
    /// The store has its outputs.
    Hit,
    /// The store does not have its outputs.
    Miss,
    /// It got its resources.
    Grant,
    /// Another run holds its lease.
    Busy,
    /// The other run let go.
    Freed,
    /// An attempt failed and another is allowed.
    Retry,
    /// The back-off is over.
    Rested,
    /// Its outputs are in the store.
    Done,
    /// It failed for good.
    Fail,
    /// Something above it failed.
    Skip,
    /// It, or something above it, waits for a person.
    Wait,
    /// The run is being stopped.
    Cancel,
}

impl State {
    /// The state after `change`; `None` when the change cannot happen in this state.
    pub fn after(self, change: Change) -> Option<State> {
        use Change::*;
        use State::*;
        Some(match (self, change) {
            (Blocked, Unblock) => Keying,
            (Keying | Running, Hit) => Ended(Verdict::Cached),
            (Keying, Miss) => Queued,
            (Queued, Grant) => Running,
            (Running, Busy) => Following,
            (Following, Freed) => Keying,
            (Running, Retry) => Resting,
            (Resting, Rested) => Queued,
            (Running, Done) => Ended(Verdict::Executed),
            (Keying | Queued | Running | Resting, Fail) => Ended(Verdict::Failed),
            (Blocked, Skip) => Ended(Verdict::Skipped),
            (Blocked | Running, Wait) => Ended(Verdict::Waiting),
            (Blocked | Keying | Queued | Running | Following | Resting, Cancel) => Ended(Verdict::Cancelled),
            _ => return None,
        })
    }

    /// The verdict of a node that is over.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            State::Ended(verdict) => Some(verdict),
            _ => None,
        }
    }
}
