//! What can go wrong with a sandbox.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a sandbox can't be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file, directory or system call failed.
    #[error("can't {what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// An option that can't be.
    #[error("{option}: {why}")]
    Option {
        /// Which.
        option: &'static str,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The image's configuration can't be understood.
    #[error("the image's configuration is damaged: {0}; import the image again")]
    ImageConfig(String),
    /// Nothing says what is to run.
    #[error("the image says no command to run; give one after '--'")]
    NoCommand,
    /// The user is not one of the sandbox's.
    #[error("user {user}: {why}")]
    User {
        /// As it was given.
        user: String,
        /// What is wrong.
        why: String,
    },
    /// There is no such runtime.
    #[error("the runtime {0} is not installed; install it, or name another with --runtime")]
    RuntimeMissing(String),
    /// The runtime refused.
    #[error("{runtime} can't {what}: {message}")]
    Runtime {
        /// Which runtime.
        runtime: String,
        /// What it was to do.
        what: &'static str,
        /// What it says.
        message: String,
    },
    /// The runtime did not come back, and was killed.
    #[error("{runtime} did not {what} within {limit:?} and was killed")]
    RuntimeTimeout {
        /// Which runtime.
        runtime: String,
        /// What it was to do.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// A program could not be run in a sandbox.
    #[error("{message}")]
    Exec {
        /// Why.
        message: String,
        /// The exit code that docker has for it: 127 if there is no such program, 126 if it can't be
        /// run, 125 otherwise.
        code: i32,
    },
    /// The sandbox does not run.
    #[error("the sandbox {0} does not run")]
    NotRunning(String),
    /// The sandbox has started already.
    #[error("the sandbox {0} has started already")]
    Started(String),
    /// The sandbox's monitor did something unexpected.
    #[error("the monitor of the sandbox {sandbox}: {why}; its log is {}", log.display())]
    Monitor {
        /// Whose.
        sandbox: String,
        /// What.
        why: String,
        /// Where it writes what it notices.
        log: PathBuf,
    },
    /// A monitor refused what it was asked for.
    #[error("{0}")]
    Refused(String),
    /// A record that can't be read.
    #[error("{} is damaged ({why}); remove the sandbox with `inlay sandbox rm --force`",
        path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A tool of the system failed.
    #[error("{tool} failed on {}: {message}", path.display())]
    Tool {
        /// Which.
        tool: &'static str,
        /// On what.
        path: PathBuf,
        /// What it says.
        message: String,
    },
    /// The freezing did not happen in time.
    #[error("the sandbox {sandbox} could not be frozen within {limit:?}; it runs on")]
    NotFrozen {
        /// Which.
        sandbox: String,
        /// How long was tried.
        limit: Duration,
    },
    /// Something is still mounted in the sandbox's directory.
    #[error("{} is still mounted; unmount it, then remove the sandbox again", .0.display())]
    StillMounted(PathBuf),
    /// Processes that can't be ended.
    #[error("processes of the sandbox {0} do not end, though they were killed; try again")]
    DoNotEnd(String),
}

impl SandboxError {
    /// For `map_err`: `what` was being done to `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// An option that can't be.
    pub(crate) fn option(option: &'static str, why: impl Into<String>) -> Self {
        Self::Option { option, why: why.into() }
    }
}
