//! Errors of commands, and their exit codes.

use std::io;

use inlay_fusefs::ContentError;
use inlay_images::export::ExportError;
use inlay_snapshots::SnapshotError;
use inlay_snapshots::host::HostError;
use inlay_store::format::FormatError;
use inlay_store::remote::StoreError;

use crate::daemon::{ClientError, DaemonError};

/// Error of a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The store or the state could not be opened.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A snapshot could not be found, opened or created.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A store request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index of a snapshot is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// File contents could not be read.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// An export failed.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The daemon refused a request, or could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon or the keeper failed in this process.
    #[error(transparent)]
    Daemon(Box<DaemonError>),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] inlay_mounts::MountError),
    /// A sandbox operation failed.
    #[error(transparent)]
    Sandbox(#[from] inlay_sandbox::SandboxError),
    /// A benchmark failed.
    #[error(transparent)]
    Bench(#[from] inlay_bench::BenchError),
    /// A path inside a snapshot could not be resolved, or has the wrong type.
    #[error("{snapshot}:{path}: {why}")]
    Path {
        /// Snapshot.
        snapshot: String,
        /// Path in the snapshot.
        path: String,
        /// Reason.
        why: &'static str,
    },
    /// The connection to a program was lost, or systemd could not start the daemon.
    #[error("{0}")]
    Cut(String),
    /// Objects in the store or the cache are missing or damaged.
    #[error("{0}")]
    Damaged(String),
    /// A cache operation is not possible.
    #[error("{0}")]
    Cache(String),
    /// A profile does not exist, is unreadable, or could not be created.
    #[error("{0}")]
    Profile(String),
    /// Standard output could not be written.
    #[error("writing the output: {0}")]
    Output(#[from] io::Error),
    /// An output file could not be written.
    #[error("can't write {}: {error}", path.display())]
    Written {
        /// Path of the file.
        path: std::path::PathBuf,
        /// Cause.
        error: io::Error,
    },
    /// A sealed snapshot is not in its store, or its name was not moved.
    #[error("{}", not_in_sync(*waiting, *failing, *damaged, *names))]
    NotInSync {
        /// Number of snapshots waiting on this host.
        waiting: usize,
        /// Number of these that failed to ship so far.
        failing: usize,
        /// Number of damaged files.
        damaged: usize,
        /// Number of names not moved because of a conflict.
        names: usize,
    },
    /// The program exited with a code other than 0.
    #[error("the program has ended with exit code {0}")]
    Ended(u8),
    /// The program could not be started.
    #[error("{error}")]
    NotRun {
        /// Exit code that a shell would return, e.g. 127.
        code: u8,
        /// Cause.
        error: ClientError,
    },
    /// A trace could not be recorded or read.
    #[error("{0}")]
    Trace(String),
    /// A trace file is unreadable, too long or invalid.
    #[error(transparent)]
    TraceFile(#[from] inlay_trace::TraceError),
    /// Invalid arguments.
    #[error("{0}")]
    Usage(String),
}

impl From<DaemonError> for CliError {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(Box::new(error))
    }
}

impl CliError {
    /// Whether the command failed only because the reader of its output is gone (`EPIPE`).
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Converts a program's exit code to a result; codes out of range become 255.
    pub(super) fn ended(code: i32) -> Result<(), Self> {
        match u8::try_from(code) {
            Ok(0) => Ok(()),
            Ok(code) => Err(Self::Ended(code)),
            Err(_) => Err(Self::Ended(u8::MAX)),
        }
    }

    /// Maps the error of a command that runs a program: if the program could not be started, the exit
    /// code is that of a shell.
    pub(super) fn for_program(self) -> Self {
        match self {
            Self::Client(error) => match error.exit_code() {
                Some(code) => Self::NotRun { code, error },
                None => Self::Client(error),
            },
            other => other,
        }
    }

    /// Whether no message is printed, because the exit code is that of the program.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Ended(_))
    }

    /// Returns 2 for invalid arguments, the program's own code if one was run, the code of a shell if
    /// it could not be started, and 1 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Ended(code) | Self::NotRun { code, .. } => *code,
            _ => 1,
        }
    }
}

/// Formats [`CliError::NotInSync`].
fn not_in_sync(waiting: usize, failing: usize, damaged: usize, names: usize) -> String {
    if waiting == 0 && damaged == 0 {
        return format!(
            "everything is in its store, but {names} names were not moved: others had moved or \
             removed them meanwhile"
        );
    }
    format!(
        "not everything is in its store: {waiting} snapshots wait on this host, {failing} of them \
         failed so far, {damaged} files are damaged, {names} names were not moved"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_alone_are_not_said_to_be_missing_snapshots() {
        let text = |waiting, damaged, names| {
            CliError::NotInSync { waiting, failing: 0, damaged, names }.to_string()
        };
        assert!(text(0, 0, 2).starts_with("everything is in its store, but 2 names"));
        for (waiting, damaged) in [(1, 0), (0, 1)] {
            let text = text(waiting, damaged, 2);
            assert!(text.starts_with("not everything is in its store"), "{text}");
        }
    }
}
