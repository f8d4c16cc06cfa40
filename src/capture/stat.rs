//! What the file system says of an object of an upper directory, and what of it tells that it changed.

use std::os::fd::AsFd;

use inlay_store::format::{Device, FileKind, Timestamp};
use rustix::fs::{AtFlags, Statx, StatxFlags, statx};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::time::{ClockId, clock_gettime};

/// What `statx` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) mode: u16,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) blocks: u64,
    pub(super) stamp: Stamp,
    pub(super) rdev: Device,
    pub(super) id: InodeId,
}

/// Tells inodes of this machine apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct InodeId {
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
}

/// What is another after any change to a file, given that its time of change is not too new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

impl Stat {
    /// Of `name` in `dir`, whatever it is; no link is followed. With an empty name, of `dir` itself.
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
            blocks: raw.stx_blocks,
            stamp: Stamp {
                size: raw.stx_size,
                mtime: time(raw.stx_mtime),
                ctime: time(raw.stx_ctime),
            },
            rdev: Device { major: raw.stx_rdev_major, minor: raw.stx_rdev_minor },
            id: InodeId { device: (raw.stx_dev_major, raw.stx_dev_minor), inode: raw.stx_ino },
        }
    }

    /// What it is; none for a type that Linux does not have.
    pub(super) fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.mode.into())
    }

    pub(super) fn is_dir(&self) -> bool {
        self.kind() == Some(FileKind::Directory)
    }

    pub(super) fn perm(&self) -> u16 {
        self.mode & 0o7777
    }

    /// What overlayfs puts where something of the layer below was deleted.
    pub(super) fn is_whiteout(&self) -> bool {
        self.kind() == Some(FileKind::CharDevice) && self.rdev == Device::default()
    }

    /// Whether it has fewer blocks than its size needs.
    pub(super) fn may_have_holes(&self) -> bool {
        self.blocks.saturating_mul(512) < self.stamp.size
    }
}

/// A moment by the clock that times of change are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(Timestamp);

/// Some file systems round times of change to the clock's ticks. What changed less than this before it
/// was looked at may change again without another time. In nanoseconds.
const MARGIN: u32 = 40_000_000;

impl Moment {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self(Timestamp { secs: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or(0) })
    }

    /// Whether what was looked at now, and has changed at `ctime`, would get another time of change
    /// with every further change.
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
