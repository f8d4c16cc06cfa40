//! The keeper, as those see it who talk to it.

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

/// The pause between two looks for a keeper that is being started.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The life of one keeper: slots and inode numbers mean something within one session only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// Its digits.
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

/// What the keeper hands to whoever serves next: for as long as it is held, it is this process's
/// turn.
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

/// A slot that an earlier server of the session has made, and that the kernel may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptSlot {
    /// Its number.
    pub slot: Slot,
    /// Where it lives.
    pub kind: ConnectionKind,
    /// Whether it was detached and is only served to those who use it.
    pub detached: bool,
}

impl Keeper {
    /// Connects to the keeper whose socket is at `path`.
    pub fn connect(path: &Path) -> Result<Self, KeeperError> {
        match socket::connect_to(path) {
            Ok(socket) => Ok(Self { socket }),
            Err(source) => Err(KeeperError::Absent { path: path.to_owned(), source }),
        }
    }

    /// Connects to a keeper that is being started.
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

    /// Waits until it is this process's turn to serve.
    pub fn claim(self, how: Claim) -> Result<Kept, KeeperError> {
        self.ask(Ask::Claim { how })?;
        let (tell, descriptors) = self.hear()?;
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

    /// How the keeper is.
    pub fn status(&self) -> Result<KeeperStatus, KeeperError> {
        self.ask(Ask::Status)?;
        match self.hear()? {
            (Tell::Status(status), _) => Ok(status),
            (tell, _) => Err(odd(&tell)),
        }
    }

    /// Ends the session: everything is unmounted, the keeper ends. Waits for that.
    pub fn stop(self) -> Result<(), KeeperError> {
        self.ask(Ask::Stop)?;
        match self.hear() {
            Err(KeeperError::Ended) => Ok(()),
            Err(error) => Err(error),
            Ok((tell, _)) => Err(odd(&tell)),
        }
    }

    fn ask(&self, ask: Ask) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(ask)?, &[])?)
    }

    fn hear(&self) -> Result<(Tell, Vec<OwnedFd>), KeeperError> {
        match socket::receive(&self.socket) {
            Ok(Some(received)) => Ok((decode(&received.bytes)?, received.descriptors)),
            Ok(None) => Err(KeeperError::Ended),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(KeeperError::Ended),
            Err(error) => Err(error.into()),
        }
    }
}

impl Kept {
    /// Whose life this is.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// Something else keeps the session's descriptors, too: the keeper is told so as soon as they are
    /// served, and from then on a signal ends the keeper and not the session.
    pub fn note_stored(&mut self) {
        self.link.stored = true;
    }

    /// The slots that earlier servers of this session have left: the next one must be able to serve
    /// them.
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

/// The server's line to its keeper.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    /// Something else keeps the session's descriptors, too.
    stored: bool,
}

/// What a server hears from its keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// Another wants to serve.
    Leave,
    /// The keeper has ended.
    Ended,
}

impl Link {
    /// Tells the keeper that the kernel has its answers again.
    pub(crate) fn serving(&self) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(Ask::Serving { stored: self.stored })?, &[])?)
    }

    /// Tells the keeper that this process is about to end.
    pub(crate) fn goodbye(&self) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(Ask::Goodbye)?, &[])?)
    }

    /// Tells the keeper to end it all.
    pub(crate) fn stop(&self) -> Result<(), KeeperError> {
        Ok(socket::send(&self.socket, &encode(Ask::Stop)?, &[])?)
    }

    /// Waits for the next thing that the keeper says.
    pub(crate) fn hear(&self) -> LinkEvent {
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

    /// Wakes whoever hears.
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
