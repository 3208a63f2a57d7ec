//! What can go wrong with a remote. Every error names the URL and says what to do.

use std::error::Error;
use std::io;

use crate::StoreError;

/// Why a remote could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// A text that names no remote.
    #[error("`{url}` is no remote: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// No variable holds credentials.
    #[error("no credentials for {url}: set {set}")]
    NoCredentials {
        /// The remote.
        url: String,
        /// The variables to set.
        set: &'static str,
    },
    /// The variables do not make a client.
    #[error("no client for {url} can be made: {why}; {help}")]
    Client {
        /// The remote.
        url: String,
        /// What is wrong.
        why: String,
        /// What to check.
        help: &'static str,
    },
    /// The bucket, container or folder is not there. Not a miss: nothing can be found or kept in it.
    #[error("there is no {place} for {url}: {help}")]
    NoBucket {
        /// The remote.
        url: String,
        /// `bucket `x``, `folder /y`.
        place: String,
        /// What to check.
        help: &'static str,
    },
    /// The server knows these credentials not, or lets them not do this.
    #[error("{url} refuses these credentials ({op}: {detail}): {help}")]
    Denied {
        /// The remote.
        url: String,
        /// What was tried.
        op: String,
        /// What the server said.
        detail: String,
        /// What to check.
        help: &'static str,
    },
    /// What lies there is of another format.
    #[error(
        "{url} holds a remote cache of format `{found}`, this mpcc knows `{ours}`; use the mpcc that made it or another prefix"
    )]
    Format {
        /// The remote.
        url: String,
        /// What the format key says.
        found: String,
        /// What this version writes.
        ours: &'static str,
    },
    /// A request failed, and went on failing.
    #[error("cannot {op} at {url}: {detail}; {help}")]
    Failed {
        /// The remote.
        url: String,
        /// What was tried.
        op: String,
        /// What happened.
        detail: String,
        /// What to check.
        help: &'static str,
    },
    /// The system gives no threads.
    #[error("no threads for the remote cache: {source}")]
    Threads {
        /// The reason given.
        source: io::Error,
    },
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoteError {
    /// Whether what was typed or set is to blame rather than the network or a machine.
    pub fn is_wrong(&self) -> bool {
        matches!(self, Self::Url { .. } | Self::NoCredentials { .. } | Self::Client { .. })
    }

    /// Whether waiting may help: the remote did not answer, or failed.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

/// The error and its causes on one short line.
pub(super) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let more = deeper.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = deeper.source();
    }
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(500) {
        Some((end, _)) => format!("{}...", &flat[..end]),
        None => flat,
    }
}

/// Whether a server's answer says that the bucket itself is not there, which arrives like any other absence.
pub(super) fn says_no_bucket(text: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"].iter().any(|word| text.contains(word))
}

/// Whether an answer was cut off or never came, so that the same request may do better.
pub(super) fn says_cut(text: &str) -> bool {
    text.contains("HTTP error")
}

/// Whether a server's answer refuses the credentials, where the client does not tell.
pub(super) fn says_denied(text: &str) -> bool {
    let words = ["403 Forbidden", "401 Unauthorized", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"];
    words.iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("request\n  failed")]
    struct Outer(#[source] io::Error);

    #[test]
    fn an_error_is_told_with_its_causes_on_one_short_line() {
        assert_eq!(told(&Outer(io::Error::other("refused"))), "request failed: refused");
        let long = told(&Outer(io::Error::other("x".repeat(2000))));
        assert!(long.len() < 520 && long.ends_with("..."), "{long}");
    }
}
