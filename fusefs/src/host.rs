//! All snapshots of a host, served below the keeper's mounts.

mod prune;
mod serve;
mod server;
mod sweeper;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use fuser::INodeNo;
use inlay_store::format::{FileKind, InodeIdx};
use parking_lot::Mutex;

use crate::control::has_ended;
use crate::counters::{RequestCounters, count};
use crate::error::FsError;
use crate::fs::{DirOffset, Emit, SnapshotFs};
use crate::fuse::Shared;
use crate::inode::{self, Slot};
use crate::kind::ConnectionKind;
use crate::ledger::{Entry, Ledger, LedgerError, Left, Place, SlotEntry, Visibility};
use crate::notify::{Known, forget_listing, forget_name, is_known};
use crate::opens::{Devices, Opened, Opening, Opens};

pub use server::{HostError, HostServer, OpenFiles, Restored, ServeOptions};
pub(crate) use table::{Attached, Table};
pub use table::{Opener, OpenerError};

/// What all connections of a host share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) table: Table,
    pub(crate) shared: Arc<Shared>,
    devices: Devices,
    book: Mutex<Book>,
    /// Why the kernel last refused a backing file: each reason goes to the log once.
    last_failure: Mutex<Option<String>>,
}

/// The ledger, and what is in it.
#[derive(Debug)]
pub(crate) struct Book {
    ledger: Ledger,
    slots: BTreeMap<u32, Place>,
    opens: Opens,
}

impl Host {
    /// The slots that the ledger knows of.
    pub(crate) fn new(
        ledger: Ledger,
        left: &Left,
        devices: Devices,
        counters: Arc<RequestCounters>,
    ) -> Self {
        let slots = left.slots.iter().map(|(slot, (place, _))| (*slot, *place)).collect();
        let opens = Opens::load(&ledger, left);
        Self {
            table: Table::default(),
            shared: Arc::new(Shared::new(counters)),
            devices,
            book: Mutex::new(Book { ledger, slots, opens }),
            last_failure: Mutex::default(),
        }
    }

    /// Puts a snapshot into a slot that was never used before.
    pub(crate) fn attach(&self, fs: SnapshotFs) -> Result<Slot, LedgerError> {
        let wanted = ConnectionKind::of(&fs);
        let kind =
            if self.devices.contains_key(&wanted) { wanted } else { ConnectionKind::General };
        let slot = {
            let mut book = self.book.lock();
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
        if attached.hide() {
            let mut book = self.book.lock();
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
        if self.let_go_if_unused(&attached) == Known::Yes {
            self.forget_below(&attached);
            self.let_go_if_unused(&attached);
        }
        Ok(Some(attached))
    }

    /// Looks again at the slots that were detached while they were in use. What was in use below
    /// them is remembered by the kernel for as long as it has memory, unless it is told to forget it.
    /// Returns how many are still in use.
    pub(crate) fn sweep(&self) -> usize {
        let detached = self.table.all().into_iter().filter(|attached| !attached.is_visible());
        let left = detached.filter(|attached| {
            self.forget_below(attached);
            self.let_go_if_unused(attached) == Known::Yes
        });
        left.count()
    }

    /// Makes the kernel forget every name in every directory of a slot that it knows. What is in use
    /// stays, and goes with its last use.
    ///
    /// One notice for the slot's own name would do if nothing below it were in use; but what was in
    /// use then is out of the reach of names that lead to it.
    fn forget_below(&self, attached: &Attached) {
        let Some(device) = self.devices.get(&attached.kind()) else { return };
        let Ok(fs) = attached.fs() else { return };
        let number = |inode| inode::number(attached.slot(), inode);
        let mut known = vec![InodeIdx::ROOT];
        let mut next = 0;
        while let Some(dir) = known.get(next).copied() {
            next += 1;
            let outcome = fs.read_dir(dir, DirOffset(0), |item| {
                if item.kind == FileKind::Directory
                    && !matches!(item.name, b"." | b"..")
                    // Checks that it is in no other place, so that there are no circles.
                    && fs.dir_item_attr(dir, item).is_ok()
                    && matches!(is_known(device, number(item.inode)), Ok(Known::Yes))
                {
                    known.push(item.inode);
                }
                Ok(Emit::More)
            });
            if let Err(error) = outcome {
                tracing::debug!(%error, slot = %attached.slot(), "a directory can't be listed");
            }
        }
        // Directories come after those that they are in, and are emptied before them.
        for dir in known.into_iter().rev() {
            let _ = fs.read_dir(dir, DirOffset(0), |item| {
                // Most names are unknown to the kernel.
                let _ = forget_name(device, number(dir), item.name);
                Ok(Emit::More)
            });
        }
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
            if let Some(place) = book.slots.remove(&slot.get())
                && let Err(error) = book.ledger.remove(place)
            {
                tracing::warn!(%error, %slot, "a slot stays in the ledger");
            }
            let Book { ledger, opens, .. } = &mut *book;
            opens.forget_slot(ledger, &self.devices, attached.kind(), slot);
        }
        Known::No
    }

    /// Decides how a large file is opened.
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
        let whole = fs.source().whole(inode);
        let Book { ledger, opens, .. } = &mut *self.book.lock();
        let (opened, failure) = opens.open_with(ledger, &self.devices, opening, whole)?;
        self.note_failure(failure);
        Ok(opened)
    }

    /// A large file was closed.
    pub(crate) fn release(&self, handle: u64) {
        let Book { ledger, opens, .. } = &mut *self.book.lock();
        if let Err(error) = opens.release(ledger, &self.devices, handle) {
            tracing::warn!(%error, "a closed file stays in the ledger");
        }
    }

    /// Keeps the cached files that an earlier server had registered for a slot, now that its
    /// snapshot is open.
    pub(crate) fn keep_registered(&self, kind: ConnectionKind, slot: Slot, fs: &SnapshotFs) {
        let inodes = self.book.lock().opens.unkept(kind, slot);
        for inode in inodes {
            if let Some(whole) = fs.source().whole(inode) {
                self.book.lock().opens.keep(kind, inode::number(slot, inode).0, whole);
            }
        }
    }

    /// Lets go of the cached files that were not needed since `mark`, which an earlier call returned.
    pub(crate) fn close_unused_since(&self, mark: u64) -> u64 {
        let Book { ledger, opens, .. } = &mut *self.book.lock();
        opens.close_unused_since(ledger, &self.devices, mark)
    }

    /// How many large files are open, and how many of them are passed through.
    pub(crate) fn open_counts(&self) -> (usize, usize) {
        self.book.lock().opens.counts()
    }

    fn note_failure(&self, failure: Option<std::io::Error>) {
        let Some(failure) = failure else { return };
        count(&self.shared.counters.passthrough_refused);
        let why = failure.to_string();
        let mut last = self.last_failure.lock();
        if last.as_ref() != Some(&why) {
            tracing::warn!(error = why, "a file is not passed through now: reads go by the server");
            *last = Some(why);
        }
    }

    /// Whether the kernel has ended a connection.
    pub(crate) fn has_ended(&self, kind: ConnectionKind) -> bool {
        self.devices.get(&kind).is_none_or(has_ended)
    }

    fn forget_listing(&self, kind: ConnectionKind) {
        if let Some(device) = self.devices.get(&kind)
            && let Err(error) = forget_listing(device, INodeNo::ROOT)
        {
            tracing::debug!(%error, "the kernel keeps an old listing of slots");
        }
    }
}
