//! The scheduler: which node runs next. A pure state machine: [`Scheduler::step`] takes one [`Input`] and answers with
//! [`Command`]s; it does no I/O, reads no clock and starts no thread, so a whole run can be replayed in a test.
//!
//! # The life of a node
//!
//! ```text
//! Blocked -> Keying -> Queued -> Running -> Ended(Executed | Failed | Waiting | Cancelled)
//!              | ^        ^        | | |
//!              | |        |        | | +--> Ended(Cached)     another run has finished it in between
//!              | |        +-- Resting <+   the attempt failed, retries are left
//!              | +-- Following <-------+   another run holds the lease
//!              +--> Ended(Cached | Failed)
//! ```
//!
//! Every arrow is one line of [`State::after`]; a change that has no line there is a bug of the caller and panics.
//!
//! # What is promised
//!
//! | promise | how |
//! |---|---|
//! | the longest chain starts first | priority = a node's expected duration + the longest chain below it |
//! | a node that is about to be ready is not overtaken | nothing starts while a node of higher priority is being keyed, unless that takes long |
//! | nothing is over-committed | a node starts only with a [`Grant`](crate::allocator::Grant), which is moved, never copied |
//! | no starvation | a node that was passed over [`PATIENCE`] times holds back later nodes that want what it lacks |
//! | a failure skips descendants only | skipping is eager and wins over everything else that holds for a node |
//! | without `keep_going` nothing new starts after a failure | what runs is let finish, the rest is `Cancelled` |
//! | a waiting node stops only what needs it | a node is `Waiting` when all above it has ended and something there waits |
//! | who ran out of memory gets more | its reservation doubles until it has had all there is; this costs none of its `retries` ([`growth`]) |
//! | every node ends | `Finish` comes exactly once, when all have |
//!
//! # Limits
//!
//! Durations are guesses: they order nodes and promise nothing. Retries rest 1 s, 2 s, 4 s, ... up to a minute, without
//! jitter, so that runs are repeatable. Keying is not limited here: the caller's blocking threads are the limit.

mod core;
mod growth;
mod message;
mod queue;
mod state;
#[cfg(test)]
mod tests;

pub use core::Scheduler;
pub use growth::Growth;
pub use message::{Command, End, Input, Keyed};
pub use queue::{PATIENCE, Task, priorities};
pub use state::{Change, State, Verdict};
