//! The location of a packed file's bytes, before the index assigns final group numbers.

use crate::ids::Digest;

/// An extent of a file in a group of the packer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedExtent {
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// The packer's number of the group.
    pub group: u32,
    /// Offset in the group's decoded bytes.
    pub group_offset: u32,
    /// Length in bytes, at least 1.
    pub len: u32,
}

/// The location of a file's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No bytes are stored: the file is empty or a single hole.
    Hole,
    /// In the index itself.
    Inline(Box<[u8]>),
    /// The whole file is one extent of one group.
    Single {
        /// The packer's number of the group.
        group: u32,
        /// Offset in the group's decoded bytes.
        group_offset: u32,
    },
    /// Several extents, or extents with holes.
    Pieces(Box<Pieces>),
}

/// The extents of a large or sparse file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// Sorted by file offset, without overlap; gaps are holes.
    pub extents: Vec<PackedExtent>,
    /// The BLAKE3 of the whole contents; `None` for a file with holes.
    pub digest: Option<Digest>,
}
