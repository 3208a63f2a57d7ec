//! Every touch of the file system goes through [`Io`]: one place for error paths and one seam for injected faults.
//!
//! A test hands the store a [`Faults`]; it is asked before each operation and may let it pass, fail it, or tear a write.
//! A crash is modelled by failing every operation after the k-th.

use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::time::{ClockId, clock_gettime};

use crate::{Digest, StoreError};

type Result<T> = std::result::Result<T, StoreError>;

/// NFS_SUPER_MAGIC, statfs(2).
const NFS: i64 = 0x6969;

/// An operation on the file system, as a [`Faults`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads content.
    Read,
    /// Reads all of a file's content to hash it.
    Hash,
    /// Asks for metadata.
    Stat,
    /// Lists a directory.
    List,
    /// Makes a directory.
    MakeDir,
    /// Creates or opens a file.
    Open,
    /// Writes this many bytes.
    Write(usize),
    /// Renames.
    Rename,
    /// Makes a hard link.
    Link,
    /// Copies a file, by reflink or byte by byte.
    Copy,
    /// Removes a file or a directory.
    Remove,
    /// Changes permissions.
    Mode,
    /// Flushes to the device.
    Sync,
    /// Takes a lock.
    Lock,
    /// Sets a file's times to now.
    Touch,
}

/// What a [`Faults`] decides about an operation.
#[derive(Debug)]
pub enum Verdict {
    /// It happens.
    Pass,
    /// A write stops after this many bytes and fails; any other operation just fails.
    Tear(usize),
    /// It fails without effect.
    Fail(io::Error),
}

/// Injects faults.
pub trait Faults: Send + Sync {
    /// Asked before each operation.
    fn before(&self, op: Op, path: &Path) -> Verdict;

    /// The clock of the file server, in nanoseconds since 1970: what a touched file's mtime becomes. `None` leaves it to the
    /// file system.
    fn server_ns(&self) -> Option<i64> {
        None
    }
}

/// What kind of thing a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    File,
    Dir,
    Link,
    Other,
}

/// The metadata that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStat {
    pub(crate) kind: FileKind,
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    pub(crate) links: u64,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
}

pub(crate) fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

impl From<Metadata> for FileStat {
    fn from(meta: Metadata) -> Self {
        let ty = meta.file_type();
        let kind = match (ty.is_file(), ty.is_dir(), ty.is_symlink()) {
            (true, _, _) => FileKind::File,
            (_, true, _) => FileKind::Dir,
            (_, _, true) => FileKind::Link,
            _ => FileKind::Other,
        };
        Self {
            kind,
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            links: meta.nlink(),
            mode: meta.mode() & 0o7777,
            mtime_ns: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The file system, with a seam for faults.
#[derive(Clone, Default)]
pub(crate) struct Io {
    /// Whether anything is flushed to the device at all.
    flush: bool,
    /// Whether other hosts may replace files under this one's hands.
    network: bool,
    pub(crate) faults: Option<Arc<dyn Faults>>,
}

/// A whole file: mapped, or read where a map is not safe.
pub(crate) enum Content {
    Mapped(memmap2::Mmap),
    Read(Vec<u8>),
}

impl std::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}

fn content_of(mut file: File, size: u64, network: bool) -> io::Result<Content> {
    // Nothing can be mapped of an empty file.
    if network || size == 0 {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        return Ok(Content::Read(bytes));
    }
    #[allow(unsafe_code, reason = "the store replaces such files by rename and never writes to one that is there")]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Content::Mapped(map))
}

fn torn() -> io::Error {
    io::Error::other("injected fault")
}

impl Io {
    pub(crate) fn new(flush: bool, faults: Option<Arc<dyn Faults>>) -> Self {
        Self { flush, network: false, faults }
    }

    /// The same on a file system that other hosts write to: every write is flushed at once, since they see it no earlier, and
    /// nothing is mapped.
    pub(crate) fn on_network(self) -> Self {
        Self { network: true, ..self }
    }

    fn verdict(&self, op: Op, path: &Path) -> Verdict {
        self.faults.as_ref().map_or(Verdict::Pass, |faults| faults.before(op, path))
    }

    /// Runs `body` as operation `op` called `name` on `path`.
    pub(crate) fn act<T>(
        &self,
        op: Op,
        name: &'static str,
        path: &Path,
        body: impl FnOnce() -> io::Result<T>,
    ) -> Result<T> {
        let result = match self.verdict(op, path) {
            Verdict::Pass => body(),
            Verdict::Tear(_) => Err(torn()),
            Verdict::Fail(error) => Err(error),
        };
        result.map_err(|error| StoreError::io(name, path, error))
    }

    /// Wall-clock time in nanoseconds since 1970: orders records, never decides a result.
    pub(crate) fn now_ns(&self) -> i64 {
        let t = clock_gettime(ClockId::Realtime);
        t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec)
    }

    /// Metadata of `path` itself; `None` when there is nothing.
    pub(crate) fn stat(&self, path: &Path) -> Result<Option<FileStat>> {
        absent_is_none(self.act(Op::Stat, "examine", path, || fs::symlink_metadata(path).map(FileStat::from)))
    }

    /// Metadata of what `path` leads to, links followed.
    pub(crate) fn stat_target(&self, path: &Path) -> Result<FileStat> {
        self.act(Op::Stat, "examine", path, || fs::metadata(path).map(FileStat::from))
    }

    /// Metadata of an open file.
    pub(crate) fn stat_open(&self, file: &File, path: &Path) -> Result<FileStat> {
        self.act(Op::Stat, "examine", path, || file.metadata().map(FileStat::from))
    }

    /// The names in a directory, sorted; none when there is no directory.
    pub(crate) fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let listed = self.act(Op::List, "list", path, || {
            fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()
        });
        let mut paths = absent_is_none(listed)?.unwrap_or_default();
        paths.sort();
        Ok(paths)
    }

