//! What is loaded for one attached snapshot without being asked for: the end that its owner holds.

use std::sync::Arc;

use inlay_store::cache::{Cache, DiskState};

use crate::fetcher::Shared;
use crate::scheduler::{Looked, Plan, Room, Touched, Urgency, WorkFigures, WorkId};
use crate::want::{Class, GroupRef};

/// The groups of a snapshot, by their numbers in its index.
pub trait GroupList: Send + Sync + 'static {
    /// The group with this number; `None` if there is none, or if the index is damaged there: then
    /// whoever reads it gets the error. May read a little from disk.
    fn group(&self, number: u32) -> Option<GroupRef>;
}

/// A snapshot that is being loaded. Dropping it ends that, and cancels what is under way for it
/// alone.
pub struct Loading {
    shared: Arc<Shared>,
    id: WorkId,
}

impl Loading {
    pub(crate) fn begin(shared: &Arc<Shared>, urgency: Urgency, list: Arc<dyn GroupList>) -> Self {
        let now = shared.now();
        let mut table = shared.table.lock();
        table.next_work += 1;
        let id = WorkId(table.next_work);
        if !table.closed {
            table.lists.insert(id, list);
            table.scheduler.attach(now, id, urgency);
        }
        drop(table);
        Self { shared: Arc::clone(shared), id }
    }

    /// Sets, or replaces, the order. Until it is called, what is less urgent waits, for 2 s at most.
    pub fn plan(&self, plan: Plan) {
        self.shared.table.lock().scheduler.plan(self.id, plan);
        self.shared.pump();
    }

    /// A group was read for the first time since the snapshot was attached.
    pub fn touched(&self, touch: &Touched) {
        let now = self.shared.now();
        self.shared.table.lock().scheduler.touched(now, self.id, touch);
        self.shared.pump();
    }

    /// What was done so far.
    pub fn figures(&self) -> WorkFigures {
        let now = self.shared.now();
        self.shared.table.lock().scheduler.work(now, self.id).unwrap_or_default()
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        {
            let mut table = self.shared.table.lock();
            table.lists.remove(&self.id);
            table.scheduler.detach(self.id);
        }
        self.shared.pump();
    }
}

/// A mount under way. Until it is dropped, nothing is begun that nobody waits for.
pub struct Mounting(Arc<Shared>);

impl Mounting {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        shared.table.lock().scheduler.mounting();
        Self(Arc::clone(shared))
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        self.0.table.lock().scheduler.mounted();
        self.0.pump();
    }
}

impl std::fmt::Debug for Mounting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mounting")
    }
}

impl std::fmt::Debug for Loading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Loading").field(&self.id).finish()
    }
}

/// Looks which groups the cache has. Reads from disk. `coming` bytes are on their way into it.
pub(crate) fn look(
    cache: &Cache,
    list: &dyn GroupList,
    numbers: &[u32],
    class: Class,
    coming: u64,
) -> Looked {
    let missing: Vec<(u32, GroupRef)> = numbers
        .iter()
        .filter_map(|number| Some((*number, list.group(*number)?)))
        .filter(|(_, want)| !cache.has(&want.group.digest, want.home.as_ref()))
        .collect();
    let figures = cache.figures();
    let bytes: u64 = missing.iter().map(|(_, want)| u64::from(want.group.raw_len)).sum();
    // What will be wanted one day evicts nothing that was wanted already.
    let full = class == Class::Rest
        && figures.disk_bytes.saturating_add(bytes).saturating_add(coming) > cache.marks().1;
    let failing = figures.disk == DiskState::Failing;
    let room = if !missing.is_empty() && (full || failing) { Room::None } else { Room::There };
    Looked { missing, room }
}
