//! Why a snapshot can't be found, opened or made.

use std::io;
use std::path::PathBuf;

use inlay_store::format::FormatError;
use inlay_store::format::write::WriteError;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::PackError;
use inlay_store::remote::StoreError;

use crate::import::ImportError;

/// An error about a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Neither a name nor the beginning of an id.
    #[error("no snapshot '{reference}' in {store}; 'inlay snapshots' lists what there is")]
    Unknown {
        /// What was given.
        reference: String,
        /// The store.
        store: String,
    },
    /// The beginning of several ids.
    #[error("'{reference}' could be any of {}; give more digits", .ids.join(", "))]
    Ambiguous {
        /// What was given.
        reference: String,
        /// The ids that begin with it, at most five of them.
        ids: Vec<String>,
    },
    /// Neither a name nor an id.
    #[error("'{reference}' is neither an id nor a valid name: {why}")]
    BadReference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// The index says another kind than the id.
    #[error("{id} is a snapshot of a {found}, not of a {expected}; the store or the id is wrong",
        expected = id.kind)]
    Kind {
        /// The id.
        id: SnapshotId,
        /// What the index says.
        found: Kind,
    },
    /// The index can't be used.
    #[error("{id}: {source}")]
    Index {
        /// Which snapshot's.
        id: SnapshotId,
        /// What is wrong.
        source: FormatError,
    },
    /// A blob's table of chunks can't be used.
    #[error("blob {blob}: {source}")]
    Toc {
        /// Which blob's.
        blob: String,
        /// What is wrong.
        source: FormatError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Packing.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Writing the index.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A local file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl SnapshotError {
    /// An error of the file at `path`.
    pub(super) fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
