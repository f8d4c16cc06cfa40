//! How each open of a large file is answered: by this server, or by the kernel from the cached file.
//!
//! The kernel has rules. While a file is open and read through the server, an open that passes it
//! through fails, and the other way round; and while it is passed through, every open must name the
//! same registered backing file. So all opens of an inode at one time are of one mode, and a
//! registration is kept while any of them lives, whoever serves.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;

use inlay_store::format::InodeIdx;
use inlay_store::ids::Digest;

use crate::content::WholeFile;
use crate::inode::{self, Slot};
use crate::kind::ConnectionKind;
use crate::ledger::{Backing, Entry, Handle, Ledger, LedgerError, Left, Mode, Place};

#[cfg(test)]
mod tests;

/// How many registrations without an open file are kept, because the next open is cheaper with
/// one.
const IDLE_MAX: usize = 256;

/// Set in the number of a request that the kernel sends once more.
const RESENT: u64 = 1 << 63;

/// Where backing files are registered with the kernel.
pub(crate) trait Registry {
    /// Registers `file`, and returns the id of the registration.
    fn register(&self, kind: ConnectionKind, file: &std::fs::File) -> io::Result<u32>;

    /// Ends a registration.
    fn close(&self, kind: ConnectionKind, id: u32) -> io::Result<()>;
}

/// An open that is to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) kind: ConnectionKind,
    /// As the kernel knows it.
    pub(crate) inode: u64,
    /// What its contents should be.
    pub(crate) content: Digest,
    /// The request's number.
    pub(crate) unique: u64,
}

/// The answer to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The open file's number, by which it is released.
    pub(crate) handle: u64,
    pub(crate) mode: Mode,
}

type Key = (ConnectionKind, u64);

/// All open large files and all registrations. A copy of what the ledger has of them.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    inodes: HashMap<Key, Inode>,
    handles: HashMap<Place, Open>,
    /// Opens that an earlier server may not have answered, by their requests' numbers.
    unanswered: HashMap<(ConnectionKind, u64), Place>,
    /// Inodes with a registration and without an open file, the longest unused first.
    idle: BTreeMap<u64, Key>,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    key: Key,
    mode: Mode,
    unique: u64,
}

#[derive(Debug, Default)]
struct Inode {
    plain: u32,
    passed: u32,
    backing: Option<Registered>,
    idle_since: Option<u64>,
}

#[derive(Debug)]
struct Registered {
    id: u32,
    content: Digest,
    /// Where the ledger has it; nowhere, if only an open file tells of it.
    place: Option<Place>,
    /// Keeps the file from being evicted. After a restart it comes when the snapshot is opened.
    file: Option<WholeFile>,
}

impl Opens {
    /// What earlier servers have left.
    pub(crate) fn load(ledger: &Ledger, left: &Left) -> Self {
        let mut opens = Self::default();
        for (place, Backing { kind, inode, id, content }) in &left.backings {
            let backing =
                Registered { id: *id, content: *content, place: Some(*place), file: None };
            opens.inode((*kind, *inode)).backing = Some(backing);
        }
        for (place, Handle { kind, inode, unique, mode }) in &left.handles {
            let key = (*kind, *inode);
            let known = opens.inode(key);
            match mode {
                Mode::Plain => known.plain += 1,
                Mode::Passthrough(id) => {
                    known.passed += 1;
                    known.backing.get_or_insert(Registered {
                        id: *id,
                        content: Digest::from_bytes([0; 32]),
                        place: None,
                        file: None,
                    });
                }
            }
            opens.handles.insert(*place, Open { key, mode: *mode, unique: *unique });
            opens.unanswered.insert((*kind, *unique), *place);
        }
        tracing::debug!(open = opens.handles.len(), file = ?ledger.file(), "read the ledger");
        let keys: Vec<_> = opens.inodes.keys().copied().collect();
        for key in keys {
            opens.settle(key);
        }
        opens
    }

