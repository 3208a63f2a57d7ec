//! Manifests: what a tree artifact is made of. A tree's digest is the BLAKE3 of its manifest's bytes.
//!
//! Text, one line a file, sorted by the bytes of the path: digest, space, size in bytes, space, relative path with `/`. The
//! first line names the format. Only regular files count: permissions, times and empty directories are not content.
//!
//! | refused in a path | why |
//! |---|---|
//! | empty, `.` and `..` components, a leading `/` | would leave the tree |
//! | a file that is also a directory of another file | could not be created |
//! | control characters | would break lines, and terminals |
//! | a component over 255 bytes, a path over 4,096 | could not be created |
//! | bytes that are not UTF-8 | could not be written down |
//!
//! A manifest that is read must be exactly what [`Manifest::encode`] writes, so that one tree has one digest. A backslash is a
//! letter like any other.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::io::{FileKind, FileStat, Io};
use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

const HEAD: &str = "mpcc-tree 1";
/// Deeper than any data set; stops runaway directory structures.
const MAX_DEPTH: usize = 64;

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeFile {
    /// Relative path with `/` between components.
    pub path: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub bytes: u64,
}

/// The files of a tree, sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    files: Vec<TreeFile>,
}

/// Why a relative path cannot be part of a tree; `None` when it can.
fn refusal(path: &str) -> Option<&'static str> {
    if path.len() > 4096 || path.split('/').any(|part| part.len() > 255) {
        return Some("its name is too long");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Some("a component of its path is empty, `.` or `..`");
    }
    path.chars().any(char::is_control).then_some("its name holds control characters; rename it")
}

impl Manifest {
    /// A manifest of these files, sorted here. Paths must be unique and valid.
    pub(crate) fn new(mut files: Vec<TreeFile>) -> Self {
        files.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        Self { files }
    }

    /// The files, sorted by path.
    pub fn files(&self) -> &[TreeFile] {
        &self.files
    }

    /// Sum of the sizes in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEAD}\n");
        for file in &self.files {
            writeln!(text, "{} {} {}", file.digest, file.bytes, file.path).expect("writing to a string");
        }
        text.into_bytes()
    }

    /// Reads canonical bytes back; anything else is refused with the reason.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let body = text.strip_prefix(HEAD).and_then(|rest| rest.strip_prefix('\n'));
        let body = body.ok_or_else(|| format!("it does not begin with `{HEAD}`"))?;
        let files = body.lines().map(decode_line).collect::<std::result::Result<Vec<_>, _>>()?;
        if let Some(pair) = files.windows(2).find(|pair| pair[0].path.as_bytes() >= pair[1].path.as_bytes()) {
            return Err(format!("`{}` is out of order", pair[1].path));
        }
        if let Some(path) = file_above(&files) {
            return Err(format!("`{path}` is a file and a directory"));
        }
        if files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes)).is_none() {
            return Err("its files are larger than any disk".to_owned());
        }
        let manifest = Self { files };
        if manifest.encode() == bytes { Ok(manifest) } else { Err("it is not written the one way there is".to_owned()) }
    }
}

/// A file below which others would lie. `files` are sorted.
fn file_above(files: &[TreeFile]) -> Option<&str> {
    let is_file = |path: &str| files.binary_search_by(|file| file.path.as_bytes().cmp(path.as_bytes())).is_ok();
    let above =
        |path| std::iter::successors(Some(path), |path: &&str| path.rsplit_once('/').map(|(dir, _)| dir)).skip(1);
    files.iter().flat_map(|file| above(file.path.as_str())).find(|dir| is_file(dir))
}

fn decode_line(line: &str) -> std::result::Result<TreeFile, String> {
    let mut parts = line.splitn(3, ' ');
    let fields = (parts.next(), parts.next(), parts.next());
    let (Some(digest), Some(bytes), Some(path)) = fields else { return Err(format!("`{line}` is no file line")) };
    if let Some(why) = refusal(path) {
        return Err(format!("`{path}`: {why}"));
    }
    Ok(TreeFile {
        path: path.to_owned(),
        digest: digest.parse().map_err(|error: crate::digest::InvalidDigest| error.to_string())?,
        bytes: bytes.parse().map_err(|_| format!("`{bytes}` is no size"))?,
    })
}

/// Whether a walk takes links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Refused: an output must not depend on what lies elsewhere.
    Refuse,
    /// Followed: external data, such as a model hub's cache, is often links.
    Follow,
}

/// A regular file found by [`walk`].
pub(crate) struct Found {
    pub(crate) relative: String,
    pub(crate) path: PathBuf,
    pub(crate) stat: FileStat,
}

/// All regular files below `root`, sorted by relative path.
pub(crate) fn walk(io: &Io, root: &Path, links: Links) -> Result<Vec<Found>> {
    Ok(walk_folders(io, root, links)?.0)
}

/// Folders as they were before they were listed.
pub(crate) type Folders = Vec<(PathBuf, FileStat)>;

/// [`walk`], and every folder that was entered.
pub(crate) fn walk_folders(io: &Io, root: &Path, links: Links) -> Result<(Vec<Found>, Folders)> {
    let mut walk = Walk { io, links, above: Vec::new(), found: Vec::new(), folders: Vec::new() };
    walk.dir(root, "")?;
    walk.found.sort_by(|a, b| a.relative.as_bytes().cmp(b.relative.as_bytes()));
    Ok((walk.found, walk.folders))
}

