//! Packs files into blobs: chunking, deduplication, grouping, compression.

mod adopt;
#[cfg(test)]
mod adopt_tests;
mod compress;
mod content;
mod known_chunks;
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
pub use known_chunks::KnownChunks;
pub use options::{ChunkLen, PackOptions};
pub use packer::{PackStats, PackedGroups, Packer};
pub use toc::{TOC_LEN_MAX, TOC_VERSION, TocChunk, TocGroup, read_toc, write_toc};

use crate::format::FormatError;
use crate::ids::BlobId;

/// An error from packing a file.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The reader failed.
    #[error("reading the file's bytes: {0}")]
    Read(#[source] io::Error),
    /// The reader ended before the announced size.
    #[error("the file ended after {have} of {want} bytes")]
    Short {
        /// Bytes read.
        have: u64,
        /// Bytes announced.
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
    /// A thread of the packer has failed; `Packer::finish` returns the error.
    #[error("packing has stopped after an earlier error")]
    Stopped,
    /// A thread of the packer has panicked: a bug in this program.
    #[error("packing panicked; this is a bug, see the log")]
    Panicked,
    /// The snapshot exceeds a limit of the format.
    #[error("the snapshot has more than {limit} {what}")]
    Limit {
        /// The resource that is limited.
        what: &'static str,
        /// The maximum.
        limit: u64,
    },
}

/// An error from adopting a file of an earlier snapshot.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The earlier index could not be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The packer failed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Accepts the bytes of files and returns where they are stored. Importers write to it.
pub trait FileSink {
    /// Adds a file of `size` bytes. `data` lists the ranges that hold data: sorted, without
    /// overlap, not past `size`. `reader` returns the bytes of those ranges, one after another,
    /// without the holes between them. A file without holes has the single range `0..size`; empty
    /// ranges are ignored.
    fn add_file(
        &mut self,
        size: u64,
        data: &[Range<u64>],
        reader: &mut dyn io::Read,
    ) -> Result<Content, PackError>;
}

/// Receives finished blobs. Called from one thread, in the order of the blobs.
pub trait BlobStore: Send {
    /// Stores a blob. May return before the blob is stored, but must hold only a bounded number.
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError>;

    /// Blocks until every blob passed to [`Self::put`] is stored.
    fn finish(&mut self) -> Result<(), PackError>;
}
