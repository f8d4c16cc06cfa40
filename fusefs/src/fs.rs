//! A snapshot as a filesystem: serves requests from the index and the content source. Knows nothing
//! of FUSE, allocates nothing for metadata, and never blocks.

mod alias;
mod changed;
mod dir;
mod facts;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod view;
#[cfg(test)]
mod view_tests;
mod xattr;

use std::sync::{Arc, OnceLock};

use inlay_store::format::{Attr, FileKind, FormatError, GroupIdx, Index, InodeIdx};
use inlay_store::ids::Digest;

use crate::content::ContentSource;
use crate::error::{FsError, Wanted};

pub use alias::{OwnerAlias, Renumber};
pub use dir::{DirItem, DirOffset, Emit};
pub use facts::Findings;
pub(crate) use read::READ_LEN_MAX;
pub use read::{Answered, Seek};
pub use view::{APART_LEN_MIN, Parts, Split, View};
pub use xattr::{Viewer, XattrAnswer};

/// Block size of `statfs` and preferred I/O size, in bytes.
pub(crate) const BLOCK_SIZE: u32 = 4096;

/// Length of the header and the first inodes of an index, in bytes.
const SEED_LEN: usize = 4096;

/// One snapshot. All methods may be called concurrently.
pub struct SnapshotFs {
    index: Index,
    view: View,
    alias: Option<OwnerAlias>,
    source: Arc<dyn ContentSource>,
    content_bytes: OnceLock<u64>,
}

/// A directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The inode.
    pub inode: InodeIdx,
    /// Its attributes.
    pub attr: Attr,
}

/// `statfs` of a snapshot. No space is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of [`StatFs::block_size`] occupied by the deduplicated file contents.
    pub blocks: u64,
    /// Block size, in bytes.
    pub block_size: u32,
    /// Number of inodes.
    pub files: u64,
    /// Maximum name length, in bytes.
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
    /// Creates a filesystem from `index`, with contents served by `source`.
    pub fn new(index: Index, source: Arc<dyn ContentSource>) -> Self {
        Self::with_view(index, source, View::Whole)
    }

    /// Creates a filesystem that shows only the part `view`. Hidden entries cannot be looked up and
    /// are not listed.
    pub fn with_view(index: Index, source: Arc<dyn ContentSource>, view: View) -> Self {
        Self { index, view, alias: None, source, content_bytes: OnceLock::new() }
    }

    /// Sets an owner alias.
    #[must_use]
    pub fn with_alias(self, alias: Option<OwnerAlias>) -> Self {
        Self { alias, ..self }
    }

    /// Returns whether only a part of the snapshot is shown. Parts are only used below overlays.
    pub(crate) fn is_part(&self) -> bool {
        !matches!(self.view, View::Whole)
    }

    /// Returns whether any visible inode may have an extended attribute.
    pub fn has_xattrs(&self) -> bool {
        !matches!(self.view, View::Common) && self.index.has_xattrs()
    }

    /// Returns whether any visible file may be eligible for passthrough to its cache file.
    pub fn has_large_files(&self) -> bool {
        !matches!(self.view, View::Common) && self.index.has_large_files()
    }

    /// Returns the digest of a large file's contents; `None` for other files.
    pub(crate) fn content(&self, inode: InodeIdx) -> Result<Option<Digest>, FsError> {
        self.index.content(inode).map_err(|e| damaged(inode, e))
    }

    /// Returns the inode count and a digest that identifies the snapshot well enough to choose its
    /// inode numbers. Reads little of the index.
    pub(crate) fn seed(&self) -> (u32, Digest) {
        let head = self.index.bytes().get(..SEED_LEN).unwrap_or(self.index.bytes());
        (self.index.inode_count(), Digest::of(head))
    }

    /// Returns the content source.
    pub(crate) fn source(&self) -> &dyn ContentSource {
        &*self.source
    }

    /// Looks up `name` in the directory `parent`; `None` if it has no such entry.
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

    /// Returns the attributes of `inode`.
    pub fn attr(&self, inode: InodeIdx) -> Result<Attr, FsError> {
        let attr = self.index.attr(inode).map_err(|e| damaged(inode, e))?;
        // The kernel's device numbers have 12 bits for the major and 20 bits for the minor part,
        // and the protocol passes no more.
        if attr.device.major >= 1 << 12 || attr.device.minor >= 1 << 20 {
            return Err(contradiction(inode, "device number out of range"));
        }
        Ok(self.alias.map_or(attr, |alias| alias.attr(attr)))
    }

    /// Returns the target of the symbolic link `inode`, 1 to 4095 bytes.
    pub fn readlink(&self, inode: InodeIdx) -> Result<&[u8], FsError> {
        self.index.symlink(inode).map_err(|e| damaged(inode, e))
    }

    /// Checks that `inode` is a readable regular file.
    pub fn open(&self, inode: InodeIdx) -> Result<(), FsError> {
        self.index.data(inode).map(drop).map_err(|e| damaged(inode, e))
    }

    /// Checks that `inode` is a directory.
    pub fn open_dir(&self, inode: InodeIdx) -> Result<(), FsError> {
        self.index.dir(inode).map(drop).map_err(|e| damaged(inode, e))
    }

    /// Returns `statfs` of a directory without files of its own.
    pub(crate) const fn statfs_of_nothing() -> StatFs {
        StatFs { blocks: 0, block_size: BLOCK_SIZE, files: 0, name_len_max: 255 }
    }

    /// Returns `statfs` of the snapshot.
    pub fn statfs(&self) -> StatFs {
        let bytes = *self.content_bytes.get_or_init(|| {
            // There are few groups compared to files. Damaged groups are skipped: `statfs` should
            // still succeed.
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

    /// Returns the inode of a directory entry with its attributes.
    ///
    /// Checks that a directory's own parent matches. So a damaged index cannot show one directory
    /// in two places, or a directory inside itself: the kernel tolerates neither.
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

/// A request that the inode's type does not support is the caller's error; everything else is the
/// index's.
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