struct Walk<'a> {
    io: &'a Io,
    links: Links,
    above: Vec<(u64, u64)>,
    found: Vec<Found>,
    folders: Folders,
}

impl Walk<'_> {
    fn dir(&mut self, dir: &Path, relative: &str) -> Result<()> {
        let stat = self.io.stat_target(dir)?;
        if self.above.contains(&(stat.dev, stat.ino)) {
            return Err(StoreError::refused(dir, "it is a link to a directory above itself"));
        }
        if self.above.len() >= MAX_DEPTH {
            return Err(StoreError::refused(dir, "it lies more than 64 directories deep"));
        }
        self.above.push((stat.dev, stat.ino));
        self.folders.push((dir.to_owned(), stat));
        for path in self.io.list(dir)? {
            self.child(path, relative)?;
        }
        self.above.pop();
        Ok(())
    }

    fn child(&mut self, path: PathBuf, parent: &str) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| StoreError::refused(&path, "its name is not UTF-8; rename it"))?;
        let relative = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        if let Some(why) = refusal(&relative) {
            return Err(StoreError::refused(&path, why));
        }
        let stat = self.stat(&path)?;
        match stat.kind {
            FileKind::File => self.found.push(Found { relative, path, stat }),
            FileKind::Dir => self.dir(&path, &relative)?,
            FileKind::Link => return Err(StoreError::refused(&path, "it is a link; write a regular file")),
            FileKind::Other => return Err(StoreError::refused(&path, "it is neither a file nor a directory")),
        }
        Ok(())
    }

    fn stat(&self, path: &Path) -> Result<FileStat> {
        match self.links {
            Links::Follow => self.io.stat_target(path),
            Links::Refuse => {
                let gone = || StoreError::io("examine", path, std::io::ErrorKind::NotFound.into());
                self.io.stat(path)?.ok_or_else(gone)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> TreeFile {
        TreeFile { path: path.to_owned(), digest: Digest::of(path.as_bytes()), bytes: path.len() as u64 }
    }

    #[test]
    fn encoding_does_not_depend_on_the_order_files_were_found_in() {
        let forth = Manifest::new(vec![file("a"), file("a b/c d"), file("z.png")]);
        let back = Manifest::new(vec![file("z.png"), file("a b/c d"), file("a")]);
        assert_eq!(forth.encode(), back.encode());
        assert_eq!(Manifest::decode(&forth.encode()).unwrap(), forth);
        assert_eq!(forth.bytes(), 1 + 7 + 5);
    }

    #[test]
    fn hostile_manifests_are_refused() {
        let line = |path: &str| format!("{HEAD}\n{} 1 {path}\n", Digest::of(b"x"));
        let cases = [
            line("/etc/passwd"),
            line("../x"),
            line("a/../../x"),
            line("a//b"),
            line("./a"),
            line("a/"),
            line(""),
            line("."),
            line("a/."),
            line("a\0b"),
            line("a\u{85}b"),
            line("a\r"),
            line("a").trim_end().to_owned(),
            line("a").replace(" 1 ", " +1 "),
            line("a").replace(" 1 ", " 01 "),
            line("a").replace(" 1 ", &format!(" {}0 ", u64::MAX)),
            line("a").replace(&Digest::of(b"x").hex(), &Digest::of(b"x").hex().to_uppercase()),
            format!("{}{}", line("a"), line("a/b").split_once('\n').unwrap().1),
            format!(
                "{}{}{}",
                line("a"),
                line("a.b").split_once('\n').unwrap().1,
                line("a/b").split_once('\n').unwrap().1
            ),
            format!("{}{}", line("a"), line("b").split_once('\n').unwrap().1)
                .replace(" 1 ", &format!(" {} ", u64::MAX)),
            line("\u{1b}[2J"),
            line(&"x".repeat(256)),
            line(&"x/".repeat(2100)),
            format!("{HEAD}\nnothing\n"),
            format!("{HEAD}\nabc 1 a\n"),
            format!("{HEAD}\n{} -1 a\n", Digest::of(b"x")),
            format!("{}{}", line("b"), line("a").split_once('\n').unwrap().1),
            format!("{}{}", line("a"), line("a").split_once('\n').unwrap().1),
            "mpcc-tree 2\n".to_owned(),
        ];
        for case in cases {
            assert!(Manifest::decode(case.as_bytes()).is_err(), "{case:?}");
        }
        assert!(Manifest::decode(&[line("a").as_bytes(), b"\xff"].concat()).is_err());
        for fine in ["a..b/...", "..\\..\\x", "C:\\x", "~root", "-rf", "$(x)", " "] {
            assert!(Manifest::decode(line(fine).as_bytes()).is_ok(), "{fine:?}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// Damage a sound manifest anywhere: it is refused, or it is another sound one, written the one way there is.
        #[test]
        fn what_is_read_is_safe_and_canonical(at: usize, byte: u8, insert: bool) {
            let mut bytes = Manifest::new(vec![file("a"), file("a b/c d"), file("a b/e/f"), file("z.png")]).encode();
            let at = at % bytes.len();
            if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
            if let Ok(manifest) = Manifest::decode(&bytes) {
                proptest::prop_assert_eq!(manifest.encode(), bytes);
                for file in manifest.files() {
                    let plain = |part| matches!(part, std::path::Component::Normal(_));
                    proptest::prop_assert!(Path::new(&file.path).components().all(plain), "{}", file.path);
                }
            }
        }
    }
}
