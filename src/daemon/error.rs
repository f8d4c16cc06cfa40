//! What can go wrong in the daemon, with it, and on the way to it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inlay_fusefs::HostError;
use inlay_fusefs::keeper::KeeperError;
use inlay_store::cache::CacheError;
use inlay_store::ids::SnapshotId;
use inlay_store::remote::StoreError;

use super::api::{ErrorAnswer, ErrorKind};
use crate::capture::CaptureError;
use crate::copy::CopyError;
use crate::mount::MountError;
use crate::sandbox::SandboxError;
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
    /// A sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A snapshot of a sandbox.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A copy from or to a sandbox.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// There is no such sandbox.
    #[error("there is no sandbox {0:?}; `inlay sandbox ls` lists those there are")]
    NoSandbox(String),
    /// Two sandboxes can't have one name.
    #[error("there is a sandbox {0:?} already; remove it, or choose another name")]
    NameTaken(String),
    /// A sandbox must have ended for this.
    #[error("the sandbox {0:?} runs; stop it first, or use --force")]
    Runs(String),
    /// A sandbox must run for this.
    #[error("the sandbox {0:?} does not run; `inlay sandbox ls` tells how each is")]
    NotRunningSandbox(String),
    /// Sandboxes are in the way of the daemon's end.
    #[error("sandboxes run: {}; stop them first, or use --force", .0.join(", "))]
    SandboxesRun(Vec<String>),
    /// What was given as a root is none.
    #[error(
        "{0} is a {kind} snapshot and can't be a sandbox's root; mount it into a sandbox with \
         `inlay mount`", kind = .0.kind
    )]
    NoRoot(SnapshotId),
    /// Nothing is mounted there in a sandbox.
    #[error("nothing is mounted at {sandbox}:{}; `inlay mounts` lists what is", path.display())]
    NotMountedIn {
        /// The sandbox.
        sandbox: String,
        /// The path in it.
        path: PathBuf,
    },
    /// A captured directory belongs to somebody else.
    #[error("{} is on a file system of the sandbox's own ({kind}), of which no snapshot can be taken; \
        name a directory of its root, or of something mounted with `inlay mount`", path.display())]
    NotOurs {
        /// The path in the sandbox.
        path: PathBuf,
        /// The file system's type.
        kind: String,
    },
    /// A snapshot would refer to what its store does not have.
    #[error(
        "{snapshot} is in another store, and a snapshot of changes to it must be in the same; \
        take it without --store, or import the image into that store first"
    )]
    OtherStore {
        /// What the changes are to.
        snapshot: SnapshotId,
    },
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
    /// As many traces are recorded as there may be.
    #[error("{0} traces are being recorded, which is as many as there may be; end one, or wait")]
    Traces(usize),
    /// There is no such recording.
    #[error("no trace {0:?} is being recorded; it ends with the connection that began it")]
    NoTrace(String),
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

    /// What a shell's exit code is where a program can't be run, if that is what happened.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Refused(answer) => answer.exit_code,
            Self::Sandbox(SandboxError::Exec { code, .. }) => u8::try_from(*code).ok(),
            _ => None,
        }
    }

    /// Which of the cases that callers tell apart it is.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(answer) => answer.kind,
            Self::Mount(error) => mount_kind(error),
            Self::Sandbox(error) => sandbox_kind(error),
            Self::Capture(error) => capture_kind(error),
            Self::Copy(error) if error.is_not_found() => ErrorKind::NotFound,
            Self::NotMountedIn { .. } => ErrorKind::NotMounted,
            Self::NameTaken(_)
            | Self::Runs(_)
            | Self::NotRunningSandbox(_)
            | Self::SandboxesRun(_)
            | Self::Mounted(_)
            | Self::Running { .. } => ErrorKind::Conflict,
            Self::NoSandbox(_)
            | Self::NoTrace(_)
            | Self::Snapshot(SnapshotError::Unknown { .. }) => ErrorKind::NotFound,
            Self::NoRoot(_)
            | Self::NotOurs { .. }
            | Self::OtherStore { .. }
            | Self::Snapshot(SnapshotError::BadReference { .. })
            | Self::Request(_) => ErrorKind::Request,
            Self::Ending => ErrorKind::Ending,
            Self::Deadline(_) => ErrorKind::Deadline,
            Self::Stores(_) | Self::Traces(_) | Self::Busy => ErrorKind::Busy,
            _ => ErrorKind::Failed,
        }
    }
}

fn sandbox_kind(error: &SandboxError) -> ErrorKind {
    match error {
        SandboxError::Option { .. }
        | SandboxError::NoCommand
        | SandboxError::User { .. }
        | SandboxError::RuntimeMissing(_)
        | SandboxError::Exec { .. } => ErrorKind::Request,
        SandboxError::NotRunning(_) | SandboxError::Started(_) => ErrorKind::Conflict,
        _ => ErrorKind::Failed,
    }
}

fn capture_kind(error: &CaptureError) -> ErrorKind {
    match error {
        CaptureError::NoDirectory { .. } => ErrorKind::NotFound,
        CaptureError::Pattern { .. } | CaptureError::Limit { .. } => ErrorKind::Request,
        CaptureError::Subject { source, .. } => match source.downcast_ref::<DaemonError>() {
            Some(error) => error.kind(),
            None => ErrorKind::Failed,
        },
        _ => ErrorKind::Failed,
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
        | MountError::HasMounts { .. }
        | MountError::InTheWay { .. }
        | MountError::Moved(_)
        | MountError::Busy(_) => ErrorKind::Conflict,
        MountError::Mountpoint { .. } | MountError::NoProcess(_) => ErrorKind::NotFound,
        MountError::NoSuchOwner(_) => ErrorKind::Request,
        _ => ErrorKind::Failed,
    }
}
