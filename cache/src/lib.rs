//! The content-addressed store of mpcc. It knows bytes and names, not stages.

pub mod artifact;
pub mod digest;

pub use artifact::{Artifact, ArtifactKind};
pub use digest::Digest;
