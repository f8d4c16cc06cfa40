//! The interface through which the filesystem reads file contents: synchronously if cached,
//! otherwise asynchronously.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use inlay_store::format::InodeIdx;
use inlay_store::ids::Digest;

/// Whether a read was served at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadNow {
    /// The whole buffer holds the file's bytes.
    Filled,
    /// Some bytes are not cached; the buffer's contents are undefined.
    WouldWait,
}

/// Completion callback of an asynchronous read.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ContentError>) + Send>;

/// Serves the contents of one snapshot's regular files.
///
/// Never called for files stored inline in the index, for ranges within one hole, or for bytes past
/// the end of the file. A range may contain holes and data: the source fills its holes with zeros.
pub trait ContentSource: Send + Sync + 'static {
    /// Fills all of `buf` with the bytes of `inode` from `offset`, if they are cached. Called on a
    /// FUSE thread: must never wait for the network.
    fn read_now(
        &self,
        inode: InodeIdx,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<ReadNow, ContentError>;

    /// Reads `len` bytes of `inode` from `offset` and calls `done` with exactly that many bytes, or
    /// with an error. Returns at once.
    ///
    /// The source calls `done` from any thread, within its own deadline: until then, the reading
    /// process is blocked and cannot be killed. Dropping `done` without calling it fails the read
    /// with an I/O error.
    fn read_later(&self, inode: InodeIdx, offset: u64, len: u32, done: ReadDone);

    /// Returns the cache file that holds exactly the contents of the large file `inode`, if it
    /// exists. Must not block. The kernel may then read the file without contacting the server, so
    /// it must never change.
    fn whole(&self, inode: InodeIdx) -> Option<WholeFile> {
        let _ = inode;
        None
    }

    /// Notifies the source of a read served without it, from the index or a hole. Must not block.
    fn read_elsewhere(&self, inode: InodeIdx, offset: u64, len: u32) {
        let _ = (inode, offset, len);
    }

    /// Notifies the source of an open with passthrough: the kernel reads the file without the
    /// server. Must not block.
    fn passed_through(&self, inode: InodeIdx) {
        let _ = inode;
    }
}

/// A cache file with all of a large file's contents.
pub struct WholeFile {
    /// Open for reading.
    pub file: Arc<File>,
    /// Digest of the contents.
    pub content: Digest,
    /// Protects the file from eviction while held.
    pub guard: Box<dyn Send + Sync>,
}

impl std::fmt::Debug for WholeFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeFile").field("content", &self.content).finish_non_exhaustive()
    }
}

/// Why file contents cannot be read. Cheap to clone: all waiters of one fetch get a copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The fetch exceeded the deadline.
    #[error("{object} did not come before the read's deadline; is the store reachable?")]
    Timeout {
        /// The object of the store and the range.
        object: String,
    },
    /// The store has no such object.
    #[error("{object} is not in the store; run `inlay verify` on the snapshot")]
    NotFound {
        /// The object of the store.
        object: String,
    },
    /// The store or the index returned invalid data.
    #[error("{object} is damaged: {why}; run `inlay verify` on the snapshot")]
    Corrupt {
        /// The object of the store.
        object: String,
        /// The defect.
        why: String,
    },
    /// The store failed until all retries were used up.
    #[error("{object} could not be fetched: {why}")]
    Unavailable {
        /// The object of the store.
        object: String,
        /// The last error.
        why: String,
    },
    /// The source is shutting down.
    #[error("the mount is being shut down")]
    Shutdown,
}
