//! From bytes to blobs: chunking, deduplication, grouping, compression.

mod adopt;
#[cfg(test)]
mod adopt_tests;
mod compress;
mod content;
mod known;
mod options;
mod packer;
#[cfg(test)]
mod packer_tests;
mod toc;

use std::io;
use std::ops::Range;

pub use adopt::Adopter;
pub use compress::PackedGroup;
pub use content::{Content, PackedExtent, Pieces};
pub use known::KnownChunks;
pub use options::{ChunkLen, PackOptions};
pub use packer::{PackStats, PackedGroups, Packer};
pub use toc::{TOC_LEN_MAX, TocChunk, TocGroup, read_toc, write_toc};

use crate::format::FormatError;
use crate::ids::BlobId;

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
    /// A group could not be compressed.
    #[error("compressing a group: {0}")]
    Compress(#[source] io::Error),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[source] io::Error),
    /// The threads behind have failed; finishing the packer tells why.
    #[error("packing has stopped after an earlier error")]
    Stopped,
    /// A thread behind has panicked: a defect of this program.
    #[error("packing has stopped after a defect of this program")]
    Panicked,
    /// Something of the snapshot exceeds what the format can hold.
    #[error("the snapshot has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
}

/// Why a file of an earlier snapshot could not be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Its index.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The packer.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Takes files' bytes and says where they went. Importers write into it.
pub trait FileSink {
    /// Takes a file of `size` bytes whose data are `data`: ranges of the file, sorted, without
    /// overlap, not past `size`. `reader` gives the bytes of those ranges, one after another, and
    /// nothing of the holes between them. A file without holes has the one range `0..size`; empty
    /// ranges do no harm.
    fn add_file(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        reader: &mut dyn io::Read,
    ) -> Result<Content, PackError>;
}

/// Where finished blobs go. Called from one thread, in the order of the blobs.
pub trait BlobStore: Send {
    /// Takes a blob. May return before it is stored, but then holds a bounded number only.
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError>;

    /// Waits until every blob that was taken is stored.
    fn finish(&mut self) -> Result<(), PackError>;
}
