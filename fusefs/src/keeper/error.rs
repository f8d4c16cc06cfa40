//! Errors of the keeper and its clients.

use std::io;
use std::path::PathBuf;

use crate::ledger::LedgerError;

/// Why a keeper cannot be run or reached, or a message not be understood.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper runs for the directory.
    #[error("another keeper runs for {}", .0.display())]
    Running(PathBuf),
    /// No keeper listens.
    #[error("no keeper answers at {}: {source}", path.display())]
    Absent {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// A step of the keeper's start failed.
    #[error("can't {what} {}: {source}", path.display())]
    Start {
        /// The step.
        what: &'static str,
        /// The path it concerns.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The caller lacks the right to mount.
    #[error("mounting on {} needs root (CAP_SYS_ADMIN)", .0.display())]
    NotPermitted(PathBuf),
    /// An existing mount waits for a server, and its descriptors are held elsewhere.
    #[error(
        "what is mounted below {} waits for a daemon that was started as a service, whose service \
         manager holds it: start the service, or give it up with `inlay daemon stop --force`",
        .0.display()
    )]
    Held(PathBuf),
    /// An existing mount is served by a process that has lost its keeper.
    #[error(
        "a daemon that has lost its keeper serves what is mounted below {}: end it with `inlay daemon \
         stop` first, or restart the service that it is",
        .0.display()
    )]
    Served(PathBuf),
    /// Communication with the keeper failed.
    #[error("the keeper does not answer: {0}")]
    Socket(#[from] io::Error),
    /// The keeper has exited.
    #[error("the keeper has exited")]
    Ended,
    /// The keeper refused the request.
    #[error("the keeper refused: {0}")]
    Refused(String),
    /// A message is malformed or unexpected.
    #[error("invalid message: {0}")]
    Message(String),
    /// The other side has a different protocol version.
    #[error(
        "the other side speaks version {found} of the keeper's protocol, this program {known}; \
         stop the daemon and its keeper, then start it anew"
    )]
    Version {
        /// Version received.
        found: u32,
        /// Version of this program.
        known: u32,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
