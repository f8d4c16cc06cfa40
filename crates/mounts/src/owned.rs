//! Queries mounts by path, by parent mount and by owner, and removes the directories created for
//! them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::error::MountError;
use super::mount_id::Seen;
use super::record::{MountRecord, PathText};
use super::table::{Live, Mounts, Phase};
use super::target::{Caller, Depth};

/// Whether there was anything to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    Some,
    Nothing,
}

impl Mounts {
    /// Lists all visible mounts in no particular order, each with its current path.
    pub fn list(&self) -> Vec<MountRecord> {
        self.list_of(|_| true)
    }

    /// Like [`Mounts::list`] for the `wanted` mounts, without querying others.
    fn list_of(&self, wanted: impl Fn(&Live) -> bool) -> Vec<MountRecord> {
        self.find_places(&wanted);
        let table = self.table.lock();
        let seen = table.live.iter().filter(|live| live.phase == Phase::Mounted && wanted(live));
        seen.map(Live::record).collect()
    }

    /// Returns the number of visible mounts.
    pub fn count(&self) -> usize {
        let table = self.table.lock();
        table.live.iter().filter(|live| live.phase == Phase::Mounted).count()
    }

    /// Reports whether the mount with this number is visible.
    pub fn has(&self, number: u64) -> bool {
        let table = self.table.lock();
        let mut live = table.live.iter();
        live.any(|live| live.phase == Phase::Mounted && live.record.seen.number() == number)
    }

    /// Updates the current paths of the `wanted` mounts.
    pub(super) fn find_places(&self, wanted: impl Fn(&Live) -> bool) {
        let wanted: Vec<Seen> = {
            let table = self.table.lock();
            let live = table.live.iter().filter(|live| live.phase == Phase::Mounted);
            live.filter(|live| wanted(live)).map(|live| live.record.seen.clone()).collect()
        };
        // Query without holding the lock: it is slow on a kernel without statmount(2).
        let places: HashMap<u64, PathBuf> = wanted
            .iter()
            .filter_map(|seen| Some((seen.number(), seen.now().ok()??.path?)))
            .collect();
        for live in &mut self.table.lock().live {
            if let Some(path) = places.get(&live.record.seen.number())
                && live.at != *path
            {
                live.at.clone_from(path);
            }
        }
    }

    /// Finds the mount at `path` as the caller sees it, wherever it was created.
    pub fn find(&self, caller: &Caller, path: &Path) -> Result<Option<MountRecord>, MountError> {
        let namespace = caller.namespace()?;
        let mut there: Vec<_> = self.list();
        there.retain(|record| record.seen.is_in(&namespace));
        if let Some(found) = caller.find_mount(path)?
            && found.at == Depth::Root
            && let Some(at) = there.iter().position(|record| record.seen.number() == found.mount)
        {
            return Ok(Some(there.swap_remove(at)));
        }
        // It is covered by another mount, or can't be opened because nothing serves it.
        let path = caller.locate(path);
        let there = there.into_iter().filter(|record| record.mountpoint.to_path() == path);
        Ok(there.max_by_key(|record| record.seen.number()))
    }

    /// Returns the current path of a mount of `owner` that was created at `path` and has been
    /// moved.
    pub fn moved_from(&self, owner: &str, path: &Path) -> Option<PathBuf> {
        let numbers: Vec<u64> = {
            let table = self.table.lock();
            let from = table.live.iter().filter(|live| {
                live.phase == Phase::Mounted
                    && live.record.owner.as_deref() == Some(owner)
                    && live.record.mountpoint.to_path() == path
            });
            from.map(|live| live.record.seen.number()).collect()
        };
        let now = self.owned_by(owner).into_iter();
        let mut now = now.filter(|record| numbers.contains(&record.seen.number()));
        now.find_map(|record| Some(record.mountpoint.to_path()).filter(|now| now != path))
    }

    /// Returns the mounts that belong to the sandbox `owner`, oldest first.
    pub fn owned_by(&self, owner: &str) -> Vec<MountRecord> {
        self.oldest_first(|live| live.record.owner.as_deref() == Some(owner))
    }

    /// Lazily unmounts all mounts of a sandbox. Kept changes stay. Continues after an error and
    /// returns the first one.
    pub fn end_owned_by(&self, owner: &str) -> Result<(), MountError> {
        let mut outcome = Ok(());
        for record in self.owned_by(owner).iter().rev() {
            let ended = match self.undo(record) {
                // It ends with its namespace.
                Err(MountError::NobodyInside(_)) => Ok(()),
                other => other,
            };
            outcome = outcome.and(ended);
        }
        outcome
    }

