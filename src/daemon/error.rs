//! What can go wrong in the daemon, with it, and on the way to it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inlay_fusefs::HostError;
use inlay_fusefs::keeper::KeeperError;
use inlay_store::cache::CacheError;
use inlay_store::remote::StoreError;

use super::api::{ErrorAnswer, ErrorKind};
use crate::mount::MountError;
use crate::snapshots::SnapshotError;
use crate::state::StateError;

/// Why the daemon, or a client of it, can't do something.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The FUSE side.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// A file, a socket or a process.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is one already.
    #[error("a daemon (process {pid}) serves {} already; `inlay daemon --takeover` replaces it",
        state.display())]
    Running {
        /// Its process.
        pid: u32,
        /// Its state directory.
        state: PathBuf,
    },
    /// There is none.
    #[error("no daemon serves {}; `inlay mount` starts one, and so does `inlay daemon`",
        .0.display())]
    NotRunning(PathBuf),
    /// It does not come up.
    #[error("{0}")]
    Start(String),
    /// It neither came up nor failed.
    #[error("the daemon was not ready after {limit:?}; see {}", log.display())]
    StartTimeout {
        /// How long it was given.
        limit: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// The daemon says no.
    #[error("{0}")]
    Refused(ErrorAnswer),
    /// The conversation broke.
    #[error("the daemon does not answer as it should: {0}; see its log")]
    Conversation(String),
    /// No answer in time.
    #[error("the daemon did not answer within {0:?}; `inlay daemon status` tells if it lives")]
    Silent(Duration),
    /// Mounts are in the way of its end.
    #[error("{} mounted: {}; unmount them first, or use --force", count(.0.len()), .0.join(", "))]
    Mounted(Vec<String>),
    /// Requests do not come to an end.
    #[error("mounts are being made at this moment; try again")]
    Busy,
    /// It was told to end, and goes on.
    #[error("process {0} goes on; its log may say why")]
    DoesNotEnd(u32),
    /// The kernel's side has ended.
    #[error("the FUSE connections have ended; what was mounted is cleared away by the next daemon")]
    Lost,
    /// It is about to end.
    #[error("the daemon is about to end; try again")]
    Ending,
    /// Whoever asked waits no longer.
    #[error("it took longer than the {0:?} that its caller waits, and is undone")]
    Deadline(Duration),
    /// Too many stores at once.
    #[error("{0} stores are in use at once, which is as many as there may be; unmount something")]
    Stores(usize),
    /// A request that makes no sense.
    #[error("{0}")]
    Request(String),
    /// The table of metrics, or what was gathered, is no good: a defect of this program.
    #[error("metrics can't be told: {0}")]
    Metrics(#[from] prometheus::Error),
    /// A defect of this program.
    #[error("a task of the daemon has failed after a defect of this program")]
    Panicked,
}

fn count(mounts: usize) -> String {
    if mounts == 1 { "1 snapshot is".into() } else { format!("{mounts} snapshots are") }
}

impl DaemonError {
    /// For `map_err`: `what` was being done to `path`.
    pub(super) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// Which of the cases that callers tell apart it is.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(answer) => answer.kind,
            Self::Mount(error) => mount_kind(error),
            Self::Snapshot(SnapshotError::Unknown { .. }) => ErrorKind::NotFound,
            Self::Snapshot(SnapshotError::BadReference { .. }) | Self::Request(_) => {
                ErrorKind::Request
            }
            Self::Mounted(_) | Self::Running { .. } => ErrorKind::Conflict,
            Self::Ending => ErrorKind::Ending,
            Self::Deadline(_) => ErrorKind::Deadline,
            Self::Stores(_) | Self::Busy => ErrorKind::Busy,
            _ => ErrorKind::Failed,
        }
    }
}

fn mount_kind(error: &MountError) -> ErrorKind {
    match error {
        MountError::NotMounted { .. } => ErrorKind::NotMounted,
        MountError::AlreadyMounted { .. }
        | MountError::BeingMounted(_)
        | MountError::UpperInUse(_)
        | MountError::UpperOfOther { .. }
        | MountError::Covered(_)
        | MountError::Busy(_) => ErrorKind::Conflict,
        MountError::Mountpoint { .. } => ErrorKind::NotFound,
        _ => ErrorKind::Failed,
    }
}
