//! Entries as the remote keeps them: `entries/<recipe>/<outputs list>` -> one line of text.
//!
//! `mpcc-entry 1 <recipe> <outputs list> <time in ns> <check>`, the check being the BLAKE3 of what stands before it. The line
//! repeats its key, so a record under another's name is noticed. Of several entries of one recipe the order is that of the
//! local store: the latest first, of two at one time the greater digest.

use crate::Digest;

const HEAD: &str = "mpcc-entry 1";

/// An entry of the remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RemoteEntry {
    pub(super) recipe: Digest,
    /// Digest of the outputs list.
    pub(super) outputs: Digest,
    pub(super) time_ns: i64,
}

impl RemoteEntry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let text = format!("{HEAD} {} {} {}", self.recipe, self.outputs, self.time_ns);
        format!("{text} {}\n", Digest::of(text.as_bytes())).into_bytes()
    }

    /// `None` when it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (text, check) = line.rsplit_once(' ')?;
        if check.parse::<Digest>().ok()? != Digest::of(text.as_bytes()) {
            return None;
        }
        let mut words = text.strip_prefix(HEAD)?.strip_prefix(' ')?.split(' ');
        let entry = Self {
            recipe: words.next()?.parse().ok()?,
            outputs: words.next()?.parse().ok()?,
            time_ns: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(entry)
    }

    pub(super) fn key(&self) -> String {
        key(&self.recipe, &self.outputs)
    }
}

/// The folder of a recipe's entries.
pub(super) fn folder(recipe: &Digest) -> String {
    format!("entries/{recipe}")
}

/// The key of an entry.
pub(super) fn key(recipe: &Digest, outputs: &Digest) -> String {
    format!("entries/{recipe}/{outputs}")
}

/// What a key spells; `None` for what is not an entry's.
pub(super) fn spelled(key: &str) -> Option<(Digest, Digest)> {
    let (recipe, outputs) = key.strip_prefix("entries/")?.split_once('/')?;
    Some((recipe.parse().ok()?, outputs.parse().ok()?))
}

/// The key of an object.
pub(super) fn object(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("objects/{}/{}", &hex[..2], &hex[2..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_and_every_flipped_byte_is_noticed() {
        let entry =
            RemoteEntry { recipe: Digest::of(b"recipe"), outputs: Digest::of(b"outputs"), time_ns: 1_700_000_000 };
        let bytes = entry.encode();
        assert_eq!(RemoteEntry::decode(&bytes), Some(entry));
        assert_eq!(spelled(&entry.key()), Some((entry.recipe, entry.outputs)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(RemoteEntry::decode(&damaged), None, "byte {at}");
            assert_eq!(RemoteEntry::decode(&bytes[..at]), None, "cut at {at}");
        }
        assert_eq!(spelled("entries/x/y"), None);
    }
}
