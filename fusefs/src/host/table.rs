//! Which snapshot is in which slot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::ended::{EndOnDrop, Ended};
use crate::error::FsError;
use crate::fs::SnapshotFs;
use crate::inode::Slot;
use crate::kind::ConnectionKind;

/// Opens a snapshot again that an earlier server of the session served. Called once more, later, if
/// it failed.
pub type Opener = Box<dyn Fn() -> Result<SnapshotFs, OpenerError> + Send + Sync>;

/// Why a snapshot could not be opened again.
pub type OpenerError = Box<dyn std::error::Error + Send + Sync>;

/// How long after a failure the next try may come.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A snapshot in its slot. Whoever answers a request holds it while it does.
pub(crate) struct Attached {
    slot: Slot,
    kind: ConnectionKind,
    visible: AtomicBool,
    fs: OnceLock<SnapshotFs>,
    opener: Mutex<Opening>,
    ended: Arc<Ended>,
    /// Dropped last: then the snapshot is gone.
    _end: EndOnDrop,
}

#[derive(Default)]
struct Opening {
    opener: Option<Opener>,
    failed: Option<(Instant, Arc<str>)>,
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
    /// A snapshot that is open.
    pub(crate) fn new(slot: Slot, kind: ConnectionKind, fs: SnapshotFs) -> Self {
        let made = Self::empty(slot, kind, true);
        // It was empty.
        let _ = made.fs.set(fs);
        made
    }

    /// One that is opened when it is first asked for something.
    pub(crate) fn later(slot: Slot, kind: ConnectionKind, visible: bool, opener: Opener) -> Self {
        let made = Self::empty(slot, kind, visible);
        made.opener.lock().opener = Some(opener);
        made
    }

    fn empty(slot: Slot, kind: ConnectionKind, visible: bool) -> Self {
        let ended = Arc::new(Ended::default());
        Self {
            slot,
            kind,
            visible: AtomicBool::new(visible),
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

    /// Whether its name is in the root directory.
    pub(crate) fn is_visible(&self) -> bool {
        self.visible.load(Relaxed)
    }

    /// Takes it out of the root directory. Returns whether it was there.
    pub(crate) fn hide(&self) -> bool {
        self.visible.swap(false, Relaxed)
    }

    /// Tells when nothing of it is in use any more.
    pub(crate) fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }

    /// The snapshot. Who comes first opens it, others wait.
    pub(crate) fn fs(&self) -> Result<&SnapshotFs, FsError> {
        if let Some(fs) = self.fs.get() {
            return Ok(fs);
        }
        let mut opening = self.opener.lock();
        if let Some(fs) = self.fs.get() {
            return Ok(fs);
        }
        let not_open = |why| FsError::NotOpen { slot: self.slot.get(), why };
        if let Some((when, why)) = &opening.failed
            && when.elapsed() < TRY_AGAIN
        {
            return Err(not_open(Arc::clone(why)));
        }
        let Some(opener) = opening.opener.as_ref() else {
            return Err(not_open("there is nothing to open it with".into()));
        };
        match opener() {
            Ok(fs) => {
                opening.opener = None;
                Ok(self.fs.get_or_init(|| fs))
            }
            Err(error) => {
                let why: Arc<str> = error.to_string().into();
                opening.failed = Some((Instant::now(), Arc::clone(&why)));
                Err(not_open(why))
            }
        }
    }
}

/// All slots of a host, whatever connection they are on.
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

    /// Those that can be seen on a connection, from the slot `first` on.
    pub(crate) fn visible_from(&self, kind: ConnectionKind, first: u32) -> Vec<Arc<Attached>> {
        let slots = self.slots.read();
        slots
            .range(first..)
            .map(|(_, attached)| attached)
            .filter(|attached| attached.kind == kind && attached.is_visible())
            .map(Arc::clone)
            .collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Attached>> {
        self.slots.read().values().map(Arc::clone).collect()
    }
}
