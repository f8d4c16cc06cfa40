//! Errors of group fetches.

use std::sync::Arc;
use std::time::Duration;

use inlay_store::format::FormatError;
use inlay_store::ids::BlobId;
use inlay_store::remote::StoreError;

/// A failed group fetch. Cheap to clone: all waiters of one fetch get the same error.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The store request failed.
    #[error("{source} (bytes from {offset} of blob {blob})")]
    Store {
        /// Blob of the group.
        blob: BlobId,
        /// Offset of the group in the blob, in bytes.
        offset: u64,
        /// Error of the store.
        source: Arc<StoreError>,
    },
    /// The store returned bytes that fail verification, on every attempt.
    #[error(
        "blob {blob} is damaged at byte {offset} (fetched {attempts} times): {source}; \
         run `inlay verify` on the snapshot"
    )]
    Corrupt {
        /// Blob of the group.
        blob: BlobId,
        /// Offset of the group in the blob, in bytes.
        offset: u64,
        /// Number of fetches.
        attempts: u32,
        /// Error of the last verification.
        source: Arc<FormatError>,
    },
    /// The fetch exceeded the reader's deadline.
    #[error(
        "bytes from {offset} of blob {blob} did not come within {after:?}; is the store reachable?"
    )]
    Deadline {
        /// Blob of the group.
        blob: BlobId,
        /// Offset of the group in the blob, in bytes.
        offset: u64,
        /// How long the reader waited.
        after: Duration,
    },
    /// The task that fetched or decoded the group panicked: a bug.
    #[error("a fetch of bytes from {offset} of blob {blob} panicked; the log has the reason")]
    Panicked {
        /// Blob of the group.
        blob: BlobId,
        /// Offset of the group in the blob, in bytes.
        offset: u64,
    },
    /// The fetcher is shut down.
    #[error("fetching has been shut down")]
    Shutdown,
}
