//! All snapshots of a host, served below the keeper's mounts.

mod serve;
mod server;
mod table;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::INodeNo;
use inlay_store::format::InodeIdx;
use parking_lot::Mutex;

use crate::counters::RequestCounters;
use crate::fs::SnapshotFs;
use crate::fuse::Shared;
use crate::inode::{self, Slot};
use crate::kind::ConnectionKind;
use crate::ledger::{Entry, Ledger, LedgerError, Place, SlotEntry, Visibility};
use crate::notify::{Known, forget_listing, forget_name, is_known};

pub use server::{HostError, HostServer, Restored, ServeOptions};
pub(crate) use table::{Attached, Table};
pub use table::{Opener, OpenerError};

/// What all connections of a host share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) table: Table,
    pub(crate) shared: Arc<Shared>,
    devices: BTreeMap<ConnectionKind, Arc<OwnedFd>>,
    /// There is none for a single mount that ends with its process.
    book: Option<Mutex<Book>>,
}

/// The ledger, and where each slot's record is in it.
#[derive(Debug)]
pub(crate) struct Book {
    ledger: Ledger,
    slots: BTreeMap<u32, Place>,
}

impl Host {
    /// One snapshot at the root of a mount.
    pub(crate) fn of_one(fs: SnapshotFs, counters: Arc<RequestCounters>) -> Self {
        let table = Table::default();
        table.insert(Attached::new(Slot::ROOT, ConnectionKind::General, fs));
        let shared = Arc::new(Shared::new(counters));
        Self { table, shared, devices: BTreeMap::new(), book: None }
    }

    /// The slots that the ledger knows of.
    pub(crate) fn new(
        ledger: Ledger,
        slots: BTreeMap<u32, Place>,
        devices: BTreeMap<ConnectionKind, Arc<OwnedFd>>,
        counters: Arc<RequestCounters>,
    ) -> Self {
        Self {
            table: Table::default(),
            shared: Arc::new(Shared::new(counters)),
            devices,
            book: Some(Mutex::new(Book { ledger, slots })),
        }
    }

    /// Puts a snapshot into a slot that was never used before.
    pub(crate) fn attach(&self, fs: SnapshotFs) -> Result<Slot, LedgerError> {
        let wanted = ConnectionKind::of(&fs);
        let kind =
            if self.devices.contains_key(&wanted) { wanted } else { ConnectionKind::General };
        let Some(book) = &self.book else { return Err(LedgerError::NoSlots) };
        let slot = {
            let mut book = book.lock();
            let number = book.ledger.take_slot(Slot::LIMIT)?;
            let visibility = Visibility::Attached;
            let place =
                book.ledger.add(&Entry::Slot(SlotEntry { slot: number, kind, visibility }))?;
            book.slots.insert(number, place);
            Slot::new(number).ok_or(LedgerError::NoSlots)?
        };
        self.table.insert(Attached::new(slot, kind, fs));
        self.forget_listing(kind);
        Ok(slot)
    }

    /// Takes a slot out of sight. What is in use of it goes on being served.
    pub(crate) fn detach(&self, slot: Slot) -> Result<Option<Arc<Attached>>, LedgerError> {
        let Some(attached) = self.table.get(slot) else { return Ok(None) };
        if attached.hide()
            && let Some(book) = &self.book
        {
            let mut book = book.lock();
            let (slot, kind) = (slot.get(), attached.kind());
            if let Some(place) = book.slots.get(&slot).copied() {
                let visibility = Visibility::Detached;
                book.ledger.set(place, &Entry::Slot(SlotEntry { slot, kind, visibility }))?;
            }
        }
        if let Some(device) = self.devices.get(&attached.kind()) {
            let name = slot.to_string();
            if let Err(error) = forget_name(device, INodeNo::ROOT, name.as_bytes()) {
                tracing::debug!(%error, %slot, "the kernel keeps a slot's name");
            }
        }
        self.forget_listing(attached.kind());
        self.let_go_if_unused(&attached);
        Ok(Some(attached))
    }

    /// The kernel has forgotten an inode.
    pub(crate) fn forgotten(&self, kind: ConnectionKind, ino: INodeNo) {
        // A directory is in memory for as long as anything below it is, so the root goes last.
        if let Ok((slot, InodeIdx::ROOT)) = inode::inode(ino)
            && let Some(attached) = self.table.get(slot)
            && attached.kind() == kind
            && !attached.is_visible()
        {
            self.let_go_if_unused(&attached);
        }
    }

    /// Drops a detached slot of which the kernel has nothing left.
    pub(crate) fn let_go_if_unused(&self, attached: &Attached) {
        let slot = attached.slot();
        let Some(device) = self.devices.get(&attached.kind()) else { return };
        match is_known(device, inode::number(slot, InodeIdx::ROOT)) {
            Ok(Known::Yes) => return,
            Ok(Known::No) => {}
            // The connection has ended, and with it every use.
            Err(error) => tracing::debug!(%error, %slot, "the kernel does not say"),
        }
        if self.table.remove(slot).is_some()
            && let Some(book) = &self.book
        {
            let mut book = book.lock();
            if let Some(place) = book.slots.remove(&slot.get())
                && let Err(error) = book.ledger.remove(place)
            {
                tracing::warn!(%error, %slot, "a slot stays in the ledger");
            }
        }
    }

    fn forget_listing(&self, kind: ConnectionKind) {
        if let Some(device) = self.devices.get(&kind)
            && let Err(error) = forget_listing(device, INodeNo::ROOT)
        {
            tracing::debug!(%error, "the kernel keeps an old listing of slots");
        }
    }
}
