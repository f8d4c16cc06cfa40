//! Accounts for the disk space of the cache: space is reserved before it is written and released
//! after it is freed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CacheError;
use super::budget::{Budget, Marks};
use super::disk::Disk;
use super::reserved::Reserved;
use super::usage::{Outcome, UNKNOWN, Usage};

/// The disk space accounting of an open cache.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    budget: Budget,
    marks: Marks,
    /// The budget in bytes, as of the last `look`.
    limit: AtomicU64,
    usage: Usage,
    /// Usage of all processes together, as this process last saw it.
    used: AtomicU64,
    /// Reserved by this process and not yet written or released: no scan finds it.
    reserved: Reserved,
}

/// The fill level of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// At or below the high mark.
    Low,
    /// Above the high mark: eviction is due.
    High,
}

impl Room {
    pub(super) fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        budget: Budget,
        marks: Marks,
        usage: Usage,
        reserved: Reserved,
    ) -> Self {
        let used = AtomicU64::new(usage.valid().unwrap_or(0));
        let limit = AtomicU64::new(0);
        let room = Self { dir, disk, budget, marks, limit, usage, used, reserved };
        room.refresh();
        room
    }

    /// Refreshes the budget from the disk's free space, and the usage from the shared count.
    pub(super) fn refresh(&self) {
        let used = self.usage.valid().unwrap_or_else(|| self.used());
        self.used.store(used, Ordering::Relaxed);
        let limit = self.budget.bytes(self.disk.space(&self.dir).ok(), used);
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns the usage for display: the whole budget while the usage is unknown.
    pub(super) fn displayed_usage(&self) -> u64 {
        if self.is_unknown() { self.limit() } else { self.used() }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn budget(&self) -> Budget {
        self.budget
    }

    pub(super) fn high(&self) -> u64 {
        self.marks.high_of(self.limit())
    }

    pub(super) fn low(&self) -> u64 {
        self.marks.low_of(self.limit())
    }

    pub(super) fn fill(&self) -> Fill {
        if self.used() > self.high() { Fill::High } else { Fill::Low }
    }

    /// Reserves `cost` bytes. Returns `None` if they exceed the budget.
    pub(super) fn reserve(&self, cost: u64) -> Result<Option<ReservedRoom<'_>>, CacheError> {
        let limit = self.limit();
        // Before the update, so that a concurrent recount counts these bytes twice rather than not
        // at all.
        self.reserved.add(cost).map_err(CacheError::io("reserving space in", &self.dir))?;
        let updated =
            self.usage.update(|bytes| bytes.checked_add(cost).filter(|sum| *sum <= limit));
        let granted = matches!(updated, Ok((_, Outcome::Changed)));
        if !granted {
            self.reserved.subtract(cost);
        }
        let (bytes, _) = updated.map_err(CacheError::io("updating the usage of", &self.dir))?;
        self.used.store(bytes, Ordering::Relaxed);
        // Lazy: a `ReservedRoom` created and dropped here would release bytes that it never reserved.
        Ok(granted.then(|| ReservedRoom { room: self, cost, reserved: cost }))
    }

    /// Returns the bytes reserved by this process and not yet written or released.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.bytes()
    }

    /// Returns `cost` bytes to the budget.
    pub(super) fn release(&self, cost: u64) {
        if cost == 0 {
            return;
        }
        match self.usage.update(|bytes| Some(bytes.saturating_sub(cost))) {
            Ok((bytes, _)) => self.used.store(bytes, Ordering::Relaxed),
            // The count stays too high: the cache stores less until eviction recounts.
            Err(error) => tracing::debug!(%error, "can't update the usage of the cache"),
        }
    }

    /// Replaces a cost of `before` with one of `after`, atomically.
    pub(super) fn exchange(&self, before: u64, after: u64) {
        let change = |bytes: u64| Some(bytes.saturating_sub(before).saturating_add(after));
        if let Ok((bytes, _)) = self.usage.update(change) {
            self.used.store(bytes, Ordering::Relaxed);
        }
    }

    /// Recounts while all other reservations wait for the lock. Adds this process's reservations to
    /// the result of `count`, which includes those of other processes; a file that was just written
    /// is then counted twice, until the next recount. If `count` fails, the usage stays unchanged.
    pub(super) fn recount(&self, count: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        let mut failed = None;
        let (bytes, _) = self.usage.update(|_| {
            // Before the count, which misses files that are written while it scans.
            let reserved = self.reserved();
            match count() {
                Ok(found) => Some(found.saturating_add(reserved)),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        })?;
        self.used.store(bytes, Ordering::Relaxed);
        failed.map_or(Ok(()), Err)
    }

    /// Returns whether the usage is unknown, because no recount has succeeded since a crash.
    pub(super) fn is_unknown(&self) -> bool {
        self.used() >= UNKNOWN / 2
    }
}

/// Reserved space. Released on drop, unless kept.
pub(super) struct ReservedRoom<'a> {
    room: &'a Room,
    /// The bytes to release on drop.
    cost: u64,
    reserved: u64,
}

impl ReservedRoom<'_> {
    pub(super) fn keep(mut self) {
        self.cost = 0;
    }

    /// Keeps `cost` bytes and releases the rest.
    pub(super) fn keep_only(mut self, cost: u64) {
        self.cost = self.cost.saturating_sub(cost);
    }
}

impl Drop for ReservedRoom<'_> {
    fn drop(&mut self) {
        self.room.release(self.cost);
        // Last, so that a concurrent recount counts these bytes twice rather than not at all.
        self.room.reserved.subtract(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::SystemDisk;
    use super::*;
    use crate::units::ByteSize;

    fn room(dir: &std::path::Path) -> Room {
        let disk: Arc<dyn Disk> = Arc::new(SystemDisk);
        let usage = Usage::open(&dir.join("usage"), Arc::clone(&disk)).unwrap();
        usage.reset(0).unwrap();
        let budget = Budget::Bytes(ByteSize(100));
        let reserved = Reserved::in_file(tempfile::tempfile().unwrap()).unwrap();
        Room::new(dir.to_owned(), disk, budget, Marks::default(), usage, reserved)
    }

    #[test]
    fn a_recount_keeps_space_of_files_written_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        let space = room.reserve(60).unwrap().unwrap();
        // The file gets its name after the scan has passed its directory.
        room.recount(|| {
            space.keep();
            Ok(0)
        })
        .unwrap();
        assert_eq!((room.used(), room.reserved()), (60, 0));
    }

    #[test]
    fn a_recount_keeps_reserved_space_that_is_not_yet_written() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path());
        let first = room.reserve(60).unwrap().unwrap();
        room.recount(|| Ok(0)).unwrap();
        assert_eq!((room.used(), room.reserved()), (60, 60));
        assert!(room.reserve(50).unwrap().is_none());
        first.keep();
        assert_eq!((room.used(), room.reserved()), (60, 0));
        let second = room.reserve(40).unwrap().unwrap();
        second.keep_only(10);
        assert_eq!((room.used(), room.reserved()), (70, 0));
        drop(room.reserve(30).unwrap());
        room.recount(|| Ok(70)).unwrap();
        assert_eq!((room.used(), room.reserved()), (70, 0));
    }
}
