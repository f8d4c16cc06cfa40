//! Handles for background loading of an attached snapshot and for mounts in progress.

use std::sync::Arc;

use inlay_store::cache::{Cache, DiskState};

use crate::fetcher::Shared;
use crate::scheduler::{Plan, Probed, Room, Touched, Urgency, WorkId, WorkProgress};
use crate::want::{Class, GroupRef};

/// The groups of a snapshot, by group number in its index.
pub trait GroupList: Send + Sync + 'static {
    /// Returns the group with this number. `None` if it does not exist or the index is damaged
    /// there; a later read of it reports the error. May read from disk.
    fn group(&self, number: u32) -> Option<GroupRef>;
}

/// Background loading of one snapshot. Dropping it stops the loading and cancels requests in flight
/// for this snapshot alone.
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

    /// Sets or replaces the load order. Until the first call, lower classes wait, for at most 2 s.
    pub fn plan(&self, plan: Plan) {
        self.shared.table.lock().scheduler.plan(self.id, plan);
        self.shared.pump();
    }

    /// Reports the first read of a group since the snapshot was attached.
    pub fn touched(&self, touch: &Touched) {
        let now = self.shared.now();
        self.shared.table.lock().scheduler.touched(now, self.id, touch);
        self.shared.pump();
    }

    /// Returns progress so far.
    pub fn stats(&self) -> WorkProgress {
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

/// A mount in progress. While one exists, no prefetch request is started.
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

/// Returns the groups of `numbers` that the cache does not hold, and whether the cache has room for
/// them. Reads from disk. `coming` is the number of bytes in flight into the cache.
pub(crate) fn missing_groups(
    cache: &Cache,
    list: &dyn GroupList,
    numbers: &[u32],
    class: Class,
    coming: u64,
) -> Probed {
    let missing: Vec<(u32, GroupRef)> = numbers
        .iter()
        .filter_map(|number| Some((*number, list.group(*number)?)))
        .filter(|(_, want)| !cache.has(&want.group.digest, want.home.as_ref()))
        .collect();
    let stats = cache.stats();
    let bytes: u64 = missing.iter().map(|(_, want)| u64::from(want.group.raw_len)).sum();
    // `Rest` must not evict groups that were already needed.
    let full = class == Class::Rest
        && stats.disk_bytes.saturating_add(bytes).saturating_add(coming) > cache.marks().1;
    let failing = stats.disk == DiskState::Failing;
    let room = if !missing.is_empty() && (full || failing) { Room::None } else { Room::There };
    Probed { missing, room }
}
