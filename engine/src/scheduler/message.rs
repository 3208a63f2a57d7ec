//! What the scheduler is told, and what it answers.

use std::time::Duration;

use super::growth::Growth;
use super::state::Verdict;
use crate::allocator::Grant;
use crate::plan::NodeId;
use crate::resources::Memory;

/// What the store says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed {
    /// It has the outputs.
    Hit,
    /// It has not: the node must run.
    Miss,
    /// The recipe could not be made; a failure.
    Broken,
}

/// How a started node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its outputs are in the store.
    Done,
    /// Another run had put them there before it began.
    Cached,
    /// Another run holds its lease.
    Busy,
    /// It failed.
    Failed {
        /// Whether another attempt may succeed.
        again: bool,
    },
    /// It ran out of memory.
    OutOfMemory {
        /// Which.
        memory: Memory,
        /// Bytes that it was seen to hold; 0 when that is not known.
        used: u64,
    },
    /// It waits for a person.
    Waiting,
    /// It was told to stop.
    Cancelled,
}

/// What the scheduler is told.
#[derive(Debug)]
pub enum Input {
    /// The run begins.
    Begin,
    /// The answer to [`Command::Key`].
    Keyed(NodeId, Keyed),
    /// Keying this node, or taking its outputs, takes long (much is being hashed): others need not be held back for it.
    Slow(NodeId),
    /// The node's process is over; what is left, taking its outputs, needs no grant any more.
    Exited(NodeId, Grant),
    /// The end of what [`Command::Start`] began; the grant comes back unless it did with [`Input::Exited`].
    Ended(NodeId, Option<Grant>, End),
    /// The answer to [`Command::Follow`].
    Freed(NodeId),
    /// The answer to [`Command::Rest`].
    Rested(NodeId),
    /// Stop: nothing new starts, what runs is asked to end.
    Drain,
    /// Stop at once: what runs is killed.
    Kill,
}

/// What the caller must do.
#[derive(Debug)]
pub enum Command {
    /// Compute the node's recipe and look it up.
    Key(NodeId),
    /// Start an attempt, counted from 1.
    Start {
        /// The node.
        node: NodeId,
        /// Which attempt.
        attempt: u32,
        /// What it holds; give it back with [`Input::Exited`] or [`Input::Ended`].
        grant: Grant,
    },
    /// Watch for the end of another run's execution of the node.
    Follow(NodeId),
    /// Let the node rest before its next attempt.
    Rest {
        /// The node.
        node: NodeId,
        /// The attempt that comes next.
        attempt: u32,
        /// How long.
        delay: Duration,
        /// More memory that it gets then, when it ran out of it.
        growth: Option<Growth>,
    },
    /// Ask the running node to end soon.
    Drain(NodeId),
    /// Kill the running node.
    Kill(NodeId),
    /// The node is over without having run to its end: skipped, waiting or cancelled because of `cause`, or failed because
    /// no host has what it asks for (`cause` is then itself).
    Settled {
        /// The node.
        node: NodeId,
        /// How it ended.
        verdict: Verdict,
        /// The node because of which.
        cause: Option<NodeId>,
    },
    /// Every node has ended.
    Finish,
}
