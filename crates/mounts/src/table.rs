//! The mount table of a daemon: creates mounts, recovers them after a restart, ends them and cleans
//! up.
//!
//! A mount ends in two steps. First it becomes invisible to users, no matter who unmounts it. Then,
//! for a writable mount, the last user of its overlay exits: only then are its changes released.
//! All functions here may block.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::boot::LastServed;
use inlay_base::inject::{self, Step};
use inlay_base::record::RecordError;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::error::MountError;
use super::ids::Spaces;
use super::mount_id::{Seen, Umount};
use super::owned::Removed;
use super::path::MakePath;
use super::record::{MountRecord, PathText, Standing, View};
use super::registry::Registry;
use super::target::{Caller, Depth, Target};
use super::upper::{Changes, Keep, Upper, throw_away};
use super::wanted::{Hold, Wanted};

/// The number of retries of an unmount that fails with `EBUSY`, and the pause between them.
///
/// A file that a program has just closed may still be open: another thread of the program may be
/// forking, and the child holds a copy of the descriptor for a moment.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The result of an unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmounted {
    /// The mount.
    pub record: MountRecord,
    /// Whether its changes may still be written to.
    pub in_use: bool,
    /// Whether its changes were discarded.
    pub discarded: bool,
}

/// The mounts of a state directory.
pub struct Mounts {
    pub(super) state: PathBuf,
    pub(super) session: String,
    pub(super) registry: Registry,
    pub(super) table: Arc<Mutex<Table>>,
    /// See [`Mounts::settled`].
    pub(super) settled: Arc<Notify>,
    pub(super) spaces: Spaces,
    /// Held while directories created for a mount are removed. Lock order: before `table`.
    pub(super) removing: Mutex<()>,
    /// The mount records that were damaged when this was opened.
    damaged: Vec<RecordError>,
    /// The announcements of created directories that were damaged when this was opened.
    damaged_notes: Vec<RecordError>,
    /// Keeps everything served that a damaged record may refer to.
    pub(super) unclaimed: Mutex<Vec<Hold>>,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) live: Vec<Live>,
    /// Mount points, by namespace, that are reserved for mounts in progress.
    claimed: HashSet<(u64, PathBuf)>,
    /// Ended mounts being cleaned up, by number, with the places they were at.
    pub(super) finishing: HashMap<u64, (u64, PathBuf)>,
    /// Mounts about to be undone, by number.
    pub(super) to_undo: HashSet<u64>,
}

impl Table {
    /// Reports whether anything of a mount is left.
    fn has(&self, seen: &Seen) -> bool {
        self.finishing.contains_key(&seen.number())
            || self.live.iter().any(|live| live.record.seen == *seen)
    }
}

pub(super) struct Live {
    /// The record as created.
    pub(super) record: MountRecord,
    /// Its last known path: its parent directories may have been renamed.
    pub(super) at: PathBuf,
    pub(super) upper: Option<Upper>,
    changes: Changes,
    pub(super) phase: Phase,
    holds: Vec<Hold>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Mounted,
    /// No longer visible; its overlay is polled at `again`, for the next time after twice `pause`.
    Ending {
        again: Instant,
        pause: Duration,
    },
}

/// The reservation of a mount point for one mount, released on drop.
pub struct Claim {
    table: Arc<Mutex<Table>>,
    settled: Arc<Notify>,
    key: (u64, PathBuf),
    pub(super) target: Target,
}

impl Claim {
    /// Returns its path in its namespace: absolute, without symlinks.
    pub fn path(&self) -> &Path {
        &self.key.1
    }

    /// Returns the directory.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Reports whether the directory is still where it was found.
    pub fn is_there(&self) -> bool {
        self.target.is_there()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Remove them before releasing the reservation: a concurrent claim would mount on them.
        self.target.remove_made_now();
        self.table.lock().claimed.remove(&self.key);
        self.settled.notify_waiters();
    }
}

