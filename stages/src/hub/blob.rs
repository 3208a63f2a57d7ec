//! One file: what an earlier try left, the rest from the server, and the proof that it is what the server named.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;

use reqwest::header::CONTENT_LENGTH;
use reqwest::{StatusCode, Url};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::HubError;
use super::layout::{Layout, create_parent};
use super::wire::{Known, Patience, Trouble, Wire};

/// A file that is there.
pub(super) struct Blob {
    pub(super) path: PathBuf,
    /// Its bytes, and how many of them came through the network.
    pub(super) size: u64,
    pub(super) downloaded: u64,
}

/// Brings a blob, unless it is there.
pub(super) async fn bring(
    wire: &Wire,
    layout: &Layout,
    name: &str,
    url: &Url,
    known: &Known,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Blob, HubError> {
    let (path, size) = (layout.blob(&known.etag), known.size);
    create_parent(&path)?;
    let mut blob = Blob { path, size, downloaded: 0 };
    // Whoever held the lock may have brought it.
    let _lock = if blob.path.exists() { None } else { Some(layout.lock(&known.etag).await?) };
    if blob.path.exists() {
        tell(size, size);
        return Ok(blob);
    }
    let mut partial = Partial::open(layout.incomplete(&known.etag), known)?;
    let mut wrong = None;
    loop {
        let came = fetch(wire, url, &mut partial, &mut blob.downloaded, tell).await?;
        match (came.and_then(|()| partial.verify(known)), &wrong) {
            (Ok(()), _) => break,
            (Err(why), Some(_)) => {
                fs::remove_file(&partial.path).map_err(HubError::io(&partial.path))?;
                return Err(HubError::Damaged { file: name.to_owned(), why });
            }
            // Bytes of an earlier try may be the cause.
            (Err(why), None) => {
                wrong = Some(why);
                partial.restart()?;
            }
        }
    }
    partial.file.sync_all().map_err(HubError::io(&partial.path))?;
    fs::rename(&partial.path, &blob.path).map_err(HubError::io(&blob.path))?;
    Ok(blob)
}

/// Brings what is missing of a file, however often the connection breaks while something comes that was never here. The inner error
/// says why what came cannot be the file.
async fn fetch(
    wire: &Wire,
    url: &Url,
    partial: &mut Partial,
    downloaded: &mut u64,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Result<(), String>, HubError> {
    if partial.length > partial.size {
        partial.restart()?;
    }
    // Bytes that come again and again, from a server without ranges, are no progress.
    let (mut patience, mut furthest) = (Patience::default(), partial.length);
    while partial.length != partial.size {
        match stream(wire, url, partial, downloaded, tell).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Ok(Err(why)),
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing { why, after }) => {
                if partial.length > furthest {
                    (patience, furthest) = (Patience::default(), partial.length);
                }
                wire.wait(&mut patience, why, after).await?;
            }
        }
    }
    tell(partial.length, partial.size);
    Ok(Ok(()))
}

/// One request, and all that comes of it. The inner error: the server sends another number of bytes than it named, which asking on
/// would not mend.
async fn stream(
    wire: &Wire,
    url: &Url,
    partial: &mut Partial,
    downloaded: &mut u64,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Result<(), String>, Trouble> {
    let again = |why: String| Trouble::Passing { why, after: None };
    let mut response = wire.get(url, partial.length).await?;
    let starts_at = response.headers().get("content-range").and_then(|value| value.to_str().ok()).and_then(range_start);
    match response.status() {
        StatusCode::PARTIAL_CONTENT if starts_at == Some(partial.length) => {}
        // The whole file, although a part of it was asked for.
        StatusCode::OK => {
            if partial.length > 0 {
                partial.restart()?;
            }
        }
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
            partial.restart()?;
            return Err(again(format!("{} sent no bytes from where the last try ended", wire.host())));
        }
        _ => return Err(wire.refusal(response).await),
    }
    // Such a body that ends before its length is a failed read, below.
    let whole = response.status() == StatusCode::OK && response.headers().contains_key(CONTENT_LENGTH);
    loop {
        let chunk = response.chunk().await.map_err(|error| wire.broken(&error))?;
        let Some(chunk) = chunk else { break };
        partial.append(&chunk)?;
        *downloaded += chunk.len() as u64;
        if partial.length > partial.size {
            return Ok(Err(format!("{} sent more than the {} bytes that it named", wire.host(), partial.size)));
        }
        tell(partial.length, partial.size);
    }
    if partial.length < partial.size {
        let why = format!("{} ended after {} of {} bytes", wire.host(), partial.length, partial.size);
        return if whole { Ok(Err(why)) } else { Err(again(why)) };
    }
    Ok(Ok(()))
}

