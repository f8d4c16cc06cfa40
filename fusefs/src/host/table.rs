//! Maps slots to attached snapshots.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::error::FsError;
use crate::fs::SnapshotFs;
use crate::inode::Slot;
use crate::kind::ConnectionKind;
use crate::numbers::Numbers;
use crate::unmounted::{EndOnDrop, Ended};

/// Reopens a snapshot that an earlier server of the session served. Called again later if it fails.
pub type Opener = Box<dyn Fn() -> Result<SnapshotFs, OpenerError> + Send + Sync>;

/// Why a snapshot could not be reopened.
pub type OpenerError = Box<dyn std::error::Error + Send + Sync>;

/// Minimum delay between a failure and the next attempt.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A snapshot in its slot. Threads hold a reference while serving a request.
pub(crate) struct Attached {
    slot: Slot,
    kind: ConnectionKind,
    numbers: Numbers,
    visible: AtomicBool,
    /// Queued to be opened on another thread.
    queued: AtomicBool,
    /// A request was left unanswered because it was not open.
    unanswered: AtomicBool,
    fs: OnceLock<SnapshotFs>,
    opener: Mutex<SlotOpening>,
    ended: Arc<Ended>,
    /// Dropped last: signals that the snapshot is gone.
    _end: EndOnDrop,
}

#[derive(Default)]
struct SlotOpening {
    opener: Option<Opener>,
    failed: Option<(Instant, Arc<str>)>,
}

impl SlotOpening {
    fn failed_lately(&self) -> Option<Arc<str>> {
        let (when, why) = self.failed.as_ref()?;
        (when.elapsed() < TRY_AGAIN).then(|| Arc::clone(why))
    }
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached")
            .field("slot", &self.slot)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Attached {
    /// Creates a slot with an open snapshot.
    pub(crate) fn new(slot: Slot, kind: ConnectionKind, numbers: Numbers, fs: SnapshotFs) -> Self {
        let made = Self::empty(slot, kind, numbers, true);
        // It was empty.
        let _ = made.fs.set(fs);
        made
    }

    /// Creates a slot with a snapshot that is opened on its first request.
    pub(crate) fn later(
        slot: Slot,
        kind: ConnectionKind,
        numbers: Numbers,
        visible: bool,
        opener: Opener,
    ) -> Self {
        let made = Self::empty(slot, kind, numbers, visible);
        made.opener.lock().opener = Some(opener);
        made
    }

    fn empty(slot: Slot, kind: ConnectionKind, numbers: Numbers, visible: bool) -> Self {
        let ended = Arc::new(Ended::default());
        Self {
            slot,
            kind,
            numbers,
            visible: AtomicBool::new(visible),
            queued: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            fs: OnceLock::new(),
            opener: Mutex::default(),
            _end: EndOnDrop::new(Arc::clone(&ended)),
            ended,
        }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn kind(&self) -> ConnectionKind {
        self.kind
    }

    /// Returns the inode numbering that programs see.
    pub(crate) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// Returns whether its name is in the root directory.
    pub(crate) fn is_visible(&self) -> bool {
        self.visible.load(Relaxed)
    }

    /// Removes it from the root directory. Returns whether it was there.
    pub(crate) fn hide(&self) -> bool {
        self.visible.swap(false, Relaxed)
    }

    /// Signals that nothing of it is in use any more.
    pub(crate) fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }

    /// Returns the snapshot if it is open, or the recent error of opening it. `None` if it has to
    /// be opened. Never blocks.
    pub(crate) fn now(&self) -> Option<Result<&SnapshotFs, FsError>> {
        if let Some(fs) = self.fs.get() {
            return Some(Ok(fs));
        }
        // The thread with the lock is opening it.
        let opening = self.opener.try_lock()?;
        if let Some(fs) = self.fs.get() {
            return Some(Ok(fs));
        }
        opening.failed_lately().map(|why| Err(self.not_open(why)))
    }

    /// Marks it as queued. Returns whether it was not queued before.
    pub(crate) fn queue_once(&self) -> bool {
        !self.queued.swap(true, SeqCst)
    }

    /// Clears the queued mark after an attempt to open it.
    pub(crate) fn queued_no_more(&self) {
        self.queued.store(false, SeqCst);
    }

    /// Marks that a request was left unanswered until it is open.
    pub(crate) fn leave_unanswered(&self) {
        self.unanswered.store(true, SeqCst);
    }

    /// Returns whether a request was left unanswered since the last call.
    pub(crate) fn was_left_unanswered(&self) -> bool {
        self.unanswered.swap(false, SeqCst)
    }

    fn not_open(&self, why: Arc<str>) -> FsError {
        FsError::NotOpen { slot: self.slot.get(), why }
    }

    /// Returns the snapshot. The first caller opens it, others block. Must not be called on FUSE
    /// threads.
    pub(crate) fn fs(&self) -> Result<&SnapshotFs, FsError> {
        if let Some(fs) = self.fs.get() {
            return Ok(fs);
        }
        let mut opening = self.opener.lock();
        if let Some(fs) = self.fs.get() {
            return Ok(fs);
        }
        if let Some(why) = opening.failed_lately() {
            return Err(self.not_open(why));
        }
        let Some(opener) = opening.opener.as_ref() else {
            return Err(self.not_open("there is nothing to open it with".into()));
        };
        // Nothing but the result is used after a panic. Propagating it would kill the thread that
        // opens snapshots, and this one would count as queued forever.
        let opened = catch_unwind(AssertUnwindSafe(opener));
        match opened.unwrap_or_else(|_| Err("opening it panicked".into())) {
            Ok(fs) => {
                opening.opener = None;
                Ok(self.fs.get_or_init(|| fs))
            }
            Err(error) => {
                let why: Arc<str> = error.to_string().into();
                opening.failed = Some((Instant::now(), Arc::clone(&why)));
                Err(self.not_open(why))
            }
        }
    }
}

/// All slots of a host, on all connections.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: RwLock<BTreeMap<u32, Arc<Attached>>>,
}

