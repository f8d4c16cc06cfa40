//! Errors of the daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inlay_api::ClientError;
use inlay_base::record::RecordError;
use inlay_capture::CaptureError;
use inlay_fusefs::HostError;
use inlay_fusefs::keeper::KeeperError;
use inlay_mounts::MountError;
use inlay_sandbox::copy::CopyError;
use inlay_sandbox::{SandboxError, SandboxId};
use inlay_snapshots::SnapshotError;
use inlay_snapshots::state::StateError;
use inlay_store::cache::CacheError;
use inlay_store::ids::SnapshotId;
use inlay_store::remote::StoreError;

use super::api::ErrorKind;

/// An error of the daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// An error of the state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// An error of the cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An error of a store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An error of a snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// An error of a mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An error of a sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// An error of taking a snapshot of a sandbox.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// An error of a copy into or out of a sandbox.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// No such sandbox.
    #[error("no sandbox {0:?}; `inlay sandbox ls` lists them")]
    NoSandbox(String),
    /// A record of a sandbox, or of something in it, is damaged.
    #[error(
        "the sandbox {id} is damaged: {why}. Restore the record, or install the inlay that wrote it, then \
         run `inlay daemon --takeover`; `inlay sandbox rm --force {id}` removes the sandbox with all that \
         was changed in it"
    )]
    DamagedSandbox {
        /// The sandbox.
        id: SandboxId,
        /// Which record is damaged, and how.
        why: String,
    },
    /// Another record is damaged.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A sandbox of this name exists.
    #[error("the sandbox name {0:?} is taken; remove that sandbox, or choose another name")]
    NameTaken(String),
    /// The operation requires that the sandbox has ended.
    #[error("the sandbox {0:?} is running; stop it first, or use --force")]
    Runs(String),
    /// The operation requires that the sandbox runs.
    #[error("the sandbox {0:?} is not running; `inlay sandbox ls` shows the state of each")]
    NotRunningSandbox(String),
    /// Running sandboxes prevent the daemon from stopping.
    #[error("sandboxes are running: {}; stop them first, or use --force", .0.join(", "))]
    SandboxesRun(Vec<String>),
    /// Sandboxes could not be stopped.
    #[error(
        "sandboxes run on, though they were stopped: {}; the daemon goes on, its log says why, and \
         `inlay daemon stop --force` tries again", .0.join(", ")
    )]
    SandboxesStay(Vec<String>),
    /// The snapshot's kind can't be a sandbox's root.
    #[error(
        "{0} is a {kind} snapshot and can't be a sandbox's root; mount it into a sandbox with \
         `inlay mount`", kind = .0.kind
    )]
    NoRoot(SnapshotId),
    /// Nothing is mounted at this path of a sandbox.
    #[error("nothing is mounted at {sandbox}:{}; {}", path.display(), elsewhere(moved.as_deref()))]
    NotMountedIn {
        /// The sandbox.
        sandbox: String,
        /// The path in it.
        path: PathBuf,
        /// Current path of the mount that was created here, if it was moved.
        moved: Option<PathBuf>,
    },
    /// The sandbox is being removed.
    #[error("the sandbox {0:?} is being removed")]
    BeingRemoved(String),
    /// The captured directory is on a file system of the sandbox's own.
    #[error("{} is on a file system of the sandbox's own ({kind}), of which no snapshot can be taken; \
        name a directory of its root, or of something mounted with `inlay mount`", path.display())]
    NotOurs {
        /// The path in the sandbox.
        path: PathBuf,
        /// The file system's type.
        kind: String,
    },
    /// The snapshot would refer to blobs that its store does not hold.
    #[error(
        "{snapshot} is in another store, and a snapshot of changes to it must be in the same; \
        take it without --store, or import the image into that store first"
    )]
    OtherStore {
        /// The snapshot that the changes are relative to.
        snapshot: SnapshotId,
    },
    /// The outbox of a store is unusable.
    #[error("can't seal a snapshot: {} can't be used: {why}; `inlay sync` reports it; without \
        `--wait sealed`, snapshots go to the store directly", path.display())]
    Outbox {
        /// The damaged file.
        path: PathBuf,
        /// Why it is unusable.
        why: String,
    },
    /// The parent is unknown on this host: sealing a snapshot sends no request to the store.
    #[error(
        "the parent {reference:?} is not known on this host, and sealing a snapshot makes no \
        request to the store; give its whole id, or use `--wait durable`"
    )]
    ParentElsewhere {
        /// The reference to the parent.
        reference: String,
    },
    /// An error of the FUSE server.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A request to another daemon failed, or one could not be started.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// An error of the keeper.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// An I/O error on a file, socket or process.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another daemon serves the state directory.
    #[error("a daemon (process {pid}) serves {} already; `inlay daemon --takeover` replaces it",
        state.display())]
    Running {
        /// Its process id.
        pid: u32,
        /// The state directory.
        state: PathBuf,
    },
    /// The limit of concurrent traces is reached.
    #[error("{0} traces are being recorded, which is the limit; end one, or wait")]
    Traces(usize),
    /// No such trace.
    #[error("no trace {0:?} is being recorded; it ends with the connection that began it")]
    NoTrace(String),
    /// Mounts prevent the daemon from stopping.
    #[error("{} mounted: {}; unmount them first, or use --force", count(.0.len()), .0.join(", "))]
    Mounted(Vec<String>),
    /// Mounts with damaged records prevent the daemon from stopping.
    #[error("programs may use mounts whose records can't be understood: {}. Restore these, or use --force",
        .0.join("; "))]
    DamagedMounts(Vec<String>),
    /// Requests in flight did not finish.
    #[error("the daemon is in use; try again")]
    Busy,
    /// The process did not end when told to.
    #[error("process {0} did not exit; see its log")]
    DoesNotEnd(u32),
    /// The FUSE connections have ended.
    #[error("the FUSE connections have ended; the next daemon removes the dead mounts")]
    Lost,
    /// The daemon is stopping.
    #[error("the daemon is exiting; try again")]
    Ending,
    /// The caller's deadline passed.
    #[error("the deadline of {0:?} passed; the operation was rolled back")]
    Deadline(Duration),
    /// The limit of open stores is reached.
    #[error("{0} stores are in use, which is the limit; unmount something")]
    Stores(usize),
    /// The request is invalid.
    #[error("{0}")]
    Request(String),
    /// Bug: the table of metrics or the gathered values are inconsistent.
    #[error("can't encode the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Failure of work that several requests waited for.
    #[error("{0}")]
    Shared(std::sync::Arc<Self>),
    /// Bug: a task panicked.
    #[error("a task of the daemon panicked; this is a bug, see its log")]
    Panicked,
}

