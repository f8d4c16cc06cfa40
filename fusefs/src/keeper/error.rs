//! What can go wrong between a keeper and those who talk to it.

use std::io;
use std::path::PathBuf;

use crate::ledger::LedgerError;

/// Why a keeper can't be run, reached or understood.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper has the directory.
    #[error("another keeper runs for {}", .0.display())]
    Running(PathBuf),
    /// No keeper answers.
    #[error("no keeper answers at {}: {source}", path.display())]
    Absent {
        /// Its socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A step of its start failed.
    #[error("can't {what} {}: {source}", path.display())]
    Start {
        /// Which.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel refuses the mount for lack of rights.
    #[error("mounting on {} needs root (CAP_SYS_ADMIN)", .0.display())]
    NotPermitted(PathBuf),
    /// What is mounted waits for a server, and this is none of its keepers.
    #[error(
        "what is mounted below {} waits for a daemon that was started as a service, whose service \
         manager holds it: start the service, or give it up with `inlay daemon stop --force`",
        .0.display()
    )]
    Held(PathBuf),
    /// What is mounted is served by a process that has no keeper any more.
    #[error(
        "a daemon that has lost its keeper serves what is mounted below {}: end it with `inlay daemon \
         stop` first, or restart the service that it is",
        .0.display()
    )]
    Served(PathBuf),
    /// The connection to the keeper broke.
    #[error("the keeper does not answer: {0}")]
    Socket(#[from] io::Error),
    /// The keeper has ended.
    #[error("the keeper has ended")]
    Ended,
    /// The keeper says no.
    #[error("the keeper refuses: {0}")]
    Refused(String),
    /// A message makes no sense.
    #[error("a message that makes no sense: {0}")]
    Message(String),
    /// The other side is of another version.
    #[error(
        "the other side speaks version {found} of the keeper's protocol, this program {known}; \
         stop the daemon and its keeper, then start it anew"
    )]
    Version {
        /// What came.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// The ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
