//! The program from outside: hermetic, each test in a folder of its own with an environment of its own.

mod audit;
pub(crate) mod bench;
mod contract;
mod crash;
mod crowd;
mod custom;
mod errors;
mod examples;
mod look;
pub(crate) mod python;
mod standing;
mod stop;
