//! The errors of sandboxes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inlay_base::record::RecordError;
use serde::{Deserialize, Serialize};

/// Why a sandbox can't be created, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file operation or syscall failed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb phrase.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An invalid option.
    #[error("{option}: {why}")]
    Option {
        /// Its name, as on the command line.
        option: &'static str,
        /// The reason, and which values are valid.
        why: String,
    },
    /// The image configuration is damaged.
    #[error("the image's configuration is damaged: {0}; import the image again")]
    ImageConfig(String),
    /// Neither the image nor the options specify a command.
    #[error("the image has no default command; give one after '--'")]
    NoCommand,
    /// The user can't be resolved in the sandbox.
    #[error("user {user}: {why}")]
    User {
        /// As requested.
        user: String,
        /// The reason.
        why: String,
    },
    /// The OCI runtime is not installed.
    #[error("the runtime {0} is not installed; install it, or name another with --runtime")]
    RuntimeMissing(String),
    /// The OCI runtime failed.
    #[error("{runtime} can't {what}: {message}")]
    Runtime {
        /// Its name.
        runtime: String,
        /// The operation, as a verb phrase.
        what: &'static str,
        /// Its error message.
        message: String,
    },
    /// The OCI runtime exceeded its deadline and was killed.
    #[error("{runtime} did not {what} within {limit:?} and was killed")]
    RuntimeTimeout {
        /// Its name.
        runtime: String,
        /// The operation, as a verb phrase.
        what: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// A program could not be executed in a sandbox.
    #[error("{message}")]
    Exec {
        /// The reason.
        message: String,
        /// The exit code docker uses: 127 if the program does not exist, 126 if it is not
        /// executable, 125 otherwise.
        code: i32,
    },
    /// The sandbox is not running.
    #[error("the sandbox {0} is not running")]
    NotRunning(String),
    /// The sandbox has already started.
    #[error("the sandbox {0} has already started")]
    Started(String),
    /// The monitor failed or broke the protocol.
    #[error("the monitor of the sandbox {sandbox}: {why}; its log is {}", log.display())]
    Monitor {
        /// The sandbox's id.
        sandbox: String,
        /// The failure.
        why: String,
        /// The path of the monitor's log.
        log: PathBuf,
    },
    /// The monitor refused a request.
    #[error("{0}")]
    Refused(String),
    /// A record is unreadable or damaged. It is left untouched.
    #[error(transparent)]
    Record(RecordError),
    /// A system tool failed.
    #[error("{tool} failed on {}: {message}", path.display())]
    Tool {
        /// Its name.
        tool: &'static str,
        /// The path it was applied to.
        path: PathBuf,
        /// Its stderr, or its exit status.
        message: String,
    },
    /// The freeze did not complete before the deadline.
    #[error(
        "the sandbox {sandbox} could not be frozen within {limit:?} and runs on: {}",
        list(stuck)
    )]
    NotFrozen {
        /// The sandbox's id.
        sandbox: String,
        /// The deadline.
        limit: Duration,
        /// Processes in uninterruptible sleep, as far as found.
        stuck: Vec<Stuck>,
    },
    /// Something is still mounted in the sandbox's directory.
    #[error("{} is still mounted; unmount it, then remove the sandbox again", .0.display())]
    StillMounted(PathBuf),
    /// Processes did not exit after SIGKILL.
    #[error("processes of the sandbox {0} do not end, though they were killed; try again")]
    DoNotEnd(String),
}

/// The maximum number of stuck processes to report.
pub(super) const STUCK_MAX: usize = 4;

/// A process in uninterruptible sleep, which can't be frozen until it wakes, e.g. one that reads a
/// file whose bytes must come from an unresponsive store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stuck {
    /// Its pid in the host's namespace.
    pub pid: u32,
    /// Its name, with control characters escaped.
    pub name: String,
    /// The kernel function in which it sleeps.
    pub waits_in: String,
}

fn list(stuck: &[Stuck]) -> String {
    if stuck.is_empty() {
        return "its processes did not all stop in time; try again".to_owned();
    }
    let stuck = stuck
        .iter()
        .map(|Stuck { pid, name, waits_in }| format!("process {pid} ({name}) waits in {waits_in}"));
    let stuck = stuck.collect::<Vec<_>>().join(", ");
    format!(
        "{stuck}; a process that waits for a store can't be frozen, so try again when it answers"
    )
}

impl SandboxError {
    /// For `map_err`: `what` was attempted on `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// The record at `path` is damaged for the reason `why`.
    pub(super) fn damaged(path: PathBuf, why: impl Into<String>) -> Self {
        Self::Record(RecordError::Damaged { path, why: why.into() })
    }

    /// An invalid `option`.
    pub(crate) fn option(option: &'static str, why: impl Into<String>) -> Self {
        Self::Option { option, why: why.into() }
    }
}
