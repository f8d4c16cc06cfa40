//! Errors of the daemon's clients.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::wire::{ErrorAnswer, ErrorKind};

/// An error of a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
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
    /// No daemon serves the state directory.
    #[error("no daemon serves {}; `inlay mount` starts one, and so does `inlay daemon`",
        .0.display())]
    NotRunning(PathBuf),
    /// The daemon failed to start.
    #[error("{0}")]
    Start(String),
    /// The daemon neither became ready nor failed.
    #[error("the daemon was not ready after {limit:?}; see {}", log.display())]
    StartTimeout {
        /// The deadline.
        limit: Duration,
        /// The daemon's log.
        log: PathBuf,
    },
    /// The daemon refused the request.
    #[error("{0}")]
    Refused(ErrorAnswer),
    /// The request can't be encoded.
    #[error("{0}")]
    Request(String),
    /// The connection broke, or the answer is malformed.
    #[error("invalid answer from the daemon: {0}; see its log")]
    Conversation(String),
    /// The daemon did not answer in time.
    #[error("the daemon did not answer within {0:?}; `inlay daemon status` checks it")]
    Silent(Duration),
}

impl ClientError {
    /// For `map_err`: wraps an I/O error of the operation `what` on `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        what: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self + use<E> {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: source.into() }
    }

    /// Returns the category of an answer; [`ErrorKind::Failed`] if there is none.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(answer) => answer.kind,
            _ => ErrorKind::Failed,
        }
    }

    /// Returns the exit code of a shell for a program that can't be run, 126 or 127, if that is the
    /// error.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Refused(answer) => answer.exit_code,
            _ => None,
        }
    }
}
