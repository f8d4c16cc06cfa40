//! Why a group could not be had.

use std::sync::Arc;
use std::time::Duration;

use inlay_store::format::FormatError;
use inlay_store::ids::BlobId;
use inlay_store::remote::StoreError;

/// Why a group could not be had. Cheap to clone: all who wait for one fetch get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// The store did not give the bytes.
    #[error("{source} (bytes from {offset} of blob {blob})")]
    Store {
        /// Of which blob.
        blob: BlobId,
        /// Where the group begins in it, in bytes.
        offset: u64,
        /// What the store says.
        source: Arc<StoreError>,
    },
    /// The store gave other bytes than the snapshot promises, each time it was asked.
    #[error(
        "blob {blob} is damaged at byte {offset} (fetched {attempts} times): {source}; \
         run `inlay verify` on the snapshot"
    )]
    Corrupt {
        /// Which blob.
        blob: BlobId,
        /// Where the group begins in it, in bytes.
        offset: u64,
        /// How often it was fetched.
        attempts: u32,
        /// What is wrong.
        source: Arc<FormatError>,
    },
    /// It did not come in time.
    #[error(
        "bytes from {offset} of blob {blob} did not come within {after:?}; is the store reachable?"
    )]
    Deadline {
        /// Of which blob.
        blob: BlobId,
        /// Where the group begins in it, in bytes.
        offset: u64,
        /// How long it was waited for.
        after: Duration,
    },
    /// The fetcher is shut down.
    #[error("fetching has been shut down")]
    Shutdown,
}
