//! The metadata of objects in an upper directory, and how it reveals changes.

use std::os::fd::AsFd;

use inlay_store::format::{Device, FileKind, Timestamp};
use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::time::{ClockId, clock_gettime};

/// The result of `statx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) stamp: Stamp,
    pub(super) rdev: Device,
    pub(super) id: InodeId,
}

/// Identifies an inode on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeId {
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
}

/// Changes with any modification of a file, provided that its ctime is not too recent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

impl Stat {
    /// Queries `name` in `dir`, without following a symlink. An empty name means `dir` itself.
    pub(super) fn of(dir: impl AsFd, name: impl Arg) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        Ok(Self::from_raw(&statx(dir, name, flags, StatxFlags::BASIC_STATS)?))
    }

    fn from_raw(raw: &Statx) -> Self {
        let time =
            |time: rustix::fs::StatxTimestamp| Timestamp { secs: time.tv_sec, nanos: time.tv_nsec };
        Self {
            mode: raw.stx_mode,
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            stamp: Stamp {
                size: raw.stx_size,
                mtime: time(raw.stx_mtime),
                ctime: time(raw.stx_ctime),
            },
            rdev: Device { major: raw.stx_rdev_major, minor: raw.stx_rdev_minor },
            id: InodeId { device: (raw.stx_dev_major, raw.stx_dev_minor), inode: raw.stx_ino },
        }
    }

    /// Returns its kind; `None` for a type unknown to Linux.
    pub(super) fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.mode.into())
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == Some(FileKind::Directory)
    }

    pub(super) fn perm(&self) -> u16 {
        self.mode & 0o7777
    }

    /// Reports whether it is overlayfs's marker of a deleted object (a 0/0 character device).
    pub(super) fn is_whiteout(&self) -> bool {
        self.kind() == Some(FileKind::CharDevice) && self.rdev == Device::default()
    }
}

/// A time of the clock that the kernel uses for ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(Timestamp);

/// The granularity of ctime, generously, in nanoseconds. Some filesystems round it to clock ticks,
/// so an object that changed less than this before it was examined may change again with the same
/// ctime.
const MARGIN: u32 = 40_000_000;

impl Moment {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self(Timestamp { secs: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or(0) })
    }

    /// Reports whether any change after this moment gives an object with this `ctime` a different
    /// one.
    pub(super) fn settled(self, ctime: Timestamp) -> bool {
        let Timestamp { mut secs, mut nanos } = ctime;
        nanos += MARGIN;
        if nanos >= 1_000_000_000 {
            nanos -= 1_000_000_000;
            secs = secs.saturating_add(1);
        }
        Timestamp { secs, nanos } < self.0
    }
}
