//! Where file contents come from, as the filesystem sees it: bytes that are here now, or later.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use inlay_store::format::InodeIdx;
use inlay_store::ids::Digest;

/// Whether a read could be answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadNow {
    /// The whole buffer holds the file's bytes.
    Filled,
    /// Some bytes are not on this host: the buffer's contents mean nothing.
    WouldWait,
}

/// What a [`ContentSource`] calls with the outcome of a read.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ContentError>) + Send>;

/// Serves the contents of one snapshot's regular files.
///
/// It is never asked about files whose bytes are in the index, nor about ranges that are one hole,
/// nor about bytes past a file's end. A range may hold holes and data: the source writes the zeros
/// of its holes.
pub trait ContentSource: Send + Sync + 'static {
    /// Fills all of `buf` with the bytes of `inode` that begin `offset` bytes into it, if they are
    /// on this host. Called on the thread that serves the kernel: it never waits for the network.
    fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<ReadNow, ContentError>;

    /// Gets `len` bytes of `inode` that begin `offset` bytes into it, and calls `done` with exactly
    /// that many bytes, or with an error. Returns at once.
    ///
    /// The source calls `done` from any thread, within a deadline of its own: until then a process
    /// waits for it and can't be killed. A `done` that is dropped uncalled is an I/O error to the
    /// reader.
    fn read_later(&self, inode: InodeIdx, offset: u64, len: u32, done: ReadDone);

    /// The file on this host that holds exactly the contents of the large file `inode`, if there is
    /// one. Cheap: it waits for nothing. The kernel may then read that file without asking again,
    /// so it must never change.
    fn whole(&self, inode: InodeIdx) -> Option<WholeFile> {
        let _ = inode;
        None
    }

    /// Bytes were read that the source is not asked for: they are in the index, or a hole. It may
    /// want to know; it must return at once.
    fn read_elsewhere(&self, inode: InodeIdx, offset: u64, len: u32) {
        let _ = (inode, offset, len);
    }

    /// The file was opened so that the kernel reads it by itself. It may want to know; it must
    /// return at once.
    fn passed_through(&self, inode: InodeIdx) {
        let _ = inode;
    }
}

/// A file on this host that holds all of a large file's contents.
pub struct WholeFile {
    /// Open for reading.
    pub file: Arc<File>,
    /// The digest of the contents.
    pub content: Digest,
    /// Keeps the file from being evicted for as long as it is held.
    pub guard: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for WholeFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeFile").field("content", &self.content).finish_non_exhaustive()
    }
}

/// Why file contents can't be had. Cheap to clone: all who wait for one fetch get a copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// It did not come in time.
    #[error("{object} did not come before the read's deadline; is the store reachable?")]
    Timeout {
        /// What was fetched: an object of the store, and the range.
        object: String,
    },
    /// The store has no such object.
    #[error("{object} is not in the store; run `inlay verify` on the snapshot")]
    NotFound {
        /// What was fetched.
        object: String,
    },
    /// The store, or the index, gave something that can't be what it should be.
    #[error("{object} is damaged: {why}; run `inlay verify` on the snapshot")]
    Corrupt {
        /// What was fetched.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// The store gave errors until the retries were used up.
    #[error("{object} could not be fetched: {why}")]
    Unavailable {
        /// What was fetched.
        object: String,
        /// The last error.
        why: String,
    },
    /// The source is being shut down.
    #[error("the mount is being shut down")]
    Shutdown,
}
