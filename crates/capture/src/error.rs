//! The errors of captures.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use inlay_snapshots::SnapshotError;
use inlay_store::format::FormatError;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::PackError;
use inlay_store::tree::TreeError;

use super::subject::SubjectError;

/// Why a capture fails. In every case the subject is thawed and nothing of the snapshot is visible.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The subject can't describe itself, can't be frozen, or did not stay frozen.
    #[error("{doing}: {source}")]
    Subject {
        /// The request to it.
        doing: &'static str,
        /// The cause.
        source: SubjectError,
    },
    /// An object in the upper directory can't be read.
    #[error("{path}: {what}: {source}", path = path.display())]
    Read {
        /// The path inside the captured directory.
        path: PathBuf,
        /// The operation.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// An object changed although the subject was frozen.
    #[error("{path} {what} while the sandbox was frozen: something outside of it writes there; \
        stop that and capture again", path = path.display())]
    Changed {
        /// The path inside the captured directory.
        path: PathBuf,
        /// The kind of change.
        what: &'static str,
    },
    /// The subject was repeatedly thawed before the scan was complete.
    #[error(
        "the sandbox did not stand still until everything was looked at, several times: another \
        program freezes and thaws it; stop that and capture again"
    )]
    Interrupted,
    /// The freeze reached its time limit.
    #[error(
        "not everything could be looked at in the {limit:?} that a sandbox may stand still; capture \
        parts of it, or exclude something"
    )]
    TooLong {
        /// The limit.
        limit: Duration,
    },
    /// Something was mounted or unmounted during the capture.
    #[error("the mount at the captured directory changed while the snapshot was taken; try again")]
    Remounted,
    /// The captured path is not a directory.
    #[error("{path} {what}; name a directory of the sandbox", path = path.display())]
    NoDirectory {
        /// The path inside its view.
        path: PathBuf,
        /// The reason, as a verb phrase.
        what: &'static str,
    },
    /// Overlayfs metadata in the upper directory is inconsistent.
    #[error("{path}: {what}: the upper directory is damaged", path = path.display())]
    Overlay {
        /// The path inside the captured directory.
        path: PathBuf,
        /// The inconsistency.
        what: &'static str,
    },
    /// A limit was exceeded.
    #[error("{what} has more than {limit} {of}, the limit; exclude some")]
    Limit {
        /// The object that is too large.
        what: String,
        /// The unit of the limit.
        of: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An invalid exclude pattern.
    #[error("--exclude '{pattern}': {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The reason.
        why: String,
    },
    /// Only directories and filesystems can be captured.
    #[error("a snapshot of a {0} can't be taken of a directory")]
    Kind(Kind),
    /// A lower snapshot is not in the store that the new one goes to.
    #[error("{id} is below what is captured, but {store} does not have it; copy it there first")]
    LowerElsewhere {
        /// The lower snapshot.
        id: SnapshotId,
        /// The store.
        store: String,
    },
    /// An index is damaged.
    #[error("{id}: {source}")]
    Index {
        /// Its snapshot.
        id: SnapshotId,
        /// The cause.
        source: FormatError,
    },
    /// An object does not fit into a tree.
    #[error("{path}: {source}", path = path.display())]
    Tree {
        /// The path inside the captured directory.
        path: PathBuf,
        /// The cause.
        source: TreeError,
    },
    /// A file's content could not be packed.
    #[error("{path}: {source}", path = path.display())]
    Pack {
        /// The path inside the captured directory.
        path: PathBuf,
        /// The cause.
        source: PackError,
    },
    /// A file operation on this host failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The snapshot could not be published.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The packer failed.
    #[error(transparent)]
    Packer(#[from] PackError),
    /// The caller cancelled the capture.
    #[error("the snapshot was cancelled")]
    Cancelled,
}

impl CaptureError {
    pub(super) fn subject(doing: &'static str) -> impl FnOnce(SubjectError) -> Self {
        move |source| Self::Subject { doing, source }
    }
}