impl Mounts {
    /// Recovers the mounts recorded in `state`. Mounts of another keeper session no longer work and
    /// are cleaned up. `hold` returns the handle that keeps a slot's snapshot served, if it still
    /// is. Damaged records are left in place: see [`Mounts::damaged`].
    pub fn open(
        state: &Path,
        session: &str,
        last: LastServed,
        mut hold: impl FnMut(u32) -> Option<Hold>,
    ) -> Result<Self, MountError> {
        let registry = Registry::open(state)?;
        let mut table = Table::default();
        let mut recorded = registry.list()?;
        recorded.drop_of_earlier_boot(last);
        for record in recorded.mounts {
            let held: Option<Vec<Hold>> = if record.session == session {
                record.slots.iter().map(|slot| hold(*slot)).collect()
            } else {
                None
            };
            match held {
                Some(holds) => table.live.push(Live {
                    at: record.mountpoint.to_path(),
                    upper: None,
                    changes: Changes::Stay,
                    phase: Phase::Mounted,
                    holds,
                    record,
                }),
                None => {
                    if let Err(error) = clear(&registry, &record) {
                        tracing::warn!(%error, "can't remove an unserved mount");
                    }
                }
            }
        }
        let mounts = Self {
            state: state.to_owned(),
            session: session.to_owned(),
            table: Arc::new(Mutex::new(table)),
            settled: Arc::default(),
            spaces: Spaces::default(),
            removing: Mutex::default(),
            damaged: recorded.damaged,
            damaged_notes: registry.sweep_announced(last)?,
            unclaimed: Mutex::default(),
            registry,
        };
        mounts.adopt_uppers();
        mounts.undo_unconfirmed();
        mounts.sweep_scratch();
        Ok(mounts)
    }

    /// Returns the damaged mount records that still exist. Programs may use such mounts, so they
    /// count as mounted until the record is removed.
    pub fn damaged(&self) -> Vec<&RecordError> {
        self.damaged.iter().filter(|error| fs::symlink_metadata(error.path()).is_ok()).collect()
    }

    /// Returns all damaged records that still exist, including those that are not of a mount.
    pub fn damaged_records(&self) -> Vec<&RecordError> {
        let all = self.damaged.iter().chain(&self.damaged_notes);
        all.filter(|error| fs::symlink_metadata(error.path()).is_ok()).collect()
    }

    /// Keeps `hold` for snapshots that no intact record claims, as long as there are damaged
    /// records.
    pub fn hold_unclaimed(&self, hold: Hold) {
        if !self.damaged().is_empty() {
            self.unclaimed.lock().push(hold);
        }
    }

    /// Reports whether nothing is mounted, being mounted or being cleaned up.
    pub fn is_empty(&self) -> bool {
        if !self.damaged().is_empty() {
            return false;
        }
        let table = self.table.lock();
        table.live.is_empty() && table.claimed.is_empty() && table.finishing.is_empty()
    }

    /// Finds the directory at `path` as the caller sees it, or creates it, and reserves it.
    /// Directories created are removed again if the claim is dropped.
    pub fn claim(&self, caller: &Caller, path: &Path, make: MakePath) -> Result<Claim, MountError> {
        let target = Target::find(caller, path, make, &self.registry)?;
        let key = (target.namespace(), target.path().to_owned());
        // A mount that has ended unnoticed would block the reservation.
        self.look_at(|live| live.is_at(&key.1, key.0));
        self.find_places(|live| live.record.seen.namespace() == key.0);
        let found = target.found();
        let is_it = |live: &Live| {
            let is_same = found.at == Depth::Root && live.record.seen.number() == found.mount;
            live.phase == Phase::Mounted && is_same || live.is_at(&key.1, key.0)
        };
        let mut table = self.table.lock();
        if let Some(live) = table.live.iter().find(|live| is_it(live)) {
            // Undecided whether it stays.
            let is_open = live.record.standing == Standing::Unconfirmed;
            if is_open || table.to_undo.contains(&live.record.seen.number()) {
                return Err(MountError::BeingMounted(key.1));
            }
            return Err(MountError::AlreadyMounted {
                mountpoint: key.1,
                snapshot: live.record.snapshot,
            });
        }
        let is_finishing = table.finishing.values().any(|at| *at == key);
        if is_finishing || !table.claimed.insert(key.clone()) {
            return Err(MountError::BeingMounted(key.1));
        }
        drop(table);
        let (table, settled) = (Arc::clone(&self.table), Arc::clone(&self.settled));
        let claim = Claim { table, settled, key, target };
        // It may have been created for a mount that has just ended, and be removed with it.
        if self.remove_made_at(&claim.key) == Removed::Some || !claim.target.is_there() {
            return Err(MountError::BeingMounted(claim.key.1.clone()));
        }
        let path = claim.target.path();
        inject::point(Step::MountClaimed).map_err(MountError::io("mount on", path))?;
        Ok(claim)
    }

