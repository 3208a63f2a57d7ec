//! The data stages on whole files: fixtures of the repository, and genuine third-party files where they are there.

mod blink;
mod coco;
mod curation;
mod mask;
mod questions;
mod support;
