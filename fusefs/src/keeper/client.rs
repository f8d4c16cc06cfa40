//! Client side of the keeper.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::KeeperError;
use super::socket;
use super::wire::{Ask, Claim, KeeperStatus, Tell, decode, encode};
use crate::inode::Slot;
use crate::kind::ConnectionKind;
use crate::ledger::{Ledger, Left, Visibility};

/// Interval between attempts to connect to a keeper that is being started.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Identifies a session: slots and inode numbers are only valid within one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// Returns the ID as hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for SessionId {
    fn from(digits: String) -> Self {
        Self(digits)
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A connection to a keeper.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
}

/// The session as granted to the next server. While it is held, this process is the server.
#[derive(Debug)]
pub struct Kept {
    session: SessionId,
    pub(crate) connections: Vec<KeptConnection>,
    pub(crate) ledger: Ledger,
    pub(crate) left: Left,
    pub(crate) link: Link,
}

/// One of the keeper's connections to the kernel.
#[derive(Debug)]
pub struct KeptConnection {
    pub(crate) kind: ConnectionKind,
    pub(crate) device: OwnedFd,
    pub(crate) init: Vec<u8>,
    pub(crate) mountpoint: PathBuf,
}

/// A slot of an earlier server of the session, which the kernel may still have cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptSlot {
    /// Slot number.
    pub slot: Slot,
    /// Its connection.
    pub kind: ConnectionKind,
    /// Whether it was detached and only remains for its current users.
    pub detached: bool,
}

impl Keeper {
    /// Connects to the keeper with its socket at `path`. Fails with `Absent` if none listens.
    pub fn connect(path: &Path) -> Result<Self, KeeperError> {
        match socket::connect_to(path) {
            Ok(socket) => Ok(Self { socket }),
            Err(source) => Err(KeeperError::Absent { path: path.to_owned(), source }),
        }
    }

    /// Connects to a keeper that is being started, retrying for at most `limit`.
    pub fn connect_within(path: &Path, limit: Duration) -> Result<Self, KeeperError> {
        let start = Instant::now();
        loop {
            match Self::connect(path) {
                Err(KeeperError::Absent { .. }) if start.elapsed() < limit => {
                    std::thread::sleep(LOOK_AGAIN);
                }
                other => return other,
            }
        }
    }

    /// Blocks until the keeper grants the session to this process.
    pub fn claim(self, how: Claim) -> Result<Kept, KeeperError> {
        self.ask(Ask::Claim { how })?;
        let (tell, descriptors) = self.receive()?;
        let Tell::Kept { session, connections: notes } = tell else { return Err(odd(&tell)) };
        let mut descriptors = descriptors.into_iter();
        let short = || KeeperError::Message("too few descriptors".into());
        let (ledger, left) = Ledger::open(descriptors.next().ok_or_else(short)?)?;
        let connections = notes
            .into_iter()
            .map(|note| {
                Ok(KeptConnection {
                    kind: note.kind,
                    device: descriptors.next().ok_or_else(short)?,
                    init: hex::decode(&note.init)
                        .map_err(|error| KeeperError::Message(error.to_string()))?,
                    mountpoint: OsString::from_vec(note.mountpoint).into(),
                })
            })
            .collect::<Result<Vec<_>, KeeperError>>()?;
        let link = Link { socket: self.socket, stored: false };
        Ok(Kept { session: SessionId(session), connections, ledger, left, link })
    }

    /// Queries the keeper's status.
    pub fn status(&self) -> Result<KeeperStatus, KeeperError> {
        self.ask(Ask::Status)?;
        match self.receive()? {
            (Tell::Status(status), _) => Ok(status),
            (tell, _) => Err(odd(&tell)),
        }
    }

    /// Ends the session and blocks until the keeper has exited: everything is unmounted.
    pub fn stop(self) -> Result<(), KeeperError> {
        self.ask(Ask::Stop)?;
        match self.receive() {
            Err(KeeperError::Ended) => Ok(()),
            Err(error) => Err(error),
            Ok((tell, _)) => Err(odd(&tell)),
        }
    }

    fn ask(&self, ask: Ask) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(ask)?, &[])?)
    }

    fn receive(&self) -> Result<(Tell, Vec<OwnedFd>), KeeperError> {
        match socket::receive(&self.socket) {
            Ok(Some(received)) => Ok((decode(&received.bytes)?, received.descriptors)),
            Ok(None) => Err(KeeperError::Ended),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(KeeperError::Ended),
            Err(error) => Err(error.into()),
        }
    }
}

impl Kept {
    /// Returns the session ID.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// Records that a descriptor store also holds the session's descriptors. The keeper learns this
    /// once the server is ready; from then on, a signal ends the keeper but not the session.
    pub fn note_stored(&mut self) {
        self.link.stored = true;
    }

    /// Returns the slots that earlier servers of this session left. The next server should be able
    /// to serve them.
    pub fn slots(&self) -> Vec<KeptSlot> {
        let slots = self.left.slots.values().filter_map(|(_, entry)| {
            Some(KeptSlot {
                slot: Slot::new(entry.slot)?,
                kind: entry.kind,
                detached: entry.visibility == Visibility::Detached,
            })
        });
        slots.collect()
    }
}

/// The server's connection to its keeper.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// A descriptor store also holds the session's descriptors.
    stored: bool,
}

/// An event from the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// Another process wants to serve.
    Leave,
    /// The keeper has exited.
    Ended,
}

impl Link {
    /// Tells the keeper that requests are being served.
    pub(crate) fn serving(&self) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(Ask::Serving { stored: self.stored })?, &[])?)
    }

    /// Tells the keeper that this process is about to exit.
    pub(crate) fn goodbye(&self) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(Ask::Goodbye)?, &[])?)
    }

    /// Tells the keeper to end the session.
    pub(crate) fn stop(&self) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(Ask::Stop)?, &[])?)
    }

    /// Blocks until the keeper's next event.
    pub(crate) fn receive(&self) -> LinkEvent {
        loop {
            match socket::receive(self.socket.as_fd()) {
                Ok(Some(received)) => match decode(&received.bytes) {
                    Ok(Tell::Leave) => return LinkEvent::Leave,
                    other => tracing::warn!(?other, "unexpected from the keeper"),
                },
                Ok(None) | Err(_) => return LinkEvent::Ended,
            }
        }
    }

    /// Shuts down the connection, which wakes a thread in `hear`.
    pub(crate) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

fn odd(tell: &Tell) -> KeeperError {
    match tell {
        Tell::Refused { why } => KeeperError::Refused(why.clone()),
        other => KeeperError::Message(format!("unexpected: {other:?}")),
    }
}
