//! What the cache asks of the file system, in one place: so that tests can put a disk that fails, or
//! one that loses power, below the very code that runs on a real one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    /// To be read. A symbolic link is an error.
    Read,
    /// To be read and written; made if it is not there.
    ReadWrite,
    /// To be read and written; an error if it is there.
    New,
}

/// Points in time as the file system tells them: seconds and nanoseconds.
pub(super) type Time = (i64, i64);

/// What the file system tells of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) len: u64,
    pub(super) links: u64,
    /// Bytes of the blocks that it has.
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

    /// When it was last written, or marked as used.
    pub(super) fn last_use(&self) -> Time {
        self.atime.max(self.mtime)
    }
}

/// How large a file system is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// A file system. What it gives are files of the system, whatever stands between.
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
        // Times of access tell what was used last, so reading alone, as a scan does, leaves them.
        let flags = |flags: OFlags| flags.bits().cast_signed();
        options.custom_flags(flags(OFlags::NOFOLLOW | OFlags::NOATIME));
        match options.open(path) {
            // Only a file's owner may ask for that.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                options.custom_flags(flags(OFlags::NOFOLLOW)).open(path)
            }
            opened => opened,
        }
    }

    /// Fills all of `buf`; a file that ends before is an error.
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

    /// Gives the blocks of a range back.
    fn punch(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, how, range.start, len)?)
    }

    /// Returns when the file's bytes and length outlive a power loss.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Returns when the names in a directory outlive a power loss.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Gives a file a second name; never replaces one.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    /// Gives a file another name; never replaces one.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
    }

    /// Gives a file another name, in place of whatever had it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    /// Makes a directory for the owner alone, and those above; one that is there is fine.
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn stamp(&self, file: &File) -> io::Result<Stamp> {
        file.metadata().map(|meta| Stamp::of(&meta))
    }

    fn stamp_at(&self, path: &Path) -> io::Result<Stamp> {
        fs::symlink_metadata(path).map(|meta| Stamp::of(&meta))
    }

    /// Marks a file as used now. Leaves the time of its last change alone.
    fn touch(&self, path: &Path) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let leave = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: now, last_modification: leave };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// The system's own.
#[derive(Debug)]
pub(super) struct SystemDisk;

impl Disk for SystemDisk {}
