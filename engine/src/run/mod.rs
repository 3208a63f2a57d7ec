//! Running a plan: the one loop.
//!
//! [`run`] steps the [scheduler](crate::scheduler) and does what it says. Everything that happens arrives as a message in one
//! inbox; everything that is said goes out as one stream of [events](crate::event). No byte is hashed, copied or published
//! on the loop: that is done on blocking threads, which answer with a message.
//!
//! # A node's way
//!
//! | step | where | what |
//! |---|---|---|
//! | key | blocking | recipe, look-up (every object of the entry is there and whole), published copies restored |
//! | prepare | blocking | lease, second look-up, inputs bound to paths, the job |
//! | attempt | executor | the stage runs |
//! | commit | blocking | inputs looked at again, outputs checked and taken into the store, the entry last, then published copies |
//!
//! A node that is up to date ends after its first step. Recipes hold digests, so a node that ran again and made the same bytes
//! leaves everything below it up to date.
//!
//! A node that *stands* on the [seal](seal) of an earlier run is not even keyed.
//!
//! # Two runs at once
//!
//! A node is executed by who holds its recipe's lease. The other run gives its resources back, waits for the lease to be
//! free and keys the node again, which is then a hit, or, when the first run failed, a miss that it executes itself.
//!
//! # Being killed
//!
//! A run may die at any moment. What it has published stays; what it had under way is a miss for the next run. There is
//! nothing to unlock: leases die with their process.

mod attempt;
mod core;
mod needs;
mod options;
mod reserve;
mod say;
mod seal;
mod step;
#[cfg(test)]
pub(crate) mod tests;
mod unchanged;

pub use crate::event::Summary;
pub use core::{run, task};
pub(crate) use needs::names_of;
pub use options::{Control, RunError, RunOptions};
pub use reserve::reserve;
pub use seal::Seal;
pub(crate) use seal::Stand;
pub(crate) use step::{job_of, job_outputs, node_key, previous_key};
pub use unchanged::{Unchanged, unchanged};
