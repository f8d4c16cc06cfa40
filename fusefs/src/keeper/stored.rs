//! Stores a session's descriptors in a descriptor store, such as a service manager's, and restores
//! the session after keeper and server have both exited.
//!
//! The store holds nothing but descriptors. Everything else the next keeper needs is in a memfd
//! among them: see [`Note`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};
use rustix::io::{pread, pwrite};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use super::client::{Kept, SessionId};
use super::error::KeeperError;
use super::socket;
use super::wire::{DESCRIPTORS_MAX, MESSAGE_LEN_MAX, decode, encode};
use crate::control::device_minor;
use crate::kind::ConnectionKind;

const LEDGER: &str = "inlay-ledger";
const NOTE: &str = "inlay-session";
/// Prefix of the name of a connection's descriptor, followed by its kind.
const CONNECTION: &str = "inlay-";

/// Returns the names under which a session's descriptors are stored.
pub fn stored_names() -> Vec<String> {
    let connections = ConnectionKind::ALL.into_iter().map(connection_name);
    [LEDGER.to_owned(), NOTE.to_owned()].into_iter().chain(connections).collect()
}

fn connection_name(kind: ConnectionKind) -> String {
    format!("{CONNECTION}{}", kind.name())
}

/// Descriptors that came back from the store, with their names. Untrusted: nothing but the names
/// has been checked.
#[derive(Debug, Default)]
pub struct Stored {
    named: Vec<(String, OwnedFd)>,
}

/// What a keeper needs to know of a session besides its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) session: String,
    pub(super) connections: Vec<StoredConnection>,
}

/// A connection in a [`Note`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredConnection {
    pub(super) kind: ConnectionKind,
    /// The kernel's INIT request, in hexadecimal digits.
    pub(super) init: String,
    /// Minor device number of the mounted filesystem.
    pub(super) minor: u32,
}

/// The descriptors of a session: complete and without duplicates.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) session: SessionId,
    pub(super) ledger: OwnedFd,
    pub(super) connections: Vec<(StoredConnection, OwnedFd)>,
}

/// Why stored descriptors do not form a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotWhole {
    #[error("'{0}' is missing")]
    Missing(String),
    #[error("'{0}' occurs more than once")]
    Twice(String),
    #[error("'{NOTE}' can't be read: {0}")]
    Note(#[from] KeeperError),
}

/// The message that carries the descriptors to a keeper.
#[derive(Serialize, Deserialize)]
struct HandOver {
    names: Vec<String>,
}

impl Stored {
    /// Selects those of `given` with a session descriptor's name. Closes the others and returns
    /// their names.
    pub fn of(given: Vec<(String, OwnedFd)>) -> (Self, Vec<String>) {
        let ours = stored_names();
        let (named, others): (Vec<_>, Vec<_>) =
            given.into_iter().partition(|(name, _)| ours.contains(name));
        (Self { named }, others.into_iter().map(|(name, _)| name).collect())
    }

    /// Returns whether there are no descriptors.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Returns the session they belong to, if it can be read.
    pub fn session(&self) -> Option<SessionId> {
        let (_, note) = self.named.iter().find(|(name, _)| name == NOTE)?;
        Note::read(note).ok().map(|note| note.session.into())
    }

    /// Returns whether they are exactly what `kept` would store.
    pub fn is_all_of(&self, kept: &Kept) -> bool {
        let mut have: Vec<_> = self.named.iter().map(|(name, _)| name.clone()).collect();
        let kinds = kept.connections.iter().map(|connection| connection_name(connection.kind));
        let mut want: Vec<_> = [LEDGER, NOTE].map(str::to_owned).into_iter().chain(kinds).collect();
        have.sort_unstable();
        want.sort_unstable();
        have == want && self.session().as_ref() == Some(kept.session())
    }

    /// Sends them into a socket. The returned end is the standard input of a keeper that is run
    /// with [`Begin::WithStored`](super::Begin::WithStored).
    pub fn hand_over(&self) -> Result<OwnedFd, KeeperError> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)?;
        // The limit exceeds the number of names, so if it cuts any off, the rest still contains
        // duplicates, which the receiver detects.
        let sent = || self.named.iter().take(DESCRIPTORS_MAX);
        let names = sent().map(|(name, _)| name.clone()).collect();
        let descriptors: Vec<_> = sent().map(|(_, descriptor)| descriptor.as_fd()).collect();
        socket::send(&ours, &encode(HandOver { names })?, &descriptors)?;
        Ok(theirs)
    }

    /// Counterpart of [`Stored::hand_over`].
    pub(super) fn receive(from: impl AsFd) -> Result<Self, KeeperError> {
        let received = socket::receive(from)?.ok_or(KeeperError::Ended)?;
        let HandOver { names } = decode(&received.bytes)?;
        if names.len() != received.descriptors.len() {
            return Err(KeeperError::Message("not as many descriptors as names".into()));
        }
        Ok(Self { named: names.into_iter().zip(received.descriptors).collect() })
    }

    /// Checks that they form a session.
    pub(super) fn whole(self) -> Result<Whole, NotWhole> {
        let mut named = self.named;
        let mut take = |wanted: &str| {
            let is_wanted = |(name, _): &(String, OwnedFd)| name == wanted;
            let place = named.iter().position(is_wanted);
            let place = place.ok_or_else(|| NotWhole::Missing(wanted.to_owned()))?;
            let (name, descriptor) = named.swap_remove(place);
            if named.iter().any(is_wanted) { Err(NotWhole::Twice(name)) } else { Ok(descriptor) }
        };
        let note = Note::read(take(NOTE)?)?;
        let ledger = take(LEDGER)?;
        let mut connections = Vec::new();
        for connection in note.connections {
            let device = take(&connection_name(connection.kind))?;
            connections.push((connection, device));
        }
        Ok(Whole { session: note.session.into(), ledger, connections })
    }
}

