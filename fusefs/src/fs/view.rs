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

/// The directories of a snapshot that lead to files which are shown apart: in order, the root first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    dirs: Vec<InodeIdx>,
}

/// The first bytes of a split that is kept in a file.
const MAGIC: [u8; 8] = *b"INLAYSP1";
const WORD: usize = size_of::<u32>();
const DIGEST: usize = size_of::<Digest>();

impl Split {
    /// How a snapshot is shown in two parts; `None` where one is better: because nothing is to be set
    /// apart, because everything is, or because something that is no file has extended attributes.
    /// Looks at every entry.
    pub fn of(index: &Index) -> Result<Option<Self>, FormatError> {
        if !index.has_large_files() && !index.has_xattrs() {
            return Ok(None);
        }
        if !index.xattrs(InodeIdx::ROOT)?.is_empty() {
            return Ok(None);
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
                    if index.is_common(entry.inode)? {
                        common = true;
                        continue;
                    }
                    apart = true;
                    dirs.extend(path.get(listed..).unwrap_or_default());
                    listed = path.len();
                }
                Step::Entry { entry, .. } => {
                    if !index.xattrs(entry.inode)?.is_empty() {
                        return Ok(None);
                    }
                    if entry.kind == FileKind::Directory {
                        path.push(entry.inode);
                    }
                }
            }
        }
        dirs.sort_unstable();
        dirs.dedup();
        Ok((common && apart).then_some(Self { dirs }))
    }

    /// Whether `dir` leads to a file that is shown apart.
    pub(crate) fn leads(&self, dir: InodeIdx) -> bool {
        self.dirs.binary_search(&dir).is_ok()
    }

    /// What to keep of the finding about the snapshot `index`, so that it need not be made again.
    pub fn to_bytes(split: Option<&Self>, index: &IndexDigest) -> Vec<u8> {
        let dirs = split.map_or(&[][..], |split| &split.dirs);
        let mut bytes = Vec::with_capacity(MAGIC.len() + 2 * DIGEST + dirs.len() * WORD);
        bytes.extend(MAGIC);
        bytes.extend(index.0.as_bytes());
        bytes.extend(dirs.iter().flat_map(|dir| dir.0.to_le_bytes()));
        let digest = Digest::of(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// What was kept. `None` if these are not the bytes that [`Split::to_bytes`] gave for `index`.
    pub fn from_bytes(bytes: &[u8], index: &IndexDigest) -> Option<Option<Self>> {
        let (kept, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
        if Digest::of(kept).as_bytes().as_slice() != digest {
            return None;
        }
        let kept = kept.strip_prefix(&MAGIC)?.strip_prefix(index.0.as_bytes().as_slice())?;
        let (words, rest) = kept.as_chunks::<WORD>();
        if !rest.is_empty() {
            return None;
        }
        let dirs: Vec<_> = words.iter().map(|word| InodeIdx(u32::from_le_bytes(*word))).collect();
        Some((!dirs.is_empty()).then_some(Self { dirs }))
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
            (Self::Common, FileKind::Regular) => index.is_common(inode),
            (Self::Whole | Self::Common, _) => Ok(true),
            (Self::Apart(_), FileKind::Regular) => index.is_common(inode).map(|common| !common),
            (Self::Apart(split), FileKind::Directory) => Ok(split.leads(inode)),
            (Self::Apart(_), _) => Ok(false),
        }
    }
}
