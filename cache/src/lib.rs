//! The content-addressed store of mpcc. It knows bytes and names, not stages.
//!
//! [`Store`] is the one handle. `docs/cache.md` says what it promises and what it assumes of the file system.

pub mod artifact;
mod bytes;
mod census;
mod core;
pub mod digest;
pub mod entries;
pub mod error;
mod folder;
pub mod gc;
mod heartbeat;
mod index;
pub mod io;
pub mod lease;
pub mod ledger;
mod lock;
mod log;
pub mod manifest;
pub mod memo;
mod objects;
mod pairs;
mod partial;
pub mod recipe;
#[cfg(feature = "remote")]
pub mod remote;
mod snapshot;
mod statcache;
pub mod store;
mod sync;
mod trees;
pub mod verify;
pub mod watch;

pub use self::core::Damage;
pub use artifact::{Artifact, ArtifactKind};
pub use bytes::ByteLock;
pub use digest::Digest;
pub use entries::Entry;
pub use error::StoreError;
pub use gc::{GcOptions, GcReport, Keep};
pub use io::{Faults, Op, Verdict};
pub use lease::Lease;
pub use ledger::{Balance, Charge, Ledger};
pub use lock::Locking;
pub use manifest::{Manifest, TreeFile};
pub use memo::{MemoStats, MemoStore};
pub use recipe::{Change, Recipe};
pub use store::{Store, StoreOptions};
pub use verify::{StoreStats, VerifyReport};
pub use watch::Watch;
