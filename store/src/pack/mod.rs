//! From bytes to blobs: chunking, deduplication, grouping, compression.

mod content;

use std::io;
use std::ops::Range;

pub use content::{Content, PackedExtent, Pieces};

/// Why a file could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source of the bytes failed.
    #[error("reading the file's bytes: {0}")]
    Read(#[source] io::Error),
    /// The source ended before the promised size.
    #[error("the file ended after {have} of {want} bytes")]
    Short {
        /// Bytes that came.
        have: u64,
        /// Bytes that were promised.
        want: u64,
    },
    /// A finished blob could not be stored.
    #[error("storing a blob: {0}")]
    Store(String),
    /// Something of the snapshot exceeds what the format can hold.
    #[error("the snapshot has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
}

/// Takes files' bytes and says where they went. Importers write into it.
pub trait FileSink {
    /// Takes a file of `size` bytes whose data are `data`: ranges of the file, sorted, without
    /// overlap, not past `size`. `reader` gives the bytes of those ranges, one after another, and
    /// nothing of the holes between them. A file without holes has the one range `0..size`.
    fn add_file(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        reader: &mut dyn io::Read,
    ) -> Result<Content, PackError>;
}
