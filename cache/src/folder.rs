//! Open folders: what lies in one is listed, examined and removed without walking its whole path each time, which is half of
//! what those cost where there are millions.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::StoreError;
use crate::io::{FileKind, FileStat, Io, Op, absent_is_none, nanoseconds};

type Result<T> = std::result::Result<T, StoreError>;

/// An open directory.
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl From<rustix::fs::Stat> for FileStat {
    fn from(stat: rustix::fs::Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Dir,
            FileType::Symlink => FileKind::Link,
            _ => FileKind::Other,
        };
        Self {
            kind,
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            links: stat.st_nlink,
            mode: stat.st_mode & 0o7777,
            mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
        }
    }
}

impl Io {
    /// Opens a directory; `None` when there is no directory.
    pub(crate) fn open_folder(&self, path: &Path) -> Result<Option<Folder>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = self.act(Op::Open, "open", path, || match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOTDIR) => Ok(None),
            opened => Ok(Some(Folder { fd: opened?, path: path.to_owned() })),
        });
        absent_is_none(opened).map(Option::flatten)
    }

    /// The names in an open directory, in the order of their inodes.
    pub(crate) fn names_by_inode(&self, folder: &Folder) -> Result<Vec<OsString>> {
        self.act(Op::List, "list", &folder.path, || {
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::read_from(&folder.fd)? {
                let entry = entry?;
                names.push((entry.ino(), OsString::from_vec(entry.file_name().to_bytes().to_owned())));
            }
            names.sort_unstable();
            Ok(names.into_iter().map(|(_, name)| name).collect())
        })
    }

    /// Metadata of what lies under `name` in an open directory; `None` when there is nothing.
    pub(crate) fn stat_in(&self, folder: &Folder, name: &OsStr) -> Result<Option<FileStat>> {
        let stat = || Ok(FileStat::from(rustix::fs::statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)?));
        // Of millions, only those that a fault may strike or that fail need their path spelled.
        match self.faults.is_none().then(stat) {
            Some(Ok(stat)) => Ok(Some(stat)),
            _ => absent_is_none(self.act(Op::Stat, "examine", &folder.path.join(name), stat)),
        }
    }

    /// Removes a file in an open directory; one that is gone already is fine.
    pub(crate) fn remove_in(&self, folder: &Folder, name: &str) -> Result<()> {
        let remove = || Ok(rustix::fs::unlinkat(&folder.fd, name, AtFlags::empty())?);
        absent_is_none(self.act(Op::Remove, "remove", &folder.path.join(name), remove)).map(|_| ())
    }
}
