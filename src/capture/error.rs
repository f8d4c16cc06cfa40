//! Why a capture fails.

use std::io;
use std::path::PathBuf;

use inlay_store::format::FormatError;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::PackError;
use inlay_store::tree::TreeError;

use super::subject::SubjectError;
use crate::snapshots::SnapshotError;

/// Why there is no snapshot. The subject goes on in every case, and nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The subject does not say what is to be captured, can't be frozen, or did not stay frozen.
    #[error("{doing}: {source}")]
    Subject {
        /// What was asked of it.
        doing: &'static str,
        /// What it says.
        source: SubjectError,
    },
    /// Something of the upper directory can't be read.
    #[error("{path}: {what}: {source}", path = path.display())]
    Read {
        /// Where, inside what is captured.
        path: PathBuf,
        /// What was done.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It changed though the subject was frozen.
    #[error("{path} {what} while the sandbox was frozen: something outside of it writes there; \
        stop that and capture again", path = path.display())]
    Changed {
        /// Where, inside what is captured.
        path: PathBuf,
        /// What happened to it.
        what: &'static str,
    },
    /// There is no such directory.
    #[error("{path} {what}; name a directory of the sandbox", path = path.display())]
    NoDirectory {
        /// The path, inside its view.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// What overlayfs has written into the upper directory makes no sense.
    #[error("{path}: {what}: the upper directory is damaged", path = path.display())]
    Overlay {
        /// Where, inside what is captured.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// More than the limits allow.
    #[error(
        "{what} has more than the {limit} {of} that are allowed; exclude some, or raise the limit"
    )]
    Limit {
        /// What is too large.
        what: String,
        /// Of what it has too much.
        of: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A pattern that is none.
    #[error("--exclude '{pattern}': {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// Only directories and filesystems are captured.
    #[error("a snapshot of a {0} can't be taken of a directory")]
    Kind(Kind),
    /// The snapshot below is not in the store that the new one goes to.
    #[error("{id} is below what is captured, but {store} does not have it; copy it there first")]
    LowerElsewhere {
        /// The snapshot.
        id: SnapshotId,
        /// The store.
        store: String,
    },
    /// An index can't be used.
    #[error("{id}: {source}")]
    Index {
        /// Which snapshot's.
        id: SnapshotId,
        /// What is wrong.
        source: FormatError,
    },
    /// An object does not fit into a tree.
    #[error("{path}: {source}", path = path.display())]
    Tree {
        /// Where, inside what is captured.
        path: PathBuf,
        /// What the tree says.
        source: TreeError,
    },
    /// A file's bytes could not be packed.
    #[error("{path}: {source}", path = path.display())]
    Pack {
        /// Where, inside what is captured.
        path: PathBuf,
        /// What the packer says.
        source: PackError,
    },
    /// A file of this host.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The snapshot could not be published.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The packer.
    #[error(transparent)]
    Packer(#[from] PackError),
    /// Whoever asked for it wanted it no more.
    #[error("the snapshot was cancelled")]
    Cancelled,
}

impl CaptureError {
    pub(super) fn subject(doing: &'static str) -> impl FnOnce(SubjectError) -> Self {
        move |source| Self::Subject { doing, source }
    }
}