impl Table {
    pub(crate) fn get(&self, slot: Slot) -> Option<Arc<Attached>> {
        self.slots.read().get(&slot.get()).map(Arc::clone)
    }

    pub(crate) fn insert(&self, attached: Attached) -> Arc<Attached> {
        let attached = Arc::new(attached);
        self.slots.write().insert(attached.slot.get(), Arc::clone(&attached));
        attached
    }

    pub(crate) fn remove(&self, slot: Slot) -> Option<Arc<Attached>> {
        self.slots.write().remove(&slot.get())
    }

    /// Returns the visible slots of a connection, from the slot `first` on.
    pub(crate) fn visible_from(&self, kind: ConnectionKind, first: u32) -> Vec<Arc<Attached>> {
        let slots = self.slots.read();
        slots
            .range(first..)
            .map(|(_, attached)| attached)
            .filter(|attached| attached.kind == kind && attached.is_visible())
            .map(Arc::clone)
            .collect()
    }

    /// Returns all slots.
    pub(crate) fn all(&self) -> Vec<Arc<Attached>> {
        self.slots.read().values().map(Arc::clone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opener_that_panics_has_failed() {
        let slot = Slot::new(1).unwrap();
        let opener: Opener = Box::new(|| panic!("a test"));
        let attached = Attached::later(slot, ConnectionKind::General, Numbers::PART, true, opener);
        assert!(attached.now().is_none());
        for _ in 0..2 {
            assert!(matches!(attached.fs(), Err(FsError::NotOpen { slot: 1, .. })));
        }
        // Non-blocking callers see the error.
        let Some(Err(FsError::NotOpen { why, .. })) = attached.now() else {
            panic!("not known as failed");
        };
        assert!(why.contains("panicked"), "{why}");
    }
}