    /// Answers an open that needs no look for a cached file.
    pub(crate) fn open(
        &mut self,
        ledger: &mut Ledger,
        opening: &Opening,
    ) -> Result<Option<Opened>, LedgerError> {
        let unique = (opening.kind, opening.unique & !RESENT);
        if opening.unique & RESENT != 0
            && let Some(place) = self.unanswered.get(&unique).copied()
            && let Some(Open { mode, .. }) = self.handles.get(&place).copied()
        {
            return Ok(Some(Opened { handle: ledger.handle_number(place), mode }));
        }
        let mode = match self.inodes.get(&(opening.kind, opening.inode)) {
            Some(Inode { plain: 1.., .. }) => Mode::Plain,
            Some(Inode { passed: 1.., backing: Some(backing), .. }) => {
                Mode::Passthrough(backing.id)
            }
            Some(Inode { backing: Some(backing), .. }) if backing.content == opening.content => {
                Mode::Passthrough(backing.id)
            }
            _ => return Ok(None),
        };
        self.record(ledger, opening, mode).map(Some)
    }

    /// Answers an open for which a cached file was looked for, in vain or not.
    pub(crate) fn open_with(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        opening: &Opening,
        whole: Option<WholeFile>,
    ) -> Result<(Opened, Option<io::Error>), LedgerError> {
        // Another thread may have opened it in the meantime.
        if let Some(opened) = self.open(ledger, opening)? {
            return Ok((opened, None));
        }
        self.close(ledger, registry, (opening.kind, opening.inode));
        let (mode, failure) = match whole {
            Some(whole) if whole.content == opening.content => {
                match self.register(ledger, registry, opening, whole) {
                    Ok(id) => (Mode::Passthrough(id), None),
                    // Only this file, and only for now.
                    Err(error) => (Mode::Plain, Some(error)),
                }
            }
            Some(_) | None => (Mode::Plain, None),
        };
        Ok((self.record(ledger, opening, mode)?, failure))
    }

    /// A file was closed. Asked for a second time, because the first answer was lost, it does
    /// nothing.
    pub(crate) fn release(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        handle: u64,
    ) -> Result<(), LedgerError> {
        let Some(place) = ledger.place_of(handle) else { return Ok(()) };
        let Some(Open { key, mode, unique }) = self.handles.remove(&place) else { return Ok(()) };
        self.unanswered.remove(&(key.0, unique));
        let known = self.inode(key);
        match mode {
            Mode::Plain => known.plain = known.plain.saturating_sub(1),
            Mode::Passthrough(_) => known.passed = known.passed.saturating_sub(1),
        }
        self.settle(key);
        let removed = ledger.remove(place);
        self.close_idle(ledger, registry, IDLE_MAX);
        removed
    }

    /// Keeps the cached file of a registration that an earlier server made.
    pub(crate) fn keep(&mut self, kind: ConnectionKind, inode: u64, whole: WholeFile) {
        if let Some(Inode { backing: Some(backing), .. }) = self.inodes.get_mut(&(kind, inode))
            && backing.file.is_none()
            && backing.content == whole.content
        {
            backing.file = Some(whole);
        }
    }

    /// The inodes of a slot whose registrations have nothing that keeps their files.
    pub(crate) fn unkept(&self, kind: ConnectionKind, slot: Slot) -> Vec<InodeIdx> {
        let unkept = |(key, known): (&Key, &Inode)| {
            let (of, inode) = inode::inode(fuser::INodeNo(key.1)).ok()?;
            let backing = known.backing.as_ref()?;
            (key.0 == kind && of == slot && backing.file.is_none()).then_some(inode)
        };
        self.inodes.iter().filter_map(unkept).collect()
    }

    /// Ends registrations without an open file, the longest unused first, until `most` are left.
    fn close_idle(&mut self, ledger: &mut Ledger, registry: &impl Registry, most: usize) {
        while self.idle.len() > most {
            let Some((_, key)) = self.idle.first_key_value() else { break };
            self.close(ledger, registry, *key);
        }
    }

    /// Ends registrations that no file has needed since `mark`, which an earlier call returned.
    pub(crate) fn close_unused_since(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        mark: u64,
    ) -> u64 {
        while let Some((since, key)) = self.idle.first_key_value()
            && *since <= mark
        {
            self.close(ledger, registry, *key);
        }
        self.clock
    }

