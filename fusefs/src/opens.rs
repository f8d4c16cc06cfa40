//! Decides how each open of a large file is served: by this server, or by the kernel from the cache
//! file (passthrough).
//!
//! The kernel's rules: while a file is open in plain mode, an open with passthrough fails, and vice
//! versa; while it is open with passthrough, every open must name the same backing file. So all
//! concurrent opens of an inode use one mode, and a registration is kept while any of them lives,
//! across server restarts.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;

use inlay_store::format::InodeIdx;
use inlay_store::ids::Digest;

use crate::content::WholeFile;
use crate::inode::{self, Slot};
use crate::kind::ConnectionKind;
use crate::ledger::{Backing, Entry, Handle, Ledger, LedgerError, LedgerPosition, Left, Mode};

#[cfg(test)]
mod tests;

/// Maximum number of registrations kept without an open file, to make the next open cheaper.
const IDLE_MAX: usize = 256;

/// Flag in the number of a resent request.
pub(crate) const RESENT: u64 = 1 << 63;

/// The kernel's registry of backing files.
pub(crate) trait Registry {
    /// Registers `file` and returns its ID.
    fn register(&self, kind: ConnectionKind, file: &std::fs::File) -> io::Result<u32>;

    /// Closes a registration.
    fn close(&self, kind: ConnectionKind, id: u32) -> io::Result<()>;
}

/// An OPEN request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) kind: ConnectionKind,
    /// Node ID.
    pub(crate) inode: u64,
    /// Expected digest of the contents.
    pub(crate) content: Digest,
    /// Request number.
    pub(crate) unique: u64,
}

/// The reply to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// File handle, by which the file is released.
    pub(crate) handle: u64,
    pub(crate) mode: Mode,
}

type OpenKey = (ConnectionKind, u64);

/// All open large files and all registrations. Mirrors the ledger's records of them.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    inodes: HashMap<OpenKey, Inode>,
    handles: HashMap<LedgerPosition, Open>,
    /// Open files by request number: a request may be resent, because its reply was lost or is
    /// still on its way.
    by_request: HashMap<(ConnectionKind, u64), LedgerPosition>,
    /// Inodes with a registration and without an open file, least recently used first.
    idle: BTreeMap<u64, OpenKey>,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    key: OpenKey,
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
    /// Its ledger record; `None` if it is only known from an open file.
    place: Option<LedgerPosition>,
    /// Protects the file from eviction. After a restart, it is set when the snapshot is reopened.
    file: Option<WholeFile>,
}

