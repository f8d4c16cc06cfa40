//! Mounts by where they are and whose they are: which is at a path, which are on it, which are one
//! sandbox's; and the directories that were made for them.

use std::path::{Path, PathBuf};

use super::error::MountError;
use super::record::{MountRecord, PathText};
use super::table::{Live, Mounts, Phase};
use super::target::Caller;

/// Whether there was something to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    Some,
    Nothing,
}

impl Mounts {
    /// What is mounted at `path` as the caller sees it.
    pub(crate) fn find(
        &self,
        caller: Caller,
        path: &Path,
    ) -> Result<Option<MountRecord>, MountError> {
        let namespace = caller.namespace()?;
        let path = caller.locate(path);
        let at = |record: &MountRecord| {
            record.seen.is_in(&namespace) && record.mountpoint.to_path() == path
        };
        Ok(self.list().into_iter().find(at))
    }

    /// What is mounted at or below `path` as the caller sees it, the oldest first. Those that
    /// others hide are among them.
    pub fn at_or_below(&self, caller: Caller, path: &Path) -> Result<Vec<MountRecord>, MountError> {
        let namespace = caller.namespace()?;
        let path = caller.locate(path);
        Ok(self.oldest_first(|record| {
            record.seen.is_in(&namespace) && record.mountpoint.to_path().starts_with(&path)
        }))
    }

    /// The mounts that belong to the sandbox `owner`, the oldest first.
    pub fn owned_by(&self, owner: &str) -> Vec<MountRecord> {
        self.oldest_first(|record| record.owner.as_deref() == Some(owner))
    }

    /// Takes all mounts of a sandbox out of sight, whoever uses them. Changes that are kept stay.
    /// Goes on after an error, and gives the first one.
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

    /// The mounts of this table that are on the mount `record`, the newest first.
    pub(super) fn mounts_on(&self, record: &MountRecord) -> Vec<MountRecord> {
        let below = record.mountpoint.to_path();
        let mut found = self.oldest_first(|other| {
            other.seen != record.seen
                && other.seen.namespace() == record.seen.namespace()
                && other.mountpoint.to_path().starts_with(&below)
                && other.seen.is_on(&record.seen)
        });
        found.reverse();
        found
    }

    fn oldest_first(&self, wanted: impl Fn(&MountRecord) -> bool) -> Vec<MountRecord> {
        let mut found: Vec<_> = self.list().into_iter().filter(wanted).collect();
        found.sort_by_key(|record| record.seen.number());
        found
    }

    /// Removes the directories that were made for a mount that is over, unless that was done. One that
    /// holds another mount goes with that one.
    pub(super) fn remove_made(&self, record: &MountRecord) {
        let _removing = self.removing.lock();
        let made = {
            let mut table = self.table.lock();
            let live = table.live.iter_mut().find(|live| live.record.seen == record.seen);
            // A second time they would be those of a later mount.
            let Some(live) = live else { return };
            std::mem::take(&mut live.record.made)
        };
        self.remove_dirs(record, &made);
    }

    /// The same for those that are over and were at this place. When this returns, nobody is at it.
    pub(super) fn remove_made_at(&self, place: &(u64, PathBuf)) -> Removed {
        let over: Vec<MountRecord> = {
            // Those that are being removed have none left in the table: then this waits.
            let _removing = self.removing.lock();
            let table = self.table.lock();
            let over = table.live.iter().filter(|live| {
                live.phase != Phase::Mounted
                    && !live.record.made.is_empty()
                    && live.record.seen.namespace() == place.0
                    && live.record.mountpoint.to_path() == place.1
            });
            over.map(|live| live.record.clone()).collect()
        };
        for record in &over {
            self.remove_made(record);
        }
        if over.is_empty() { Removed::Nothing } else { Removed::Some }
    }

    /// The same for a mount that was just taken from the table. When this returns, nobody is at it any
    /// more.
    pub(super) fn remove_last_made(&self, record: &MountRecord) {
        let _removing = self.removing.lock();
        self.remove_dirs(record, &record.made);
    }

    fn remove_dirs(&self, record: &MountRecord, made: &[PathText]) {
        if made.is_empty() {
            return;
        }
        let made: Vec<PathBuf> = made.iter().map(PathText::to_path).collect();
        match record.seen.remove_made(&made) {
            Ok(left) => self.hand_on(record, &left),
            Err(error) => {
                tracing::warn!(%error, "directories that were made for a mount stay behind");
            }
        }
    }

    fn hand_on(&self, record: &MountRecord, left: &[PathBuf]) {
        let Some(deepest) = left.last() else { return };
        let below = |live: &Live| {
            live.phase == Phase::Mounted
                && live.record.seen.namespace() == record.seen.namespace()
                && live.record.seen != record.seen
                && live.record.mountpoint.to_path().starts_with(deepest)
        };
        let mut table = self.table.lock();
        let Some(heir) = table.live.iter_mut().find(|live| below(live)) else { return };
        heir.record.made.splice(0..0, left.iter().map(|dir| PathText::from(&**dir)));
        if let Err(error) = self.registry.add(&heir.record) {
            tracing::warn!(%error, "directories that were made for a mount may stay behind");
        }
    }
}
