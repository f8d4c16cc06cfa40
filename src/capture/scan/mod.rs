//! Looks at everything in an upper directory: names and what `stat` tells, and for what is new also
//! attributes and links' targets. Nothing that is found is opened but directories.
//!
//! Directories are opened from the root by their paths, no link on the way allowed, so a scan holds a
//! handful of descriptors whatever the tree looks like. A second scan takes over from the first what
//! by its times has not changed, and then costs one `statx` an object.

mod dir;
mod pool;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use inlay_store::format::InodeIdx;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::error::CaptureError;
use super::layer::Extra;
use super::paths::{PathId, Paths};
use super::stat::{Moment, Stat};
pub(super) use pool::{Scanner, Strictness};

/// The number of a directory in its scan. The root's is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct DirIdx(pub(super) u32);

impl DirIdx {
    pub(super) const ROOT: Self = Self(0);
    /// Of what is no directory, or was not gone into.
    pub(super) const NONE: Self = Self(u32::MAX);
}

/// An object of an upper directory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    name: Range<u32>,
    pub(super) stat: Stat,
    /// What it has besides; nothing if `known` says where that is found.
    pub(super) extra: Option<Arc<Extra>>,
    /// The inode of the last snapshot that it still is.
    pub(super) known: Option<InodeIdx>,
    /// What is in it.
    pub(super) dir: DirIdx,
}

impl Entry {
    /// Whether it stands for something that was deleted.
    pub(super) fn is_whiteout(&self) -> bool {
        self.stat.is_whiteout() || self.extra.as_ref().is_some_and(|extra| extra.whiteout)
    }
}

/// A directory of an upper directory.
#[derive(Debug)]
pub(super) struct DirScan {
    pub(super) path: PathId,
    pub(super) stat: Stat,
    names: Box<[u8]>,
    /// Sorted by name.
    pub(super) entries: Box<[Entry]>,
    /// Whether the names are those that it has as long as its times stay.
    settled: bool,
}

impl DirScan {
    /// The name of one of its entries.
    pub(super) fn name(&self, entry: &Entry) -> &[u8] {
        self.names.get(entry.name.start as usize..entry.name.end as usize).unwrap_or(&[])
    }

    fn find(&self, name: &[u8]) -> Option<&Entry> {
        let place = self.entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        self.entries.get(place)
    }
}

/// An upper directory, or a directory in one, by its descriptor.
#[derive(Debug)]
pub(super) struct UpperDir {
    fd: OwnedFd,
}

/// Paths are opened in pieces of no more bytes than this.
const PIECE_MAX: usize = 3800;

impl UpperDir {
    /// Takes `fd`, opened without following a link.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens the directory at `path` of this host; the last name may not be a link.
    pub(super) fn open(path: &std::path::Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: open(path, flags, Mode::empty())? })
    }

    /// Its descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens the directory `path` in it for reading, through no link whatever.
    pub(super) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
        let mut from: Option<OwnedFd> = None;
        let mut rest = path;
        loop {
            let dir = from.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            if rest.len() <= PIECE_MAX {
                return open_below(dir, if rest.is_empty() { b"." } else { rest }, read);
            }
            let cut = rest
                .get(..PIECE_MAX)
                .and_then(|piece| piece.iter().rposition(|byte| *byte == b'/'))
                .unwrap_or(PIECE_MAX);
            let (piece, after) = rest.split_at(cut);
            let pass = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let next = open_below(dir, piece, pass)?;
            from = Some(next);
            rest = after.strip_prefix(b"/").unwrap_or(after);
        }
    }
}

fn open_below(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(dir, path, flags, Mode::empty(), resolve)
}

/// All that was found in an upper directory.
#[derive(Debug)]
pub(super) struct Scan {
    /// By their numbers; none for one that was gone when it was to be looked at.
    pub(super) dirs: Vec<Option<DirScan>>,
    pub(super) paths: Paths,
    /// When it began.
    pub(super) begun: Moment,
}

impl Scan {
    /// A directory of it.
    pub(super) fn dir(&self, dir: DirIdx) -> Option<&DirScan> {
        self.dirs.get(dir.0 as usize)?.as_ref()
    }

    /// Opens a directory of it.
    pub(super) fn open_dir(&self, root: &UpperDir, dir: &DirScan) -> Result<OwnedFd, Errno> {
        let mut path = Vec::new();
        self.paths.compose(dir.path, &mut path);
        root.open_dir(&path)
    }
}

/// An error at `path` inside what is captured.
fn read_error(path: std::path::PathBuf, what: &'static str, error: Errno) -> CaptureError {
    CaptureError::Read { path, what, source: error.into() }
}