impl Opens {
    /// Loads the state left by earlier servers.
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
            opens.by_request.insert((*kind, *unique), *place);
        }
        tracing::debug!(open = opens.handles.len(), file = ?ledger.file(), "read the ledger");
        let keys: Vec<_> = opens.inodes.keys().copied().collect();
        for key in keys {
            opens.settle(key);
        }
        opens
    }

    /// Serves an open that does not depend on the cache file. Returns `None` if it does.
    pub(crate) fn open(
        &mut self,
        ledger: &mut Ledger,
        opening: &Opening,
    ) -> Result<Option<Opened>, LedgerError> {
        // The kernel never reuses a number. The resent request may even arrive first.
        let unique = (opening.kind, opening.unique & !RESENT);
        if let Some(place) = self.by_request.get(&unique).copied()
            && let Some(Open { key, mode, .. }) = self.handles.get(&place).copied()
            && key == (opening.kind, opening.inode)
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

    /// Serves an open after the lookup of the cache file; `whole` is its result.
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

    /// Releases an open file. Idempotent: a resent RELEASE, after a lost reply, is a no-op.
    pub(crate) fn release(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        handle: u64,
    ) -> Result<(), LedgerError> {
        let Some(place) = ledger.place_of(handle) else { return Ok(()) };
        let Some(Open { key, mode, unique }) = self.handles.remove(&place) else { return Ok(()) };
        self.by_request.remove(&(key.0, unique));
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

    /// Protects the cache file of a registration made by an earlier server.
    pub(crate) fn keep(&mut self, kind: ConnectionKind, inode: u64, whole: WholeFile) {
        if let Some(Inode { backing: Some(backing), .. }) = self.inodes.get_mut(&(kind, inode))
            && backing.file.is_none()
            && backing.content == whole.content
        {
            backing.file = Some(whole);
        }
    }

    /// Returns the inodes of a slot with a registration whose file is not protected from eviction.
    pub(crate) fn unkept(&self, kind: ConnectionKind, slot: Slot) -> Vec<InodeIdx> {
        let unkept = |(key, known): (&OpenKey, &Inode)| {
            let (of, inode) = inode::inode(fuser::INodeNo(key.1)).ok()?;
            let backing = known.backing.as_ref()?;
            (key.0 == kind && of == slot && backing.file.is_none()).then_some(inode)
        };
        self.inodes.iter().filter_map(unkept).collect()
    }

    /// Closes registrations without an open file, least recently used first, until `most` are left.
    fn close_idle(&mut self, ledger: &mut Ledger, registry: &impl Registry, most: usize) {
        while self.idle.len() > most {
            let Some((_, key)) = self.idle.first_key_value() else { break };
            self.close(ledger, registry, *key);
        }
    }

    /// Closes registrations not used since `mark`. Returns the mark for the next call.
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

    /// Removes all records of a slot: the kernel has nothing of it any more.
    pub(crate) fn forget_slot(
        &mut self,
        ledger: &mut Ledger,
        registry: &impl Registry,
        kind: ConnectionKind,
        slot: Slot,
    ) {
        let of_slot = |key: &OpenKey| {
            key.0 == kind && inode::inode(fuser::INodeNo(key.1)).is_ok_and(|(of, _)| of == slot)
        };
        let open = self.handles.iter().filter(|(_, open)| of_slot(&open.key));
        for place in open.map(|(place, _)| *place).collect::<Vec<_>>() {
            let number = ledger.handle_number(place);
            if let Err(error) = self.release(ledger, registry, number) {
                tracing::warn!(%error, "can't remove a closed file from the ledger; it stays until the slot is released");
            }
        }
        let keys: Vec<_> = self.inodes.keys().copied().filter(of_slot).collect();
        for key in keys {
            self.close(ledger, registry, key);
        }
    }

    /// Returns the number of open files, and how many use passthrough.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let passed = self.handles.values().filter(|open| open.mode != Mode::Plain).count();
        (self.handles.len(), passed)
    }

    fn inode(&mut self, key: OpenKey) -> &mut Inode {
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

    /// Records an open in the ledger. The reply must not be sent before.
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
            self.by_request.insert((kind, handle.unique), *place);
        }
        self.settle(key);
        let place = added?;
        Ok(Opened { handle: ledger.handle_number(place), mode })
    }

    /// Closes the registration of an inode that is not open.
    fn close(&mut self, ledger: &mut Ledger, registry: &impl Registry, key: OpenKey) {
        let Some(known) = self.inodes.get_mut(&key) else { return };
        if known.plain + known.passed > 0 {
            return;
        }
        if let Some(backing) = known.backing.take() {
            // The ledger first: after a crash in between, an ID that the ledger lacks costs a
            // little memory, while one that the kernel lacks would fail a program's open.
            let removed = backing.place.map_or(Ok(()), |place| ledger.remove(place));
            let closed = removed.map_err(io::Error::other);
            if let Err(error) = closed.and_then(|()| registry.close(key.0, backing.id)) {
                tracing::warn!(%error, "can't unregister a passthrough file; it stays open");
            }
        }
        self.settle(key);
    }

    /// Updates an inode's place after a change: adds it to the idle ones, or removes it.
    fn settle(&mut self, key: OpenKey) {
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

/// The FUSE devices by connection.
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
