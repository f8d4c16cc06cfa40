//! Why a command failed, and its exit code.

use std::io;

use inlay_fusefs::ContentError;
use inlay_store::format::FormatError;
use inlay_store::remote::StoreError;

use crate::daemon::DaemonError;
use crate::export::ExportError;
use crate::host::HostError;
use crate::snapshots::SnapshotError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The store or the state could not be opened.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A snapshot can't be found, opened or made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A snapshot's index.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Files' bytes.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// An export.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The daemon.
    #[error(transparent)]
    Daemon(Box<DaemonError>),
    /// A mount.
    #[error(transparent)]
    Mount(#[from] crate::mount::MountError),
    /// A sandbox.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// A benchmark.
    #[error(transparent)]
    Bench(#[from] crate::bench::BenchError),
    /// A path inside a snapshot.
    #[error("{snapshot}:{path}: {why}")]
    Path {
        /// Which snapshot.
        snapshot: String,
        /// Which path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A program's output can't be followed any more.
    #[error("{0}")]
    Cut(String),
    /// Parts of the snapshot are missing or damaged.
    #[error("{0}")]
    Damaged(String),
    /// The cache can't do what was asked of it.
    #[error("{0}")]
    Cache(String),
    /// There is no such profile, or it can't be made.
    #[error("{0}")]
    Profile(String),
    /// Standard output.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    /// The store takes longer than was waited.
    #[error(
        "{waiting} snapshots are not in their stores after {limit:?}; they wait on this host, \
        and the daemon's log says why"
    )]
    NotDurable {
        /// How many.
        waiting: usize,
        /// How long was waited.
        limit: std::time::Duration,
    },
    /// The program that was run has ended with an exit code other than 0.
    #[error("the program has ended with exit code {0}")]
    Ended(u8),
    /// The program can't be run.
    #[error("{error}")]
    NotRun {
        /// What shells have as the exit code for that.
        code: u8,
        /// Why.
        error: Box<DaemonError>,
    },
    /// What was to be traced, or a trace.
    #[error("{0}")]
    Trace(String),
    /// A trace's file.
    #[error(transparent)]
    TraceFile(#[from] crate::trace::TraceError),
    /// The words of the command don't fit together.
    #[error("{0}")]
    Usage(String),
}

impl From<DaemonError> for CliError {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(Box::new(error))
    }
}

impl CliError {
    /// Whether it is only that nobody reads the output any more.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// How a program that was run has ended.
    pub(super) fn ended(code: i32) -> Result<(), Self> {
        match u8::try_from(code) {
            Ok(0) => Ok(()),
            Ok(code) => Err(Self::Ended(code)),
            Err(_) => Err(Self::Ended(u8::MAX)),
        }
    }

    /// The same, of a command that stands for the program that it runs: its exit code is what shells
    /// have for one that can't be run, if it is that.
    pub(super) fn for_program(self) -> Self {
        match self {
            Self::Daemon(error) => match error.exit_code() {
                Some(code) => Self::NotRun { code, error },
                None => Self::Daemon(error),
            },
            other => other,
        }
    }

    /// Whether there is nothing to be said: the exit code is the program's that was run.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Ended(_))
    }

    /// 2 for wrong words; a program's own if one was run, or what shells have for one that can't be;
    /// otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Ended(code) | Self::NotRun { code, .. } => *code,
            _ => 1,
        }
    }
}
