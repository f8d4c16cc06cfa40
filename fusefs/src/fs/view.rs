//! Selects the part of a snapshot that a filesystem shows: all of it, or one of two parts that an
//! overlay merges again.
//!
//! An ENOSYS reply of a FUSE server disables an operation for the whole connection. Opening files
//! without a server round trip makes small files cheap, but excludes passthrough, which makes large
//! files cheap. So a snapshot with both kinds of files, which needs an overlay for writing anyway,
//! is shown as two lower layers on two connections. [`View::Common`] has everything but the large
//! files and those with extended attributes; [`View::Apart`] has only these, and the directories
//! that lead to them.

use std::sync::Arc;

use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{FileKind, FormatError, Index, InodeIdx};
use inlay_store::ids::{Digest, IndexDigest};

/// Minimum size of a file that is set apart, in bytes. Below it, opening costs more than
/// passthrough saves, even with a cold page cache: passthrough broke even at 512 KiB per file and
/// was twice as fast at 4 MiB (Linux 6.18, ext4).
///
/// The kernel caches which part has which names: a daemon that takes over a session must use the
/// same value as its predecessor.
pub const APART_LEN_MIN: u64 = 1 << 20;

/// The part of a snapshot that is shown.
#[derive(Clone, Debug, Default)]
pub enum View {
    /// Everything.
    #[default]
    Whole,
    /// Files that need neither passthrough nor extended attributes.
    Common,
    /// The rest.
    Apart(Arc<Split>),
}

/// How a snapshot is best shown below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parts {
    /// As a whole: nearly nothing in it is common, or a non-file has extended attributes.
    Whole,
    /// All of it is [`View::Common`].
    Common,
    /// [`View::Common`] above [`View::Apart`].
    Two(Arc<Split>),
}

/// Directories that lead to files set apart, in ascending order, root first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    dirs: Vec<InodeIdx>,
}

/// Magic bytes of the stored form. The number changes whenever `APART_LEN_MIN` does.
const MAGIC: [u8; 8] = *b"INLAYPT1";
const WORD: usize = size_of::<u32>();
const DIGEST: usize = size_of::<Digest>();

impl Parts {
    /// Analyses a snapshot. Visits every entry, unless the header suffices.
    pub fn of(index: &Index) -> Result<Self, FormatError> {
        if !index.has_large_files() && !index.has_xattrs() {
            return Ok(Self::Common);
        }
        if !index.xattrs(InodeIdx::ROOT)?.is_empty() {
            return Ok(Self::Whole);
        }
        let (mut dirs, mut path) = (vec![InodeIdx::ROOT], Vec::new());
        // Number of directories of the path already in the list; their parents are, too.
        let mut listed = 0;
        let (mut common, mut apart) = (false, false);
        for step in Walk::new(index, InodeIdx::ROOT)? {
            match step? {
                Step::Leave { .. } => {
                    path.pop();
                    listed = listed.min(path.len());
                }
                Step::Entry { entry, .. } if entry.kind == FileKind::Regular => {
                    if index.is_common(entry.inode, APART_LEN_MIN)? {
                        common = true;
                        continue;
                    }
                    apart = true;
                    dirs.extend(path.get(listed..).unwrap_or_default());
                    listed = path.len();
                }
                Step::Entry { entry, .. } => {
                    if !index.xattrs(entry.inode)?.is_empty() {
                        return Ok(Self::Whole);
                    }
                    if entry.kind == FileKind::Directory {
                        path.push(entry.inode);
                    }
                }
            }
        }
        dirs.sort_unstable();
        dirs.dedup();
        Ok(match (common, apart) {
            (true, true) => Self::Two(Arc::new(Split { dirs })),
            (false, true) => Self::Whole,
            (_, false) => Self::Common,
        })
    }

    /// Encodes the result for the snapshot `index`, so that it need not be computed again.
    pub fn to_bytes(&self, index: &IndexDigest) -> Vec<u8> {
        let (tag, dirs) = match self {
            Self::Whole => (0, &[][..]),
            Self::Common => (1, &[][..]),
            Self::Two(split) => (2, &split.dirs[..]),
        };
        let mut bytes = Vec::with_capacity(MAGIC.len() + 1 + 2 * DIGEST + dirs.len() * WORD);
        bytes.extend(MAGIC);
        bytes.extend(index.0.as_bytes());
        bytes.push(tag);
        bytes.extend(dirs.iter().flat_map(|dir| dir.0.to_le_bytes()));
        seal(bytes)
    }

    /// Decodes a stored result. `None` if the bytes do not come from [`Parts::to_bytes`] for
    /// `index`.
    pub fn from_bytes(bytes: &[u8], index: &IndexDigest) -> Option<Self> {
        let kept =
            unseal(bytes)?.strip_prefix(&MAGIC)?.strip_prefix(index.0.as_bytes().as_slice())?;
        let (tag, words) = kept.split_first()?;
        let (words, rest) = words.as_chunks::<WORD>();
        if !rest.is_empty() {
            return None;
        }
        match (tag, words.is_empty()) {
            (0, true) => Some(Self::Whole),
            (1, true) => Some(Self::Common),
            (2, false) => {
                let dirs = words.iter().map(|word| InodeIdx(u32::from_le_bytes(*word))).collect();
                Some(Self::Two(Arc::new(Split { dirs })))
            }
            _ => None,
        }
    }
}

/// Appends the digest of `bytes`.
pub(super) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = Digest::of(&bytes);
    bytes.extend(digest.as_bytes());
    bytes
}

/// Returns the bytes passed to [`seal`]. `None` if their digest does not match.
pub(super) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let (kept, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
    (Digest::of(kept).as_bytes().as_slice() == digest).then_some(kept)
}

impl Split {
    /// Returns whether `dir` leads to a file set apart.
    pub(crate) fn leads(&self, dir: InodeIdx) -> bool {
        self.dirs.binary_search(&dir).is_ok()
    }
}

impl View {
    /// Returns whether an entry of a visible directory is visible.
    pub(crate) fn shows(
        &self,
        index: &Index,
        inode: InodeIdx,
        kind: FileKind,
    ) -> Result<bool, FormatError> {
        match (self, kind) {
            (Self::Common, FileKind::Regular) => index.is_common(inode, APART_LEN_MIN),
            (Self::Whole | Self::Common, _) => Ok(true),
            (Self::Apart(_), FileKind::Regular) => {
                index.is_common(inode, APART_LEN_MIN).map(|common| !common)
            }
            (Self::Apart(split), FileKind::Directory) => Ok(split.leads(inode)),
            (Self::Apart(_), _) => Ok(false),
        }
    }
}
