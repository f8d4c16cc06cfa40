//! Defines the errors of finding, opening and creating snapshots.

use std::io;
use std::path::PathBuf;

use inlay_store::format::FormatError;
use inlay_store::format::write::WriteError;
use inlay_store::ids::{BlobId, Kind, SnapshotId};
use inlay_store::pack::PackError;
use inlay_store::remote::StoreError;

use inlay_images::import::ImportError;

/// An error about a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The reference is neither a name nor the prefix of an id.
    #[error("no snapshot '{reference}' in {store}; 'inlay snapshots' lists them")]
    Unknown {
        /// The reference.
        reference: String,
        /// Description of the store.
        store: String,
    },
    /// The reference is a prefix of several ids.
    #[error("'{reference}' is ambiguous: {}; give more digits", .ids.join(", "))]
    Ambiguous {
        /// The reference.
        reference: String,
        /// Matching ids, at most five.
        ids: Vec<String>,
    },
    /// The reference is syntactically neither a name nor an id.
    #[error("'{reference}' is neither an id nor a valid name: {why}")]
    BadReference {
        /// The reference.
        reference: String,
        /// The defect.
        why: String,
    },
    /// The index and the id differ in kind.
    #[error("{id} is a snapshot of a {found}, not of a {expected}; the store or the id is wrong",
        expected = id.kind)]
    Kind {
        /// The id.
        id: SnapshotId,
        /// Kind according to the index.
        found: Kind,
    },
    /// The index is unusable.
    #[error("{id}: {source}")]
    Index {
        /// Id of the snapshot.
        id: SnapshotId,
        /// The defect.
        source: FormatError,
    },
    /// A blob's chunk table is unusable.
    #[error("blob {blob}: {source}")]
    Toc {
        /// Id of the blob.
        blob: String,
        /// The defect.
        source: FormatError,
    },
    /// A blob does not match its id.
    #[error("blob {blob}: its bytes are damaged")]
    Blob {
        /// Id of the blob.
        blob: BlobId,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The import failed.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Packing failed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Writing the index failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A local file operation failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl SnapshotError {
    /// Returns a closure that adds the path to an I/O error.
    pub(super) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