    /// The kernel has nothing of a slot any more: neither has the ledger.
    pub(crate) fn forget_slot(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        kind: ConnectionKind,
        slot: Slot,
    ) {
        let of_slot = |key: &Key| {
            key.0 == kind && inode::inode(fuser::INodeNo(key.1)).is_ok_and(|(of, _)| of == slot)
        };
        let open = self.handles.iter().filter(|(_, open)| of_slot(&open.key));
        for place in open.map(|(place, _)| *place).collect::<Vec<_>>() {
            let number = ledger.handle_number(place);
            if let Err(error) = self.release(ledger, registry, number) {
                tracing::warn!(%error, "a closed file stays in the ledger");
            }
        }
        let keys: Vec<_> = self.inodes.keys().copied().filter(of_slot).collect();
        for key in keys {
            self.close(ledger, registry, key);
        }
    }

    /// How many files are open, and how many of them are passed through.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let passed = self.handles.values().filter(|open| open.mode != Mode::Plain).count();
        (self.handles.len(), passed)
    }

    fn inode(&mut self, key: Key) -> &mut Inode {
        self.inodes.entry(key).or_default()
    }

    fn register(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        opening: &Opening,
        whole: WholeFile,
    ) -> io::Result<u32> {
        let Opening { kind, inode, content, .. } = *opening;
        let id = registry.register(kind, &whole.file)?;
        let place = match ledger.add(&Entry::Backing(Backing { kind, inode, id, content })) {
            Ok(place) => place,
            Err(error) => {
                registry.close(kind, id)?;
                return Err(io::Error::other(error));
            }
        };
        let backing = Registered { id, content, place: Some(place), file: Some(whole) };
        self.inode((kind, inode)).backing = Some(backing);
        Ok(id)
    }

    /// Notes an open in the ledger: only then may the answer go out.
    fn record(
        &mut self,
        ledger: &mut Ledger,
        opening: &Opening,
        mode: Mode,
    ) -> Result<Opened, LedgerError> {
        let Opening { kind, inode, unique, .. } = *opening;
        let key = (kind, inode);
        let handle = Handle { kind, inode, unique: unique & !RESENT, mode };
        let added = ledger.add(&Entry::Handle(handle));
        if let Ok(place) = &added {
            let known = self.inode(key);
            match mode {
                Mode::Plain => known.plain += 1,
                Mode::Passthrough(_) => known.passed += 1,
            }
            self.handles.insert(*place, Open { key, mode, unique: handle.unique });
        }
        self.settle(key);
        let place = added?;
        Ok(Opened { handle: ledger.handle_number(place), mode })
    }

    /// Ends the registration of an inode that is not open.
    fn close(&mut self, ledger: &mut Ledger, registry: &impl Registry, key: Key) {
        let Some(known) = self.inodes.get_mut(&key) else { return };
        if known.plain + known.passed > 0 {
            return;
        }
        if let Some(backing) = known.backing.take() {
            // The ledger first: an id that nobody knows of costs a little memory, one that the
            // kernel does not know would cost somebody an error.
            let removed = backing.place.map_or(Ok(()), |place| ledger.remove(place));
            let closed = removed.map_err(io::Error::other);
            if let Err(error) = closed.and_then(|()| registry.close(key.0, backing.id)) {
                tracing::warn!(%error, "a registered file stays open");
            }
        }
        self.settle(key);
    }

    /// Puts an inode where it belongs after a change: among the idle ones, or away.
    fn settle(&mut self, key: Key) {
        let Some(known) = self.inodes.get_mut(&key) else { return };
        if let Some(since) = known.idle_since.take() {
            self.idle.remove(&since);
        }
        if known.plain + known.passed > 0 {
            return;
        }
        if known.backing.is_some() {
            self.clock += 1;
            known.idle_since = Some(self.clock);
            self.idle.insert(self.clock, key);
        } else {
            self.inodes.remove(&key);
        }
    }
}

/// The kernel's devices, one for each connection.
pub(crate) type Devices = BTreeMap<ConnectionKind, std::sync::Arc<std::os::fd::OwnedFd>>;

impl Registry for Devices {
    fn register(&self, kind: ConnectionKind, file: &std::fs::File) -> io::Result<u32> {
        let device = self.get(&kind).ok_or(io::ErrorKind::NotFound)?;
        fuser::BackingId::create_raw(device.as_fd(), file.as_fd())
    }

    fn close(&self, kind: ConnectionKind, id: u32) -> io::Result<()> {
        let device = self.get(&kind).ok_or(io::ErrorKind::NotFound)?;
        crate::raw::close_backing(device.as_fd(), id)
    }
}
