//! Scans an upper directory: names and `stat` metadata, and for new objects also attributes and
//! symlink targets. Opens nothing but directories.
//!
//! Each directory is opened by its path from the root, without following symlinks, so that a scan
//! needs only a handful of descriptors for any tree. A second scan reuses the data of objects with
//! unchanged timestamps and then costs one `statx` per object.

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
    /// Not a directory, or not scanned.
    pub(super) const NONE: Self = Self(u32::MAX);
}

/// An object of an upper directory.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub name: Range<u32>,
    pub(super) stat: Stat,
    /// Its properties beyond `stat`; `None` if it has none or `known` refers to them.
    pub(super) extra: Option<Arc<Extra>>,
    /// Its inode in the last snapshot, if it is unchanged since.
    pub(super) known: Option<InodeIdx>,
    /// The scan of its content, if it is a directory.
    pub(super) dir: DirIdx,
}

impl Entry {
    /// Reports whether it marks a deleted object.
    pub(super) fn is_whiteout(&self) -> bool {
        self.stat.is_whiteout() || self.extra.as_ref().is_some_and(|extra| extra.whiteout)
    }
}

/// A scanned directory.
#[derive(Debug)]
pub(super) struct DirScan {
    pub(super) path: PathId,
    pub(super) stat: Stat,
    names: Box<[u8]>,
    /// Sorted by name.
    pub(super) entries: Box<[Entry]>,
    /// Whether unchanged timestamps imply unchanged names.
    settled: bool,
}

impl DirScan {
    /// Returns the name of one of its entries.
    pub(super) fn name(&self, entry: &Entry) -> &[u8] {
        self.names.get(entry.name.start as usize..entry.name.end as usize).unwrap_or(&[])
    }

    fn find(&self, name: &[u8]) -> Option<&Entry> {
        let place = self.entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok()?;
        self.entries.get(place)
    }
}

/// A descriptor of an upper directory or of a directory in it.
#[derive(Debug)]
pub(super) struct UpperDir {
    fd: OwnedFd,
}

/// Longer paths are opened in pieces of at most this size, in bytes, because of `PATH_MAX`.
const PIECE_MAX: usize = 3800;

impl UpperDir {
    /// Wraps `fd`, which must have been opened without following symlinks.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens the directory at `path` on this host; the last component must not be a symlink.
    pub(super) fn open(path: &std::path::Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: open(path, flags, Mode::empty())? })
    }

    /// Returns its descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens its subdirectory `path` for reading, without following any symlink.
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

/// The complete scan of an upper directory.
#[derive(Debug)]
pub(super) struct Scan {
    /// Indexed by [`DirIdx`]; `None` for a directory that was gone before its scan.
    pub(super) dirs: Vec<Option<DirScan>>,
    pub(super) paths: Paths,
    /// When the scan began.
    pub(super) begun: Moment,
}

impl Scan {
    /// Returns one of its directories.
    pub(super) fn dir(&self, dir: DirIdx) -> Option<&DirScan> {
        self.dirs.get(dir.0 as usize)?.as_ref()
    }

    /// Opens one of its directories.
    pub(super) fn open_dir(&self, root: &UpperDir, dir: &DirScan) -> Result<OwnedFd, Errno> {
        let mut path = Vec::new();
        self.paths.compose(dir.path, &mut path);
        root.open_dir(&path)
    }
}

/// An error at `path`, relative to the captured directory.
fn read_error(path: std::path::PathBuf, what: &'static str, error: Errno) -> CaptureError {
    CaptureError::Read { path, what, source: error.into() }
}