    /// Notifies all waiters whenever a mount point for which [`Mounts::claim`] failed with
    /// [`MountError::BeingMounted`] may have been decided: its claim was released, or its mount was
    /// confirmed or is gone.
    pub fn settled(&self) -> &Arc<Notify> {
        &self.settled
    }

    /// Creates the mount.
    pub fn create(&self, mut claim: Claim, wanted: Wanted) -> Result<MountRecord, MountError> {
        let shown = self.mapped_layers(&claim, &wanted)?;
        let upper = self.prepare_upper(&claim, &wanted, &shown)?;
        match self.attach(&claim, &wanted, shown, upper.as_ref()) {
            Ok(record) => {
                claim.target.keep_made();
                let live = Live {
                    record: record.clone(),
                    at: record.mountpoint.to_path(),
                    upper,
                    changes: Changes::Stay,
                    phase: Phase::Mounted,
                    holds: std::iter::once(wanted.top)
                        .chain(wanted.below)
                        .map(|layer| layer.hold)
                        .collect(),
                };
                self.table.lock().live.push(live);
                Ok(record)
            }
            Err(error) => {
                // Report why the mount failed, not why the cleanup did.
                if let Some(Err(error)) = upper.map(Upper::release) {
                    tracing::warn!(%error, "the changes of a mount that failed stay behind");
                }
                Err(error)
            }
        }
    }

    /// Confirms the mount `record` before the client learns of it: from now on it outlives this
    /// daemon.
    pub fn confirm(&self, record: &MountRecord) -> Result<MountRecord, MountError> {
        let mut table = self.table.lock();
        let Some(live) = table.live.iter_mut().find(|live| live.record.seen == record.seen) else {
            let (mountpoint, registry) =
                (record.mountpoint.to_path(), self.registry.dir().to_owned());
            return Err(MountError::NotMounted { mountpoint, registry });
        };
        // If the record can't be written, the table must not differ from it.
        let confirmed = MountRecord { standing: Standing::Confirmed, ..live.record.clone() };
        self.registry.add(&confirmed)?;
        live.record = confirmed;
        self.settled.notify_waiters();
        let mountpoint = live.record.mountpoint.to_path();
        inject::point(Step::MountConfirmed).map_err(MountError::io("mount on", &mountpoint))?;
        Ok(live.record())
    }

    /// Marks the mount `record` as about to be undone: its mount point counts as being mounted, not
    /// as mounted. Does not block.
    pub fn mark_for_undo(&self, record: &MountRecord) {
        self.table.lock().to_undo.insert(record.seen.number());
    }

    /// Undoes mounts of an earlier daemon that were never confirmed to their clients.
    fn undo_unconfirmed(&self) {
        for record in self.list() {
            if record.standing == Standing::Unconfirmed
                && let Err(error) = self.undo(&record)
            {
                tracing::warn!(%error, "can't undo an unconfirmed mount");
            }
        }
    }

