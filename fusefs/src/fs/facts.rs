//! Facts about a snapshot that require a walk over every entry: computed once per host, before the
//! snapshot is first mounted below an overlay.

use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{FileKind, FormatError, Index, InodeIdx};
use inlay_store::ids::IndexDigest;

use super::Parts;
use super::view::{seal, unseal};

/// Results of the walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// The parts in which the snapshot is best shown.
    pub parts: Parts,
    /// Length of the longest path from the root, with a slash before each name, in bytes.
    pub longest_path: u32,
}

/// Magic bytes of the stored form.
const MAGIC: [u8; 8] = *b"INLAYFD1";
const WORD: usize = size_of::<u32>();

impl Findings {
    /// Walks over every entry.
    pub fn of(index: &Index) -> Result<Self, FormatError> {
        Ok(Self { parts: Parts::of(index)?, longest_path: longest_path(index)? })
    }

    /// Returns the assumptions for an index that cannot be walked.
    pub fn of_damaged() -> Self {
        Self { parts: Parts::Whole, longest_path: u32::MAX }
    }

    /// Encodes the findings about the snapshot `index`.
    pub fn to_bytes(&self, index: &IndexDigest) -> Vec<u8> {
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(self.longest_path.to_le_bytes());
        bytes.extend(self.parts.to_bytes(index));
        seal(bytes)
    }

    /// Decodes stored findings. `None` if the bytes do not come from [`Findings::to_bytes`] for
    /// `index`.
    pub fn from_bytes(bytes: &[u8], index: &IndexDigest) -> Option<Self> {
        let (longest, parts) = unseal(bytes)?.strip_prefix(&MAGIC)?.split_first_chunk::<WORD>()?;
        let parts = Parts::from_bytes(parts, index)?;
        Some(Self { parts, longest_path: u32::from_le_bytes(*longest) })
    }
}

fn longest_path(index: &Index) -> Result<u32, FormatError> {
    let mut longest = 0;
    // Path lengths of the directories that lead to the next entry.
    let mut above: Vec<u32> = Vec::new();
    for step in Walk::new(index, InodeIdx::ROOT)? {
        match step? {
            Step::Leave { .. } => drop(above.pop()),
            Step::Entry { entry, .. } => {
                let name = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
                let parent = above.last().copied().unwrap_or(0);
                let path = parent.saturating_add(1).saturating_add(name);
                longest = longest.max(path);
                if entry.kind == FileKind::Directory {
                    above.push(path);
                }
            }
        }
    }
    Ok(longest)
}
