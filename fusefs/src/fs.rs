//! A snapshot as a filesystem: what the kernel may ask, answered from the index and the content
//! source. Knows nothing of FUSE, allocates nothing for metadata, and never waits.

mod dir;
mod read;
#[cfg(test)]
mod tests;
mod view;
#[cfg(test)]
mod view_tests;
mod xattr;

use std::sync::{Arc, OnceLock};

use inlay_store::format::{Attr, FileKind, FormatError, GroupIdx, Index, InodeIdx};
use inlay_store::ids::Digest;

use crate::content::ContentSource;
use crate::error::{FsError, Wanted};

pub use dir::{DirItem, DirOffset, Emit};
pub(crate) use read::READ_LEN_MAX;
pub use read::{Answered, Seek};
pub use view::{APART_LEN_MIN, Parts, Split, View};
pub use xattr::{Viewer, XattrAnswer};

/// The unit of `statfs`, and what programs are told to read in, in bytes.
pub(crate) const BLOCK_SIZE: u32 = 4096;

/// One snapshot. All calls may come from any number of threads.
pub struct SnapshotFs {
    index: Index,
    view: View,
    source: Arc<dyn ContentSource>,
    content_bytes: OnceLock<u64>,
}

/// What a directory has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode.
    pub inode: InodeIdx,
    /// What `stat` tells of it.
    pub attr: Attr,
}

/// What `statfs` tells of a snapshot. It is full: nothing is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of [`StatFs::block_size`] that the files' different contents take.
    pub blocks: u64,
    /// In bytes.
    pub block_size: u32,
    /// Inodes.
    pub files: u64,
    /// The longest name, in bytes.
    pub name_len_max: u32,
}

impl std::fmt::Debug for SnapshotFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotFs")
            .field("inodes", &self.index.inode_count())
            .finish_non_exhaustive()
    }
}

impl SnapshotFs {
    /// The snapshot that `index` describes and whose contents `source` serves.
    pub fn new(index: Index, source: Arc<dyn ContentSource>) -> Self {
        Self::with_view(index, source, View::Whole)
    }

    /// A part of it. What is not shown can't be looked up, and is in no listing.
    pub fn with_view(index: Index, source: Arc<dyn ContentSource>, view: View) -> Self {
        Self { index, view, source, content_bytes: OnceLock::new() }
    }

    /// Whether only a part of the snapshot is shown, as it is done below overlays alone.
    pub(crate) fn is_part(&self) -> bool {
        !matches!(self.view, View::Whole)
    }

    /// Whether anything that is shown may have an extended attribute.
    pub fn has_xattrs(&self) -> bool {
        !matches!(self.view, View::Common) && self.index.has_xattrs()
    }

    /// Whether a file may be shown that can be passed through to its cached copy.
    pub fn has_large_files(&self) -> bool {
        !matches!(self.view, View::Common) && self.index.has_large_files()
    }

    /// The digest of a large file's contents; `None` for others.
    pub(crate) fn content(&self, inode: InodeIdx) -> Result<Option<Digest>, FsError> {
        self.index.content(inode).map_err(|e| damaged(inode, e))
    }

    /// What serves its files' bytes.
    pub(crate) fn source(&self) -> &dyn ContentSource {
        &*self.source
    }

    /// What `name` is in the directory `parent`; `None` if it has no such entry.
    pub fn lookup(&self, parent: InodeIdx, name: &[u8]) -> Result<Option<Found>, FsError> {
        let found = self.index.lookup(parent, name).map_err(|e| damaged(parent, e))?;
        let found = found.map(|inode| self.child(parent, inode)).transpose()?;
        match found {
            Some(found) if !self.shows(found.inode, found.attr.kind)? => Ok(None),
            found => Ok(found),
        }
    }

    fn shows(&self, inode: InodeIdx, kind: FileKind) -> Result<bool, FsError> {
        self.view.shows(&self.index, inode, kind).map_err(|e| damaged(inode, e))
    }

    /// What `stat` tells of `inode`.
    pub fn attr(&self, inode: InodeIdx) -> Result<Attr, FsError> {
        let attr = self.index.attr(inode).map_err(|e| damaged(inode, e))?;
        // The kernel's device numbers have 12 bits for the major and 20 for the minor part, and the
        // protocol passes no more.
        if attr.device.major >= 1 << 12 || attr.device.minor >= 1 << 20 {
            return Err(contradiction(inode, "device number out of range"));
        }
        Ok(attr)
    }

    /// The target of the symbolic link `inode`, 1 to 4095 bytes.
    pub fn readlink(&self, inode: InodeIdx) -> Result<&[u8], FsError> {
        self.index.symlink(inode).map_err(|e| damaged(inode, e))
    }

    /// Checks that `inode` is a regular file that can be read.
    pub fn open(&self, inode: InodeIdx) -> Result<(), FsError> {
        self.index.data(inode).map(drop).map_err(|e| damaged(inode, e))
    }

    /// Checks that `inode` is a directory.
    pub fn open_dir(&self, inode: InodeIdx) -> Result<(), FsError> {
        self.index.dir(inode).map(drop).map_err(|e| damaged(inode, e))
    }

    /// How large a directory without files of its own is.
    pub(crate) const fn statfs_of_nothing() -> StatFs {
        StatFs { blocks: 0, block_size: BLOCK_SIZE, files: 0, name_len_max: 255 }
    }

    /// How large the snapshot is.
    pub fn statfs(&self) -> StatFs {
        let bytes = *self.content_bytes.get_or_init(|| {
            // Groups are few next to files. A damaged one is no reason to have no answer.
            (0..self.index.group_count())
                .filter_map(|group| self.index.group(GroupIdx(group)).ok())
                .map(|group| u64::from(group.raw_len))
                .fold(0, u64::saturating_add)
        });
        StatFs {
            blocks: bytes.div_ceil(u64::from(BLOCK_SIZE)),
            block_size: BLOCK_SIZE,
            files: u64::from(self.index.inode_count()),
            name_len_max: 255,
        }
    }

    /// An entry's inode, with its attributes.
    ///
    /// A directory must be where it says that it is. So a damaged index can't show one directory in
    /// two places, nor a directory inside itself: the kernel can't bear either.
    fn child(&self, parent: InodeIdx, inode: InodeIdx) -> Result<Found, FsError> {
        let attr = self.attr(inode)?;
        if attr.kind == FileKind::Directory {
            let dir = self.index.dir(inode).map_err(|e| damaged(inode, e))?;
            if dir.parent() != parent {
                return Err(contradiction(inode, "directory in a place that is not its own"));
            }
        }
        Ok(Found { inode, attr })
    }
}

fn contradiction(inode: InodeIdx, what: &'static str) -> FsError {
    FsError::Index { inode, source: FormatError::Corrupt { what, at: u64::from(inode.0) } }
}

/// A request for something that the inode's kind does not have is the caller's error; everything
/// else is the index's.
fn damaged(inode: InodeIdx, source: FormatError) -> FsError {
    match source {
        FormatError::WrongKind { wanted, .. } => FsError::WrongKind {
            inode,
            wanted: match wanted {
                "directory" => Wanted::Directory,
                "symbolic link" => Wanted::SymbolicLink,
                _ => Wanted::RegularFile,
            },
        },
        source => FsError::Index { inode, source },
    }
}