    /// Unmounts the mount at `path` as the caller sees it.
    pub fn unmount(
        &self,
        caller: &Caller,
        path: &Path,
        how: Umount,
        changes: Changes,
    ) -> Result<Unmounted, MountError> {
        match self.find(caller, path)? {
            Some(record) => self.unmount_recorded(&record, how, changes),
            None => Err(MountError::NotMounted {
                mountpoint: caller.locate(path),
                registry: self.registry.dir().to_owned(),
            }),
        }
    }

    /// Unmounts a mount of this table. Mounts on top of it make this fail, or end with it if it is
    /// unmounted lazily.
    pub fn unmount_recorded(
        &self,
        record: &MountRecord,
        how: Umount,
        changes: Changes,
    ) -> Result<Unmounted, MountError> {
        self.find_places(|live| live.record.seen == record.seen);
        let mountpoint = record.mountpoint.to_path();
        let on_it = self.mounts_on(record);
        if how == Umount::IfFree && !on_it.is_empty() {
            let on_it = on_it.iter().map(|record| record.mountpoint.to_path()).collect();
            return Err(MountError::HasMounts { mountpoint, on_it });
        }
        for nested in on_it {
            self.undo(&nested)?;
        }
        let same = |live: &Live| live.record.seen == record.seen;
        let Some(record) =
            self.set_changes(changes, |live| live.phase == Phase::Mounted && same(live))
        else {
            let registry = self.registry.dir().to_owned();
            return Err(MountError::NotMounted { mountpoint, registry });
        };
        let mountpoint = record.mountpoint.to_path();
        let unmounted = inject::point(Step::UmountBegun)
            .map_err(MountError::io("unmount", &mountpoint))
            .and_then(|()| unmount_patiently(&record.seen, &mountpoint, how));
        if let Err(error) = unmounted {
            self.set_changes(Changes::Stay, same);
            return Err(error);
        }
        inject::point(Step::UmountDone).map_err(MountError::io("clear up after", &mountpoint))?;
        self.remove_made(&record);
        Ok(self.wait_for_end(record, how, changes))
    }

    /// Lazily unmounts all mounts. One that can't be unmounted is left to its users, who get errors
    /// once nothing serves it.
    pub fn unmount_all(&self) {
        for record in self.list() {
            if let Err(error) = self.undo(&record) {
                tracing::warn!(%error, "can't unmount an unserved mount; it stays");
            }
        }
    }

    /// Forgets all mounts when nothing serves them any more, even those with users left, who get
    /// errors from now on.
    pub fn forget_all(&self) {
        let unclaimed = std::mem::take(&mut *self.unclaimed.lock());
        drop(unclaimed);
        let live = std::mem::take(&mut self.table.lock().live);
        for live in live {
            self.finish(live);
        }
    }
}

impl Mounts {
    /// Unmounts a mount, even if it is in use.
    pub fn undo(&self, record: &MountRecord) -> Result<(), MountError> {
        self.find_places(|live| live.record.seen == record.seen);
        record.seen.unmount(&record.mountpoint.to_path(), Umount::Lazily)?;
        self.remove_made(record);
        self.look_at(|live| live.record.seen == record.seen);
        Ok(())
    }

    /// Sets the fate of the changes of the first `wanted` mount.
    fn set_changes(&self, changes: Changes, wanted: impl Fn(&Live) -> bool) -> Option<MountRecord> {
        let mut table = self.table.lock();
        let live = table.live.iter_mut().find(|live| wanted(live))?;
        live.changes = changes;
        Some(live.record())
    }

    /// Polls for the end of the overlay. After a plain unmount it is unused, unless another
    /// namespace has a copy of the mount, but the kernel needs a moment to end it.
    fn wait_for_end(&self, record: MountRecord, how: Umount, changes: Changes) -> Unmounted {
        let tries = if how == Umount::Lazily { 1 } else { TRIES };
        let mut in_use = true;
        for attempt in 0..tries {
            if attempt > 0 {
                thread::sleep(PAUSE);
            }
            self.look_at(|live| live.record.seen == record.seen);
            in_use = self.table.lock().has(&record.seen);
            if !in_use {
                break;
            }
        }
        let beside = match &record.view {
            View::Writable { upper, keep: Keep::Kept } => self.is_beside(&upper.to_path()),
            View::Writable { .. } | View::ReadOnly => false,
        };
        Unmounted { in_use, discarded: beside && !in_use && changes == Changes::Discard, record }
    }