fn count(mounts: usize) -> String {
    if mounts == 1 { "1 snapshot is".into() } else { format!("{mounts} snapshots are") }
}

fn elsewhere(moved: Option<&Path>) -> String {
    match moved {
        None => "`inlay mounts` lists what is".to_owned(),
        Some(now) => {
            format!("what was mounted there was renamed, and is at {} now", now.display())
        }
    }
}

impl DaemonError {
    /// For `map_err`: wraps an I/O error of the operation `what` on `path`.
    pub(super) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// Returns the exit code of a shell for a program that can't be run, 126 or 127, if that is the
    /// error.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Client(error) => error.exit_code(),
            Self::Sandbox(SandboxError::Exec { code, .. }) => u8::try_from(*code).ok(),
            _ => None,
        }
    }

    /// Returns the category that callers see.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Client(error) => error.kind(),
            Self::Shared(error) => error.kind(),
            Self::Mount(error) => mount_kind(error),
            Self::Sandbox(error) => sandbox_kind(error),
            Self::Capture(error) => capture_kind(error),
            Self::Copy(error) => copy_kind(error),
            Self::Store(error) | Self::Snapshot(SnapshotError::Store(error)) => store_kind(error),
            Self::NotMountedIn { .. } => ErrorKind::NotMounted,
            Self::NameTaken(_)
            | Self::DamagedSandbox { .. }
            | Self::Runs(_)
            | Self::BeingRemoved(_)
            | Self::NotRunningSandbox(_)
            | Self::SandboxesRun(_)
            | Self::Mounted(_)
            | Self::DamagedMounts(_)
            | Self::Running { .. } => ErrorKind::Conflict,
            Self::NoSandbox(_)
            | Self::NoTrace(_)
            | Self::Snapshot(SnapshotError::Unknown { .. }) => ErrorKind::NotFound,
            Self::NoRoot(_)
            | Self::NotOurs { .. }
            | Self::OtherStore { .. }
            | Self::ParentElsewhere { .. }
            | Self::Snapshot(
                SnapshotError::BadReference { .. } | SnapshotError::Ambiguous { .. },
            )
            | Self::Request(_) => ErrorKind::Request,
            Self::Ending => ErrorKind::Ending,
            Self::Deadline(_) => ErrorKind::Deadline,
            Self::Stores(_) | Self::Traces(_) | Self::Busy => ErrorKind::Busy,
            _ => ErrorKind::Failed,
        }
    }
}

