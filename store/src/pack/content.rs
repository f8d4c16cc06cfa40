//! Where a packed file's bytes are, before the index gives its groups their final numbers.

use crate::ids::Digest;

/// A piece of a file in a group that the packer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedExtent {
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
    /// The packer's number of the group.
    pub group: u32,
    /// Where it begins in the group's decoded bytes.
    pub group_offset: u32,
    /// In bytes, at least 1.
    pub len: u32,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nowhere: empty, or one hole.
    Hole,
    /// In the index itself.
    Inline(Box<[u8]>),
    /// The whole file in one piece of one group.
    Single {
        /// The packer's number of the group.
        group: u32,
        /// Where it begins in the group's decoded bytes.
        group_offset: u32,
    },
    /// In several pieces, or with holes.
    Pieces(Box<Pieces>),
}

/// The pieces of a large or sparse file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// Sorted by file offset, without overlap; what lies between them is hole.
    pub extents: Vec<PackedExtent>,
    /// The BLAKE3 of the whole contents, holes read as zeros; for files that are large enough.
    pub digest: Option<Digest>,
}
