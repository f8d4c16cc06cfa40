//! Serves all snapshots of a host below the keeper's mounts.

mod openers;
mod prune;
mod replay;
mod serve;
mod server;
mod sweeper;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuser::INodeNo;
use inlay_store::format::InodeIdx;
use parking_lot::Mutex;

use crate::control::has_ended;
use crate::counters::{RequestCounters, count};
use crate::error::FsError;
use crate::features::{FuseFeature, FuseFeatures};
use crate::fs::SnapshotFs;
use crate::fuse::Shared;
use crate::inflight::InFlight;
use crate::inode::{self, Slot};
use crate::kind::ConnectionKind;
use crate::ledger::{Entry, Ledger, LedgerError, LedgerPosition, Left, SlotEntry, Visibility};
use crate::notify::{Known, forget_listing, forget_name, is_known};
use crate::numbers::Numbers;
use crate::opens::{Devices, Opened, Opening, Opens};

pub use server::{HostError, HostServer, OpenFiles, Restored, ServeOptions};
pub(crate) use table::{Attached, Table};
pub use table::{Opener, OpenerError};

/// State shared by all connections of a host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) table: Table,
    pub(crate) shared: Arc<Shared>,
    devices: Devices,
    openers: openers::Openers,
    book: Mutex<Book>,
    /// Reason of the kernel's last refusal of a backing file: each reason is logged once.
    last_failure: Mutex<Option<String>>,
    features: FuseFeatures,
}

/// The ledger, with its records in memory.
#[derive(Debug)]
pub(crate) struct Book {
    ledger: Ledger,
    slots: BTreeMap<u32, (LedgerPosition, SlotEntry)>,
    opens: Opens,
}