/// Returns the category of an I/O error on a path or object that a caller has named.
fn io_kind(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::InvalidInput
        | Io::InvalidFilename
        | Io::NotADirectory
        | Io::IsADirectory
        | Io::PermissionDenied
        | Io::UnexpectedEof
        | Io::InvalidData => ErrorKind::Request,
        Io::AlreadyExists | Io::DirectoryNotEmpty | Io::ReadOnlyFilesystem | Io::ResourceBusy => {
            ErrorKind::Conflict
        }
        _ if error.raw_os_error() == Some(libc::ELOOP) => ErrorKind::Request,
        _ => ErrorKind::Failed,
    }
}

fn copy_kind(error: &CopyError) -> ErrorKind {
    match error {
        CopyError::Io { source, .. } => io_kind(source),
        CopyError::Name { .. }
        | CopyError::Link { .. }
        | CopyError::SeveralTops { .. }
        | CopyError::TooMany { .. }
        | CopyError::TooManyLinks(_)
        | CopyError::TooLong { .. }
        | CopyError::Endless { .. }
        | CopyError::Archive(_)
        | CopyError::Read(_) => ErrorKind::Request,
        CopyError::InTheWay { .. } | CopyError::Shrunk(_) | CopyError::Moved(_) => {
            ErrorKind::Conflict
        }
        CopyError::Write(_) => ErrorKind::Failed,
    }
}

fn store_kind(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::Url { .. }
        | StoreError::Open { .. }
        | StoreError::PlainHttp { .. }
        | StoreError::ReadOnly { .. } => ErrorKind::Request,
        StoreError::NotFound { .. } => ErrorKind::NotFound,
        _ => ErrorKind::Failed,
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
        SandboxError::NotFrozen { .. } => ErrorKind::Busy,
        _ => ErrorKind::Failed,
    }
}

fn capture_kind(error: &CaptureError) -> ErrorKind {
    match error {
        CaptureError::NoDirectory { .. } => ErrorKind::NotFound,
        CaptureError::Pattern { .. } | CaptureError::Limit { .. } | CaptureError::Kind(_) => {
            ErrorKind::Request
        }
        CaptureError::Remounted
        | CaptureError::Changed { .. }
        | CaptureError::Interrupted
        | CaptureError::Cancelled => ErrorKind::Conflict,
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
        MountError::NoSuchOwner(_) | MountError::OnRoot(_) => ErrorKind::Request,
        MountError::MakePath { why, .. } => match io_kind(why) {
            ErrorKind::Failed => ErrorKind::Conflict,
            kind => kind,
        },
        _ => ErrorKind::Failed,
    }
}
