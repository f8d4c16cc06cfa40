//! A keeper's session: creates new connections, or resumes those of an earlier keeper from a
//! descriptor store.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, fstat, major, minor};
use rustix::process::Pid;
use rustix::stdio::{dup2_stdin, stdin};

use super::client::SessionId;
use super::device::Connection;
use super::error::KeeperError;
use super::stored::{NotWhole, Stored};
use crate::control::{Asked, ask, cut_connection, has_ended, mounted_minor};
use crate::kind::ConnectionKind;
use crate::ledger::{Ledger, LedgerError, writer};

/// Timeout for the kernel's error on a connection without a holder. It needs no round trip to a
/// server.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Major and minor number of `/dev/fuse`.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// How a keeper begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With new connections.
    Afresh,
    /// With the descriptors of an earlier keeper, received through standard input
    /// ([`Stored::hand_over`]); with new connections if they are unusable.
    WithStored,
}

/// The state that a keeper holds.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) connections: Vec<Connection>,
    pub(super) ledger: OwnedFd,
    pub(super) past: Past,
}

/// History of a session.
#[derive(Debug)]
pub(super) enum Past {
    /// New session.
    None,
    /// Resumed from another keeper.
    Another {
        /// Whether the kernel has got its first reply.
        was_served: bool,
        /// A process that still serves it.
        server: Option<(Pid, OwnedFd)>,
    },
}

/// Why a session cannot be resumed.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    NotWhole(#[from] NotWhole),
    #[error("can't receive them: {0}")]
    Received(#[from] KeeperError),
    #[error("the descriptor named for the {0} connection is not one")]
    NoConnection(ConnectionKind),
    #[error("the {0} connection has ended")]
    Ended(ConnectionKind),
    #[error("the {kind} connection is no longer mounted on {}", mountpoint.display())]
    NotMounted { kind: ConnectionKind, mountpoint: PathBuf },
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("can't inspect them: {0}")]
    Io(#[from] io::Error),
}

impl Session {
    /// Creates or resumes a session. The caller must hold the lock on `dir`.
    pub(super) fn begin(
        begin: Begin,
        dir: &Path,
        kinds: &[ConnectionKind],
    ) -> Result<Self, KeeperError> {
        match begin {
            Begin::Afresh => Self::make(dir, kinds),
            Begin::WithStored => match Self::go_on(dir) {
                Ok(session) => {
                    tracing::warn!(
                        session = %session.id,
                        "the keeper before this one has ended: the session goes on with the \
                         descriptors that were stored"
                    );
                    Ok(session)
                }
                // Another process serves it; two servers would answer from different views of the
                // ledger.
                Err(Unusable::Ledger(LedgerError::Served)) => Err(LedgerError::Served.into()),
                Err(why) => {
                    tracing::warn!(
                        %why,
                        "the stored descriptors are of no use: a new session begins, and what was \
                         mounted has ended"
                    );
                    // The store still holds the descriptors: abort the connections, so that
                    // requests fail instead of waiting for a server that never comes.
                    give_up(dir);
                    Self::make(dir, kinds)
                }
            },
        }
    }

    fn make(dir: &Path, kinds: &[ConnectionKind]) -> Result<Self, KeeperError> {
        let mut made = Self {
            id: new_id()?,
            connections: Vec::new(),
            ledger: Ledger::create()?,
            past: Past::None,
        };
        for kind in kinds {
            match Connection::open(*kind, dir) {
                Ok(connection) => made.connections.push(connection),
                Err(error) => {
                    made.unmount();
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    fn go_on(dir: &Path) -> Result<Self, Unusable> {
        let stored = Stored::receive(stdin())?;
        dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        Self::of(stored, dir)
    }

    fn of(stored: Stored, dir: &Path) -> Result<Self, Unusable> {
        let whole = stored.whole()?;
        let mut connections = Vec::new();
        for (note, device) in whole.connections {
            let (kind, mountpoint) = (note.kind, dir.join(note.kind.name()));
            if !is_fuse(&device)? {
                return Err(Unusable::NoConnection(kind));
            }
            if has_ended(&device) {
                return Err(Unusable::Ended(kind));
            }
            // The connection has not ended, so its device number was not reused.
            if mounted_minor(&mountpoint) != Some(note.minor) {
                return Err(Unusable::NotMounted { kind, mountpoint });
            }
            let init = hex::decode(&note.init)
                .map_err(|error| NotWhole::Note(KeeperError::Message(error.to_string())))?;
            connections.push(Connection { kind, device, init, mountpoint });
        }
        let (ledger, _) = Ledger::open(whole.ledger.try_clone()?)?;
        let server = writer(&whole.ledger)?;
        let past = Past::Another { was_served: ledger.was_served(), server };
        Ok(Self { id: whole.session, connections, ledger: whole.ledger, past })
    }

    /// Unmounts the connections.
    pub(super) fn unmount(&self) {
        self.connections.iter().for_each(Connection::unmount);
    }
}

fn is_fuse(device: impl AsFd) -> io::Result<bool> {
    let stat = fstat(device)?;
    let number = (major(stat.st_rdev), minor(stat.st_rdev));
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == FUSE_DEVICE)
}

/// Checks that a new session would not displace another: no connection mounted below `dir` is
/// served, or waits for a server and is held elsewhere.
pub(super) fn check_no_live_session(dir: &Path) -> Result<(), KeeperError> {
    for kind in ConnectionKind::ALL {
        let mountpoint = dir.join(kind.name());
        if mounted_minor(&mountpoint).is_none() {
            continue;
        }
        match ask(&mountpoint, ANSWER_WITHIN)? {
            Asked::Dead => {}
            Asked::Answered => return Err(KeeperError::Served(dir.to_owned())),
            Asked::Waits => return Err(KeeperError::Held(dir.to_owned())),
        }
    }
    Ok(())
}

/// Aborts the connections mounted below `dir`, even if another process holds them. Waiting requests
/// fail. For sessions with neither keeper nor server.
pub fn give_up(dir: &Path) {
    for kind in ConnectionKind::ALL {
        if let Some(minor) = mounted_minor(&dir.join(kind.name()))
            && let Err(error) = cut_connection(minor)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, %kind, "can't abort an unserved connection");
        }
    }
}

fn new_id() -> io::Result<SessionId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes).into())
}