impl Host {
    /// Returns the snapshot of a slot if it is open. Otherwise starts opening it on another thread
    /// and returns `NotYet`: the request stays unanswered, and the kernel resends it once the
    /// snapshot is open.
    pub(crate) fn ready<'a>(
        self: &Arc<Self>,
        attached: &'a Arc<Attached>,
    ) -> Result<&'a SnapshotFs, FsError> {
        if let Some(outcome) = attached.now() {
            return outcome;
        }
        // The order matters: the opening thread checks for unanswered requests after it finishes.
        attached.leave_unanswered();
        if let Some(outcome) = attached.now() {
            return outcome;
        }
        match self.open_elsewhere(attached) {
            Ok(()) => Err(FsError::NotYet),
            Err(error) => {
                let why = format!("no thread to open it: {error}").into();
                Err(FsError::NotOpen { slot: attached.slot().get(), why })
            }
        }
    }

    /// Creates the host state from the slots in the ledger.
    pub(crate) fn new(
        ledger: Ledger,
        left: &Left,
        devices: Devices,
        counters: Arc<RequestCounters>,
        features: FuseFeatures,
    ) -> io::Result<Self> {
        let slots = left.slots.clone();
        let opens = Opens::load(&ledger, left);
        let in_flight = if features.has(FuseFeature::Resend) {
            None
        } else {
            Some(InFlight::take_over(&ledger.shared_file())?)
        };
        Ok(Self {
            table: Table::default(),
            shared: Arc::new(Shared::new(counters, in_flight)),
            devices,
            openers: openers::Openers::default(),
            book: Mutex::new(Book { ledger, slots, opens }),
            last_failure: Mutex::default(),
            features,
        })
    }

    /// Returns whether a request for the node ID `node` can be answered now. If not, starts opening
    /// its snapshot.
    fn can_answer(self: &Arc<Self>, node: u64) -> bool {
        let attached = inode::inode(INodeNo(node)).ok().and_then(|(slot, _)| self.table.get(slot));
        let Some(attached) = attached else { return true };
        // An error is an answer, too.
        !matches!(self.ready(&attached), Err(FsError::NotYet))
    }

    /// Attaches a snapshot to a slot that was never used before.
    pub(crate) fn attach(&self, fs: SnapshotFs) -> Result<Slot, LedgerError> {
        let wanted = ConnectionKind::of(&fs);
        let kind =
            if self.devices.contains_key(&wanted) { wanted } else { ConnectionKind::General };
        let (slot, numbers) = {
            let mut book = self.book.lock();
            let numbers = if fs.is_part() { Numbers::PART } else { book.numbers_apart(kind, &fs)? };
            let number = book.ledger.take_slot(Slot::LIMIT)?;
            let visibility = Visibility::Attached;
            let entry = SlotEntry { slot: number, kind, visibility, numbers };
            let place = book.ledger.add(&Entry::Slot(entry))?;
            book.slots.insert(number, (place, entry));
            (Slot::new(number).ok_or(LedgerError::NoSlots)?, numbers)
        };
        self.table.insert(Attached::new(slot, kind, numbers, fs));
        self.forget_listing(kind);
        Ok(slot)
    }

    /// Hides a slot. Its files that are in use are still served.
    pub(crate) fn detach(&self, slot: Slot) -> Result<Option<Arc<Attached>>, LedgerError> {
        let Some(attached) = self.table.get(slot) else { return Ok(None) };
        if attached.hide() {
            let Book { ledger, slots, .. } = &mut *self.book.lock();
            if let Some((place, entry)) = slots.get_mut(&slot.get()) {
                entry.visibility = Visibility::Detached;
                ledger.set(*place, &Entry::Slot(*entry))?;
            }
        }
        if let Some(device) = self.devices.get(&attached.kind()) {
            let name = slot.to_string();
            if let Err(error) = forget_name(device, INodeNo::ROOT, name.as_bytes()) {
                tracing::debug!(%error, %slot, "can't invalidate the name of a slot");
            }
        }
        self.forget_listing(attached.kind());
        if self.let_go_if_unused(&attached) == Known::Yes {
            self.forget_below_if_open(&attached);
            self.let_go_if_unused(&attached);
        }
        Ok(Some(attached))
    }

    /// Retries to release slots that were detached while in use. The kernel remembers inodes below
    /// them until memory pressure unless told to forget them. Returns the number of slots still in
    /// use.
    pub(crate) fn sweep(&self) -> usize {
        let detached = self.table.all().into_iter().filter(|attached| !attached.is_visible());
        let left = detached.filter(|attached| {
            self.forget_below(attached);
            self.let_go_if_unused(attached) == Known::Yes
        });
        left.count()
    }

    /// Handles FORGET: the kernel dropped an inode.
    pub(crate) fn forgotten(&self, kind: ConnectionKind, ino: INodeNo) {
        // A directory stays in memory while anything below it does, so the root goes last.
        if let Ok((slot, InodeIdx::ROOT)) = inode::inode(ino)
            && let Some(attached) = self.table.get(slot)
            && attached.kind() == kind
            && !attached.is_visible()
        {
            self.let_go_if_unused(&attached);
        }
    }

    /// Removes a detached slot if the kernel has no inode of it left.
    pub(crate) fn let_go_if_unused(&self, attached: &Attached) -> Known {
        let slot = attached.slot();
        let Some(device) = self.devices.get(&attached.kind()) else { return Known::No };
        match is_known(device, inode::number(slot, InodeIdx::ROOT)) {
            Ok(Known::Yes) => return Known::Yes,
            Ok(Known::No) => {}
            // The connection has ended, and with it every use.
            Err(error) => tracing::debug!(%error, %slot, "the kernel does not say"),
        }
        if self.table.remove(slot).is_some() {
            let mut book = self.book.lock();
            if let Some((place, _)) = book.slots.remove(&slot.get())
                && let Err(error) = book.ledger.remove(place)
            {
                tracing::warn!(%error, %slot, "can't remove a slot from the ledger");
            }
            let Book { ledger, opens, .. } = &mut *book;
            opens.forget_slot(ledger, &self.devices, attached.kind(), slot);
        }
        Known::No
    }

    /// Returns whether the kernel offers `feature` and it is not disabled.
    pub(crate) fn uses(&self, feature: FuseFeature) -> bool {
        self.features.has(feature)
    }

    /// Opens a large file: decides between passthrough and plain mode and records the handle.
    pub(crate) fn open_large(
        &self,
        fs: &SnapshotFs,
        inode: InodeIdx,
        opening: &Opening,
    ) -> Result<Opened, FsError> {
        {
            let Book { ledger, opens, .. } = &mut *self.book.lock();
            if let Some(opened) = opens.open(ledger, opening)? {
                return Ok(opened);
            }
        }
        let whole =
            if self.uses(FuseFeature::Passthrough) { fs.source().whole(inode) } else { None };
        let Book { ledger, opens, .. } = &mut *self.book.lock();
        let (opened, failure) = opens.open_with(ledger, &self.devices, opening, whole)?;
        self.note_failure(failure);
        Ok(opened)
    }

    /// Releases the handle of a large file.
    pub(crate) fn release(&self, handle: u64) {
        let Book { ledger, opens, .. } = &mut *self.book.lock();
        if let Err(error) = opens.release(ledger, &self.devices, handle) {
            tracing::warn!(%error, "can't remove a closed file from the ledger; it stays until the slot is released");
        }
    }

    /// Protects the cache files that an earlier server registered for a slot, now that its snapshot
    /// is open.
    pub(crate) fn keep_registered(&self, kind: ConnectionKind, slot: Slot, fs: &SnapshotFs) {
        let inodes = self.book.lock().opens.unkept(kind, slot);
        for inode in inodes {
            if let Some(whole) = fs.source().whole(inode) {
                self.book.lock().opens.keep(kind, inode::number(slot, inode).0, whole);
            }
        }
    }

    /// Releases the cache files not used since `mark`. Returns the mark for the next call.
    pub(crate) fn close_unused_since(&self, mark: u64) -> u64 {
        let Book { ledger, opens, .. } = &mut *self.book.lock();
        opens.close_unused_since(ledger, &self.devices, mark)
    }

    /// Returns the ledger's memfd.
    fn ledger_file(&self) -> Arc<OwnedFd> {
        self.book.lock().ledger.shared_file()
    }

    /// Returns the number of open large files, and how many use passthrough.
    pub(crate) fn open_counts(&self) -> (usize, usize) {
        self.book.lock().opens.counts()
    }

    fn note_failure(&self, failure: Option<io::Error>) {
        let Some(failure) = failure else { return };
        count(&self.shared.counters.passthrough_refused);
        let why = failure.to_string();
        let mut last = self.last_failure.lock();
        if last.as_ref() != Some(&why) {
            tracing::warn!(error = why, "no passthrough for a file; the daemon answers its reads");
            *last = Some(why);
        }
    }

    /// Returns the device of a connection.
    pub(crate) fn device(&self, kind: ConnectionKind) -> Option<BorrowedFd<'_>> {
        self.devices.get(&kind).map(AsFd::as_fd)
    }

    /// Returns the device of a connection, for replies from other threads.
    pub(crate) fn shared_device(&self, kind: ConnectionKind) -> Option<Arc<OwnedFd>> {
        self.devices.get(&kind).map(Arc::clone)
    }

    /// Returns whether the kernel has ended a connection.
    pub(crate) fn has_ended(&self, kind: ConnectionKind) -> bool {
        self.devices.get(&kind).is_none_or(has_ended)
    }

    fn forget_listing(&self, kind: ConnectionKind) {
        if let Some(device) = self.devices.get(&kind)
            && let Err(error) = forget_listing(device, INodeNo::ROOT)
        {
            tracing::debug!(%error, "can't invalidate the listing of slots");
        }
    }
}

impl Book {
    /// Returns inode numbers for a whole snapshot that overlap no slot of the connection that the
    /// kernel may still remember.
    fn numbers_apart(&self, kind: ConnectionKind, fs: &SnapshotFs) -> Result<Numbers, LedgerError> {
        let taken = self.slots.values().filter_map(|(_, entry)| {
            Some((Slot::new(entry.slot)?, entry.numbers)).filter(|_| entry.kind == kind)
        });
        let (count, seed) = fs.seed();
        Numbers::apart(seed, count, taken).ok_or(LedgerError::NoNumbers)
    }
}
