//! All filesystem operations of the cache behind one trait, so that tests can run the production
//! code on a disk that fails or loses power.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    /// For reading. Fails on a symbolic link.
    Read,
    /// For reading and writing. Creates the file if it does not exist.
    ReadWrite,
    /// For reading and writing. Fails if the file exists.
    New,
}

/// A timestamp of the filesystem: seconds and nanoseconds.
pub(super) type Time = (i64, i64);

/// The attributes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) len: u64,
    pub(super) links: u64,
    /// Allocated size, in bytes.
    pub(super) allocated: u64,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
}

impl Stamp {
    pub(super) fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            len: meta.len(),
            links: meta.nlink(),
            allocated: meta.blocks().saturating_mul(512),
            atime: (meta.atime(), meta.atime_nsec()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Returns the time of the last write or the last [`Disk::touch`].
    pub(super) fn last_use(&self) -> Time {
        self.atime.max(self.mtime)
    }
}

/// The size of a filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskSpace {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// A filesystem. Implementations may inject faults, but return real file descriptors.
pub(super) trait Disk: std::fmt::Debug + Send + Sync {
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match how {
            Open::Read => {}
            Open::ReadWrite => {
                options.write(true).create(true).truncate(false);
            }
            Open::New => {
                options.write(true).create_new(true);
            }
        }
        // Access times record the last use, so reads alone, e.g. of a scan, must not change them.
        let flags = |flags: OFlags| flags.bits().cast_signed();
        options.custom_flags(flags(OFlags::NOFOLLOW | OFlags::NOATIME));
        match options.open(path) {
            // Only the owner of a file may use `O_NOATIME`; retry without it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                options.custom_flags(flags(OFlags::NOFOLLOW)).open(path)
            }
            opened => opened,
        }
    }

    /// Fills all of `buf`. Fails if the file ends first.
    fn read(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buf, offset)
    }

    /// Writes all of `bytes`.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Deallocates the blocks of a range.
    fn punch(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, how, range.start, len)?)
    }

    /// Makes the file's bytes and length durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Creates a hard link. Fails if `to` exists.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    /// Renames a file. Fails if `to` exists.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    /// Renames a file atomically, replacing `to` if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Creates a directory and its parents, accessible to the owner alone. Succeeds if it exists.
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn stamp(&self, file: &File) -> io::Result<Stamp> {
        file.metadata().map(|meta| Stamp::of(&meta))
    }

    fn stamp_at(&self, path: &Path) -> io::Result<Stamp> {
        fs::symlink_metadata(path).map(|meta| Stamp::of(&meta))
    }

    /// Sets the access time to now. Leaves the modification time unchanged.
    fn touch(&self, path: &Path) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let leave = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: now, last_modification: leave };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(DiskSpace {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// The real filesystem.
#[derive(Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {}