impl Kept {
    /// Stores the session's state with `keep`, so that it can outlive the keeper: one descriptor
    /// for each of [`stored_names`] that this session has. Implies [`Kept::note_stored`].
    pub fn store(
        &mut self,
        mut keep: impl FnMut(&str, BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<(), KeeperError> {
        let mut note = Note { session: self.session().to_string(), connections: Vec::new() };
        for connection in &self.connections {
            let minor = device_minor(&connection.mountpoint).ok_or(KeeperError::Ended)?;
            let (kind, init) = (connection.kind, hex::encode(&connection.init));
            note.connections.push(StoredConnection { kind, init, minor });
            keep(&connection_name(kind), connection.device.as_fd())?;
        }
        keep(LEDGER, self.ledger.file())?;
        keep(NOTE, note.write()?.as_fd())?;
        self.note_stored();
        Ok(())
    }
}

impl Note {
    fn write(self) -> Result<OwnedFd, KeeperError> {
        let bytes = encode(self)?;
        let file = memfd_create(NOTE, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(io::Error::from)?;
        if pwrite(&file, &bytes, 0).map_err(io::Error::from)? != bytes.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from)?;
        Ok(file)
    }

    fn read(file: impl AsFd) -> Result<Self, KeeperError> {
        let len = fstat(&file).map_err(io::Error::from)?.st_size;
        let len = usize::try_from(len).ok().filter(|len| *len <= MESSAGE_LEN_MAX);
        let len = len.ok_or_else(|| KeeperError::Message("longer than may be".into()))?;
        let mut bytes = vec![0; len];
        let read = pread(&file, &mut bytes[..], 0).map_err(io::Error::from)?;
        bytes.truncate(read);
        decode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use proptest::prelude::*;

    fn file(bytes: &[u8]) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        pwrite(&file, bytes, 0).unwrap();
        file
    }

    fn note() -> Note {
        let connection = |kind| StoredConnection { kind, init: "00ff".into(), minor: 7 };
        let kinds = [ConnectionKind::General, ConnectionKind::OpenLess];
        Note { session: "5e55".into(), connections: kinds.map(connection).into() }
    }

    /// Returns a session of two connections, with plain files as descriptors.
    fn session() -> Vec<(String, OwnedFd)> {
        vec![
            ("inlay-general".into(), file(b"g")),
            ("inlay-session".into(), note().write().unwrap()),
            ("inlay-ledger".into(), Ledger::create().unwrap()),
            ("inlay-open-less".into(), file(b"o")),
        ]
    }

    #[test]
    fn a_handed_over_session_is_received_whole() {
        let (stored, others) = Stored::of(session());
        assert!(others.is_empty());
        assert_eq!(stored.session(), Some("5e55".to_owned().into()));
        let received = Stored::receive(stored.hand_over().unwrap()).unwrap();
        let whole = received.whole().unwrap();
        assert_eq!(whole.session.as_str(), "5e55");
        let notes: Vec<_> = whole.connections.iter().map(|(note, _)| note.clone()).collect();
        assert_eq!(notes, note().connections);
        for ((_, device), want) in whole.connections.iter().zip([b"g", b"o"]) {
            let mut byte = [0];
            pread(device, &mut byte[..], 0).unwrap();
            assert_eq!(&byte, want);
        }
    }

    #[test]
    fn foreign_descriptors_are_reported_and_not_taken() {
        let mut given = session();
        given.push(("http.socket".into(), file(b"")));
        given.push(("inlay-something-new".into(), file(b"")));
        let (stored, others) = Stored::of(given);
        assert_eq!(others, ["http.socket", "inlay-something-new"]);
        stored.whole().unwrap();
    }

    #[test]
    fn one_that_is_missing_and_one_that_is_there_twice_are_told_by_name() {
        for place in 0..4 {
            let mut given = session();
            let (name, _) = given.remove(place);
            let error = Stored::of(given).0.whole().unwrap_err();
            assert!(matches!(error, NotWhole::Missing(missing) if missing == name));
            let mut given = session();
            let again = given[place].1.try_clone().unwrap();
            given.push((name.clone(), again));
            let stored = Stored::receive(Stored::of(given).0.hand_over().unwrap()).unwrap();
            assert!(matches!(stored.whole().unwrap_err(), NotWhole::Twice(twice) if twice == name));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_note_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let given = vec![("inlay-session".to_owned(), file(&bytes))];
            prop_assert!(Stored::of(given).0.whole().is_err());
        }
    }
}
