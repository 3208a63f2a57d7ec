//! Artifacts: content-addressed outputs, a file or a tree.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// What an artifact is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// One file; its digest is the BLAKE3 of its bytes.
    File,
    /// A directory; its digest is the BLAKE3 of its manifest (sorted relative paths, digests, sizes).
    Tree,
}

/// A reference to a content-addressed output in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Artifact {
    /// File or tree.
    pub kind: ArtifactKind,
    /// Content digest.
    pub digest: Digest,
    /// Total size in bytes of the content (for a tree: of all its files).
    pub bytes: u64,
}
