//! The engine of mpcc: pipeline language, plan, scheduler, run loop. It knows no machine learning and no terminal.

pub mod allocator;
pub mod asking;
pub mod audit;
pub mod command;
pub mod diagnostic;
pub mod event;
pub mod executor;
pub mod fingerprint;
pub mod gpu;
pub mod harness;
mod interpolate;
pub mod job;
pub mod journal;
pub mod plan;
pub mod port;
pub mod preview;
pub mod registry;
pub mod resources;
pub mod run;
pub mod scheduler;
pub mod schema;
pub mod simulate;
mod spec;
pub mod stage;
pub mod worker;

pub use mpcc_cache as cache;
