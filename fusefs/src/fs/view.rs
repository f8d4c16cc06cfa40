//! Which part of a snapshot a filesystem shows: all of it, or one of two parts that an overlay puts
//! together again.
//!
//! What a FUSE server answers with ENOSYS once is off for a whole connection: opening files without
//! asking the server makes small files cheap, and excludes passthrough, which makes large files
//! cheap. So a snapshot that has both, and a writable view of which is an overlay anyway, is shown as
//! two lower layers on two connections. [`View::Common`] has everything but the large files and those
//! with extended attributes; [`View::Apart`] has only these, and the directories that lead to them.

use std::sync::Arc;

use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{FileKind, FormatError, Index, InodeIdx};
use inlay_store::ids::{Digest, IndexDigest};

/// From how many bytes on a file is set apart. Below, what opening costs is more than what
/// passthrough saves, even when nothing is in the kernel's cache yet: with 512 KiB a file it was even,
/// with 4 MiB passthrough was twice as fast (Linux 6.18, ext4).
///
/// The kernel remembers which part has which names: a daemon that takes a session over must draw the
/// line where the one before did.
pub const APART_LEN_MIN: u64 = 1 << 20;

/// The part of a snapshot that is shown.
#[derive(Clone, Debug, Default)]
pub enum View {
    /// All of it.
    #[default]
    Whole,
    /// What needs neither passthrough nor extended attributes.
    Common,
    /// The rest.
    Apart(Arc<Split>),
}

/// How a snapshot is best shown below an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parts {
    /// As it is: because nearly nothing in it is common, or because something that is no file has
    /// extended attributes.
    Whole,
    /// All of it is [`View::Common`].
    Common,
    /// [`View::Common`] above [`View::Apart`].
    Two(Arc<Split>),
}

/// The directories of a snapshot that lead to files which are set apart: in order, the root first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    dirs: Vec<InodeIdx>,
}

/// The first bytes of what is kept in a file. The number changes with what `APART_LEN_MIN` means.
const MAGIC: [u8; 8] = *b"INLAYPT1";
const WORD: usize = size_of::<u32>();
const DIGEST: usize = size_of::<Digest>();

impl Parts {
    /// Finds out about a snapshot. Looks at every entry, unless the header tells.
    pub fn of(index: &Index) -> Result<Self, FormatError> {
        if !index.has_large_files() && !index.has_xattrs() {
            return Ok(Self::Common);
        }
        if !index.xattrs(InodeIdx::ROOT)?.is_empty() {
            return Ok(Self::Whole);
        }
        let (mut dirs, mut path) = (vec![InodeIdx::ROOT], Vec::new());
        // How many directories of the path are in the list already: those above are, too.
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

    /// What to keep of the finding about the snapshot `index`, so that it need not be made again.
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
        let digest = Digest::of(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// What was kept. `None` if these are not the bytes that [`Parts::to_bytes`] gave for `index`.
    pub fn from_bytes(bytes: &[u8], index: &IndexDigest) -> Option<Self> {
        let (kept, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
        if Digest::of(kept).as_bytes().as_slice() != digest {
            return None;
        }
        let kept = kept.strip_prefix(&MAGIC)?.strip_prefix(index.0.as_bytes().as_slice())?;
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

impl Split {
    /// Whether `dir` leads to a file that is shown apart.
    pub(crate) fn leads(&self, dir: InodeIdx) -> bool {
        self.dirs.binary_search(&dir).is_ok()
    }
}

impl View {
    /// Whether an entry of a directory that is shown is shown, too.
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
