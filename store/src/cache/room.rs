//! The room that the cache may take: reserved before it is written, given back after it is freed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::CacheError;
use super::budget::{Budget, Marks};
use super::disk::Disk;
use super::usage::{Outcome, Usage};

/// See the module.
#[derive(Debug)]
pub(super) struct Room {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    budget: Budget,
    marks: Marks,
    /// The budget in bytes, as the disk was when it was last looked at.
    limit: AtomicU64,
    usage: Usage,
    /// What all processes together take, as this one last saw it.
    used: AtomicU64,
}

/// How full a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// Below the high mark.
    Low,
    /// Above it: something should go.
    High,
}

impl Room {
    pub(super) fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        budget: Budget,
        marks: Marks,
        usage: Usage,
    ) -> Self {
        let used = AtomicU64::new(usage.valid().unwrap_or(0));
        let room = Self { dir, disk, budget, marks, limit: AtomicU64::new(0), usage, used };
        room.look();
        room
    }

    /// Looks at the disk again, and at what other processes have stored.
    pub(super) fn look(&self) {
        let used = self.usage.valid().unwrap_or_else(|| self.used());
        self.used.store(used, Ordering::Relaxed);
        let limit = self.budget.bytes(self.disk.space(&self.dir).ok(), used);
        self.limit.store(limit, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
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

    /// Takes `cost` bytes, if they are there.
    pub(super) fn reserve(&self, cost: u64) -> Result<Option<Space<'_>>, CacheError> {
        let limit = self.limit();
        let (bytes, outcome) = self
            .usage
            .update(|bytes| bytes.checked_add(cost).filter(|sum| *sum <= limit))
            .map_err(CacheError::io("updating the usage of", &self.dir))?;
        self.used.store(bytes, Ordering::Relaxed);
        // Lazily: a `Space` that is made and dropped gives back what it never took.
        Ok((outcome == Outcome::Changed).then(|| Space { room: self, cost }))
    }

    pub(super) fn release(&self, cost: u64) {
        if cost == 0 {
            return;
        }
        match self.usage.update(|bytes| Some(bytes.saturating_sub(cost))) {
            Ok((bytes, _)) => self.used.store(bytes, Ordering::Relaxed),
            // The count is too high from now on: less is stored until eviction counts anew.
            Err(error) => tracing::debug!(%error, "the cache's usage can't be updated"),
        }
    }

    /// Counts a file of `before` bytes as one of `after`, in one step.
    pub(super) fn exchange(&self, before: u64, after: u64) {
        let change = |bytes: u64| Some(bytes.saturating_sub(before).saturating_add(after));
        if let Ok((bytes, _)) = self.usage.update(change) {
            self.used.store(bytes, Ordering::Relaxed);
        }
    }

    /// Counts anew while all who would store wait.
    pub(super) fn recount(&self, count: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        let (bytes, _) = self.usage.update(|_| count().ok())?;
        self.used.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Reserved room. Given back when dropped, unless kept.
pub(super) struct Space<'a> {
    room: &'a Room,
    cost: u64,
}

impl Space<'_> {
    pub(super) fn keep(mut self) {
        self.cost = 0;
    }

    /// Keeps so much of it and gives the rest back.
    pub(super) fn keep_only(mut self, cost: u64) {
        self.cost = self.cost.saturating_sub(cost);
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        self.room.release(self.cost);
    }
}