    /// Returns the mounts of this table on top of the mount `record`, newest first.
    pub(super) fn mounts_on(&self, record: &MountRecord) -> Vec<MountRecord> {
        let same_namespace: Vec<Seen> = {
            let table = self.table.lock();
            let all = table.live.iter().map(|live| &live.record.seen);
            all.filter(|seen| seen.namespace() == record.seen.namespace()).cloned().collect()
        };
        // Query without holding the lock.
        let on_it: HashSet<u64> = same_namespace
            .iter()
            .filter(|seen| seen.is_on(&record.seen))
            .map(Seen::number)
            .collect();
        let mut found = self.oldest_first(|live| on_it.contains(&live.record.seen.number()));
        found.reverse();
        found
    }

    fn oldest_first(&self, wanted: impl Fn(&Live) -> bool) -> Vec<MountRecord> {
        let mut found = self.list_of(wanted);
        found.sort_by_key(|record| record.seen.number());
        found
    }

    /// Removes the directories created for a mount that has ended, unless already done. One that
    /// contains another mount is handed over to that mount.
    pub(super) fn remove_made(&self, record: &MountRecord) {
        let _removing = self.removing.lock();
        let made = {
            let mut table = self.table.lock();
            let live = table.live.iter_mut().find(|live| live.record.seen == record.seen);
            // A second removal could hit the directories of a later mount.
            let Some(live) = live else { return };
            let made = live.made();
            live.record.made.clear();
            made
        };
        self.remove_dirs(record, &made);
    }

    /// Like [`Mounts::remove_made`] for all ended mounts at this place. When it returns, no removal
    /// is in progress there.
    pub(super) fn remove_made_at(&self, place: &(u64, PathBuf)) -> Removed {
        let over: Vec<MountRecord> = {
            // A removal in progress has already taken its directories from the table: wait for it.
            let _removing = self.removing.lock();
            let table = self.table.lock();
            let over = table.live.iter().filter(|live| {
                live.phase != Phase::Mounted
                    && !live.record.made.is_empty()
                    && live.record.seen.namespace() == place.0
                    && live.at == place.1
            });
            over.map(|live| live.record.clone()).collect()
        };
        for record in &over {
            self.remove_made(record);
        }
        if over.is_empty() { Removed::Nothing } else { Removed::Some }
    }

    /// Like [`Mounts::remove_made`] for a mount just removed from the table. When it returns, no
    /// removal is in progress there.
    pub(super) fn remove_last_made(&self, live: &Live) {
        let _removing = self.removing.lock();
        self.remove_dirs(&live.record, &live.made());
    }

    fn remove_dirs(&self, record: &MountRecord, made: &[PathBuf]) {
        if made.is_empty() {
            return;
        }
        match record.seen.remove_made(made) {
            Ok(left) => self.hand_on(record, &left),
            Err(error) => {
                tracing::warn!(%error, "can't remove the directories created for a mount; they stay");
            }
        }
    }

    fn hand_on(&self, record: &MountRecord, left: &[PathBuf]) {
        let Some(deepest) = left.last() else { return };
        let below = |live: &Live| {
            live.phase == Phase::Mounted
                && live.record.seen.namespace() == record.seen.namespace()
                && live.record.seen != record.seen
                && live.at.starts_with(deepest)
        };
        let mut table = self.table.lock();
        let Some(heir) = table.live.iter_mut().find(|live| below(live)) else { return };
        // If the heir was moved since, its own directories are elsewhere.
        if heir.at != heir.record.mountpoint.to_path() {
            return;
        }
        heir.record.made.splice(0..0, left.iter().map(|dir| PathText::from(&**dir)));
        if let Err(error) = self.registry.add(&heir.record) {
            tracing::warn!(%error, "directories created for a mount may stay");
        }
    }
}

impl Live {
    /// Returns the directories created for it, parents first. If one of them or a parent was
    /// renamed, only the mount point itself is certain to be one of them.
    fn made(&self) -> Vec<PathBuf> {
        let made: Vec<PathBuf> = self.record.made.iter().map(PathText::to_path).collect();
        let mountpoint = self.record.mountpoint.to_path();
        if self.at == mountpoint {
            return made;
        }
        made.last()
            .filter(|last| **last == mountpoint)
            .map(|_| self.at.clone())
            .into_iter()
            .collect()
    }
}