    /// Reports whether the changes are kept at a place chosen by this program rather than by a
    /// user.
    fn is_beside(&self, upper: &Path) -> bool {
        upper.starts_with(self.state.join("upper"))
    }

    pub(super) fn finish(&self, live: Live) {
        self.remove_last_made(&live);
        let Live { record, upper, changes, holds, .. } = live;
        let outcome = match upper {
            None => Ok(()),
            Some(upper) if changes == Changes::Discard && self.is_beside(upper.base()) => {
                upper.discard()
            }
            Some(upper) => upper.release(),
        };
        let injected = |step| {
            inject::point(step).map_err(MountError::io("clear up after", self.registry.dir()))
        };
        let released = outcome.and_then(|()| injected(Step::UpperReleased));
        // Remove the record even on failure: nothing can be served through it any more.
        let removed = self.registry.remove(&record).and_then(|()| injected(Step::RecordRemoved));
        for error in [released, removed].into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "can't clean up after an unmount");
        }
        drop(holds);
    }

    /// Removes scratch directories without a mount, as left by a crash.
    fn sweep_scratch(&self) {
        let used: HashSet<PathBuf> =
            self.table.lock().live.iter().filter_map(|live| live.record.upper()).collect();
        let Ok(entries) = fs::read_dir(self.state.join("upper")) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let scratch = path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(SCRATCH.as_bytes()));
            if scratch && !used.contains(&path) {
                let swept = Upper::adopt(&path, Keep::Scratch)
                    .and_then(|upper| if upper.is_mounted()? { Ok(()) } else { upper.release() });
                if let Err(error) = swept {
                    tracing::warn!(%error, "can't remove the changes of an unmounted mount; they stay");
                }
            }
        }
    }
}

/// The name prefix of scratch directories.
pub(super) const SCRATCH: &str = "scratch-";

impl Live {
    pub(super) fn is_at(&self, path: &Path, namespace: u64) -> bool {
        self.phase == Phase::Mounted && self.record.seen.namespace() == namespace && self.at == path
    }

    /// Returns its record with its last known path.
    pub(super) fn record(&self) -> MountRecord {
        let mut record = self.record.clone();
        if record.mountpoint.to_path() != self.at {
            record.mountpoint = PathText::from(&*self.at);
        }
        record
    }
}

/// Unmounts and forgets a mount that nothing serves any more.
fn clear(registry: &Registry, record: &MountRecord) -> Result<(), MountError> {
    let mountpoint = record.mountpoint.to_path();
    tracing::info!(mountpoint = %mountpoint.display(), "removing an unserved mount");
    if record.seen.is_mounted()? {
        record.seen.unmount(&mountpoint, Umount::Lazily)?;
    }
    // For a sandbox's mount, the root is gone, too: the sandbox ends, and the mount's changes are
    // found by the directory it was mounted on.
    let made: Vec<PathBuf> = record.made.iter().map(PathText::to_path).collect();
    if !made.is_empty() && record.owner.is_none() {
        record.seen.remove_made(&made)?;
    }
    if let View::Writable { upper, keep: Keep::Scratch } = &record.view {
        throw_away(&upper.to_path())?;
    }
    registry.remove(record)
}

fn unmount_patiently(seen: &Seen, path: &Path, how: Umount) -> Result<(), MountError> {
    for _ in 0..TRIES {
        match seen.unmount(path, how) {
            Err(MountError::Busy(_)) => thread::sleep(PAUSE),
            other => return other,
        }
    }
    seen.unmount(path, how)
}
