//! Where file contents come from, as the filesystem sees it: bytes that are here now, or later.

use bytes::Bytes;
use inlay_store::format::InodeIdx;

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