    /// The whole content; `None` when there is no such file.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        absent_is_none(self.act(Op::Read, "read", path, || fs::read(path)))
    }

    /// The content from `offset` on; `None` when there is no such file.
    pub(crate) fn read_from(&self, path: &Path, offset: u64) -> Result<Option<Vec<u8>>> {
        absent_is_none(self.act(Op::Read, "read", path, || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }))
    }

    /// The whole content, mapped where that is safe, and the metadata of just that file; `None` when there is none. Only for
    /// files that are never written to once they have their name.
    pub(crate) fn content(&self, path: &Path) -> Result<Option<(Content, FileStat)>> {
        absent_is_none(self.act(Op::Read, "read", path, || {
            let file = File::open(path)?;
            let stat = FileStat::from(file.metadata()?);
            Ok((content_of(file, stat.size, self.network)?, stat))
        }))
    }

    /// Exactly `len` bytes at `offset` of an open file.
    pub(crate) fn read_at(&self, file: &File, path: &Path, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.act(Op::Read, "read", path, || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        })
    }

    /// The digest of a file's content; large files are mapped and hashed by all cores.
    pub(crate) fn hash(&self, path: &Path) -> Result<Digest> {
        self.act(Op::Hash, "hash", path, || {
            let mut hasher = blake3::Hasher::new();
            hasher.update_mmap_rayon(path)?;
            Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
        })
    }

    pub(crate) fn open(&self, path: &Path) -> Result<File> {
        self.act(Op::Open, "open", path, || File::open(path))
    }

    /// Creates a file that must not exist yet, for appending.
    pub(crate) fn create_append(&self, path: &Path) -> Result<File> {
        self.act(Op::Open, "create", path, || OpenOptions::new().append(true).create_new(true).open(path))
    }

    /// Opens a lock file, creating it when it is not there.
    pub(crate) fn open_lock(&self, path: &Path) -> Result<File> {
        self.act(Op::Open, "create", path, || {
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        })
    }

    /// Appends all of `bytes` with one system call where the kernel takes them in one.
    pub(crate) fn append(&self, mut file: &File, path: &Path, bytes: &[u8]) -> Result<()> {
        let result = match self.verdict(Op::Write(bytes.len()), path) {
            Verdict::Pass if self.network => file.write_all(bytes).and_then(|()| file.sync_data()),
            Verdict::Pass => file.write_all(bytes),
            Verdict::Tear(at) => file.write_all(&bytes[..at.min(bytes.len())]).and_then(|()| Err(torn())),
            Verdict::Fail(error) => Err(error),
        };
        result.map_err(|error| StoreError::io("write", path, error))
    }

    /// Writes a file that must not exist yet.
    pub(crate) fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.create_append(path)?;
        self.append(&file, path, bytes)
    }

    pub(crate) fn make_dirs(&self, path: &Path) -> Result<()> {
        // Nearly always it is there, and asking does not lock the folder above, as trying to make it would.
        self.act(
            Op::MakeDir,
            "create directory",
            path,
            || if path.is_dir() { Ok(()) } else { fs::create_dir_all(path) },
        )
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.act(Op::Rename, "rename to", to, || fs::rename(from, to))
    }

    pub(crate) fn hard_link(&self, from: &Path, to: &Path) -> Result<()> {
        self.act(Op::Link, "link", to, || fs::hard_link(from, to))
    }

    /// Copies by sharing blocks; fails where the file system cannot.
    pub(crate) fn reflink(&self, from: &Path, to: &Path) -> Result<()> {
        self.act(Op::Copy, "reflink", to, || reflink_copy::reflink(from, to))
    }

    /// Copies the bytes into a new file with default permissions.
    pub(crate) fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        self.act(Op::Copy, "copy to", to, || {
            let mut source = File::open(from)?;
            let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
            io::copy(&mut source, &mut target).map(|_| ())
        })
    }

    pub(crate) fn set_mode(&self, path: &Path, mode: u32) -> Result<()> {
        self.act(Op::Mode, "change permissions of", path, || fs::set_permissions(path, Permissions::from_mode(mode)))
    }

    /// Removes a file; one that is gone already is fine.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<()> {
        absent_is_none(self.act(Op::Remove, "remove", path, || fs::remove_file(path))).map(|_| ())
    }

    /// Removes an empty directory; one that is gone already is fine.
    pub(crate) fn remove_dir(&self, path: &Path) -> Result<()> {
        absent_is_none(self.act(Op::Remove, "remove", path, || fs::remove_dir(path))).map(|_| ())
    }

    /// Removes a directory and all below it, read-only directories included, never following links.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<()> {
        match self.stat(path)? {
            None => Ok(()),
            Some(stat) if stat.kind == FileKind::Dir => {
                self.set_mode(path, 0o755)?;
                for child in self.list(path)? {
                    self.remove_tree(&child)?;
                }
                self.remove_dir(path)
            }
            Some(_) => self.remove_file(path),
        }
    }

    /// Flushes a file or a directory to the device, where the store flushes at all.
    pub(crate) fn sync(&self, path: &Path) -> Result<()> {
        self.act(Op::Sync, "sync", path, || if self.flush { File::open(path)?.sync_all() } else { Ok(()) })
    }

    /// Sets an open file's times to the file server's now.
    pub(crate) fn touch(&self, file: &File, path: &Path) -> Result<()> {
        let given = self.faults.as_ref().and_then(|faults| faults.server_ns());
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let time = given.map_or(now, |ns| rustix::fs::Timespec {
            tv_sec: ns.div_euclid(1_000_000_000),
            tv_nsec: ns.rem_euclid(1_000_000_000),
        });
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        self.act(Op::Touch, "touch", path, || Ok(rustix::fs::futimens(file, &times)?))
    }

    /// Flushes a file before others may see it, where they would see it without its content.
    pub(crate) fn sync_network(&self, path: &Path) -> Result<()> {
        if self.network { self.sync_always(path) } else { Ok(()) }
    }

    /// How long a file is; what other hosts appended a moment ago counts.
    pub(crate) fn size(&self, path: &Path) -> Result<u64> {
        if self.network {
            let stat = self.open(path).and_then(|file| self.stat_open(&file, path));
            return Ok(absent_is_none(stat)?.map_or(0, |stat| stat.size));
        }
        Ok(self.stat(path)?.map_or(0, |stat| stat.size))
    }

    /// Whether `path` lies on a network file system.
    pub(crate) fn is_remote(&self, path: &Path) -> Result<bool> {
        self.act(Op::Stat, "examine", path, || Ok(rustix::fs::statfs(path)?.f_type == NFS))
    }

    /// Flushes a file or a directory to the device even where the store does not flush.
    pub(crate) fn sync_always(&self, path: &Path) -> Result<()> {
        self.act(Op::Sync, "sync", path, || File::open(path)?.sync_all())
    }

    /// Tries to take an exclusive lock; `false` when another holder has it.
    pub(crate) fn try_lock(&self, file: &File, path: &Path) -> Result<bool> {
        self.act(Op::Lock, "lock", path, || match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        })
    }

    /// Tries to lock one byte for this open file; `false` when another open file has it.
    pub(crate) fn try_lock_byte(&self, file: &File, path: &Path, at: u64) -> Result<bool> {
        self.act(Op::Lock, "lock", path, || match set_byte(file, at, libc::F_WRLCK) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        })
    }

    /// Lets go of one byte.
    pub(crate) fn unlock_byte(&self, file: &File, path: &Path, at: u64) -> Result<()> {
        self.act(Op::Lock, "unlock", path, || Ok(set_byte(file, at, libc::F_UNLCK)?))
    }

    /// Takes a shared lock, waiting for it.
    pub(crate) fn lock_shared(&self, file: &File, path: &Path) -> Result<()> {
        self.act(Op::Lock, "lock", path, || file.lock_shared())
    }

    pub(crate) fn unlock(&self, file: &File, path: &Path) -> Result<()> {
        self.act(Op::Lock, "unlock", path, || file.unlock())
    }
}

/// Sets the lock of one byte for an open file description (`F_OFD_SETLK`, fcntl(2)).
fn set_byte(file: &File, at: u64, kind: i32) -> nix::Result<()> {
    let range = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: at.cast_signed(),
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(|_| ())
}

pub(crate) fn absent_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
