//! Lists directories in pieces.

use inlay_store::format::{FileKind, InodeIdx};

use super::{Found, SnapshotFs, damaged};
use crate::error::FsError;

/// Position in a listing; 0 is the start. Stable, because directories never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct DirOffset(pub u64);

/// An entry of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirItem<'a> {
    /// Its name; `.` and `..` come first.
    pub name: &'a [u8],
    /// Its inode.
    pub inode: InodeIdx,
    /// Type of the inode.
    pub kind: FileKind,
    /// Position after the entry.
    pub next: DirOffset,
}

/// Result of emitting an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emit {
    /// The entry was taken; there is room for more.
    More,
    /// The entry was not taken: the buffer is full.
    Full,
}

/// `.` and `..` are at offsets 0 and 1, entry n is at n + 2.
const DOTS: u64 = 2;

impl SnapshotFs {
    /// Passes the entries of `dir` at or after `from`, sorted by name, to `emit` until it returns
    /// `Full`.
    ///
    /// An error after the first entry ends the piece there; the next piece starts with it. So a
    /// damaged entry hides nothing that comes before it.
    pub fn read_dir<'s>(
        &'s self,
        dir: InodeIdx,
        from: DirOffset,
        mut emit: impl FnMut(&DirItem<'s>) -> Result<Emit, FsError>,
    ) -> Result<(), FsError> {
        let mut emitted = false;
        for offset in from.0.. {
            let Some(item) = self.dir_item(dir, offset) else { break };
            let shown = item
                .and_then(|item| if self.lists(&item)? { emit(&item).map(Some) } else { Ok(None) });
            match shown {
                Ok(None) => {}
                Ok(Some(Emit::More)) => emitted = true,
                Ok(Some(Emit::Full)) => break,
                Err(_) if emitted => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns an entry of a listing with its attributes. Same checks as [`SnapshotFs::lookup`].
    pub fn dir_item_attr(&self, dir: InodeIdx, item: &DirItem<'_>) -> Result<Found, FsError> {
        if matches!(item.name, b"." | b"..") {
            return Ok(Found { inode: item.inode, attr: self.attr(item.inode)? });
        }
        self.child(dir, item.inode)
    }

    fn lists(&self, item: &DirItem<'_>) -> Result<bool, FsError> {
        Ok(matches!(item.name, b"." | b"..") || self.shows(item.inode, item.kind)?)
    }

    fn dir_item(&self, inode: InodeIdx, offset: u64) -> Option<Result<DirItem<'_>, FsError>> {
        let dir = match self.index.dir(inode) {
            Ok(dir) => dir,
            Err(error) => return Some(Err(damaged(inode, error))),
        };
        let next = DirOffset(offset.checked_add(1)?);
        let dot = |name, inode| DirItem { name, inode, kind: FileKind::Directory, next };
        match offset.checked_sub(DOTS) {
            None if offset == 0 => Some(Ok(dot(&b"."[..], inode))),
            None => Some(Ok(dot(&b".."[..], dir.parent()))),
            Some(place) => {
                let entry = dir.get(usize::try_from(place).ok()?)?;
                Some(entry.map_err(|e| damaged(inode, e)).map(|entry| DirItem {
                    name: entry.name,
                    inode: entry.inode,
                    kind: entry.kind,
                    next,
                }))
            }
        }
    }
}