/// The first byte of `bytes 5-9/10`.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

/// The beginning of a file, digested as far as it goes.
struct Partial {
    path: PathBuf,
    file: File,
    length: u64,
    size: u64,
    kind: Kind,
    digest: Option<Context>,
}

/// What an etag is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// Of the bytes.
    Sha256,
    /// Of Git's blob.
    Git,
    /// No digest that can be compared.
    Unknown,
}

impl Kind {
    pub(super) fn of(etag: &str) -> Self {
        match (etag.len(), etag.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            (64, true) => Self::Sha256,
            (40, true) => Self::Git,
            _ => Self::Unknown,
        }
    }

    fn start(self, size: u64) -> Option<Context> {
        match self {
            Self::Sha256 => Some(Context::new(&SHA256)),
            Self::Git => {
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {size}\0").as_bytes());
                Some(context)
            }
            Self::Unknown => None,
        }
    }
}

impl Partial {
    /// What an earlier try left, or nothing yet. Only under the blob's lock.
    fn open(path: PathBuf, known: &Known) -> Result<Self, HubError> {
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(HubError::io(&path))?;
        let kind = Kind::of(&known.etag);
        let mut partial = Self { path, file, length: 0, size: known.size, kind, digest: kind.start(known.size) };
        let mut piece = vec![0; 1 << 20];
        loop {
            match partial.file.read(&mut piece).map_err(HubError::io(&partial.path))? {
                0 => return Ok(partial),
                read => partial.count(&piece[..read]),
            }
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::io(&self.path))?;
        self.count(bytes);
        Ok(())
    }

    /// Throws away what is there.
    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::io(&self.path))?;
        (self.length, self.digest) = (0, self.kind.start(self.size));
        Ok(())
    }

    /// Whether the bytes have the digest that names them.
    fn verify(&self, known: &Known) -> Result<(), String> {
        let Some(digest) = self.digest.clone() else { return Ok(()) };
        let found: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if found.eq_ignore_ascii_case(&known.etag) {
            return Ok(());
        }
        let name = if self.kind == Kind::Sha256 { "SHA-256" } else { "Git digest" };
        Err(format!("its {name} is {found} and not {}, as the server says", known.etag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digests of `hello\n` as sha256sum and git hash-object print them.
    #[test]
    fn digests_are_those_of_the_hub() {
        let dir = tempfile::tempdir().unwrap();
        for (etag, right) in [
            ("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", true),
            ("ce013625030ba8dba906f756967f9e9ca394464a", true),
            ("ce013625030ba8dba906f756967f9e9ca394464b", false),
            ("an-etag-of-another-kind", true),
        ] {
            let known = Known { etag: etag.to_owned(), size: 6 };
            let path = dir.path().join(etag);
            Partial::open(path.clone(), &known).unwrap().append(b"hel").unwrap();
            let mut partial = Partial::open(path, &known).unwrap();
            assert_eq!(partial.length, 3);
            partial.append(b"lo\n").unwrap();
            assert_eq!(partial.verify(&known).is_ok(), right, "{etag}");
            partial.restart().unwrap();
            partial.append(b"hello\n").unwrap();
            assert_eq!(partial.verify(&known).is_ok(), right, "{etag}");
            assert_eq!(std::fs::read(&partial.path).unwrap(), b"hello\n");
        }
    }

    #[test]
    fn the_start_of_a_range_is_read() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("5-9"), None);
    }
}
