//! Evicts the least recently used files, except those in use, held or pinned.

use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::content::{ContentState, FileRole, parse_name, sealed_cost};
use super::contents::Contents;
use super::disk::{Open, Time};
use super::entry::file_cost;
use super::fill::cost_of_ready;
use super::lease;
use super::pins::Pinned;
use super::placement::ContentId;
use super::store::CacheInner;
use crate::ids::{Digest, GroupDigest};

/// The maximum number of eviction candidates of one scan, the least recently used ones; 100 bytes
/// each.
const CANDIDATES_MAX: usize = 1 << 16;

/// After an eviction that did not free enough, the pause lasts this many times as long as the
/// eviction.
const REST: u32 = 10;

/// A file that could be evicted. Ordered by last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    last_use: Time,
    what: What,
    cost: u64,
}

impl Candidate {
    pub(super) fn what(&self) -> What {
        self.what
    }

    pub(super) fn cost(&self) -> u64 {
        self.cost
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Group(GroupDigest),
    Part(Digest, u64),
    Sealed(Digest, u64),
}

/// The files that eviction must keep, in addition to those in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// Pinned files.
    Pins,
    /// None.
    Nothing,
}

/// The result of an eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Evicted {
    /// Evicted group files.
    pub groups: u64,
    /// Evicted contents, whole or partial.
    pub contents: u64,
    /// Freed bytes.
    pub bytes: u64,
    /// Files kept because they are in use, held or pinned.
    pub spared: u64,
}

/// The totals of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Inventory {
    /// Group files.
    pub groups: u64,
    /// Disk usage of group files, in bytes.
    pub group_bytes: u64,
    /// Whole contents.
    pub contents_whole: u64,
    /// Partial contents.
    pub contents_partial: u64,
    /// Disk usage of contents, in bytes.
    pub content_bytes: u64,
}

impl Inventory {
    pub(super) fn bytes(&self) -> u64 {
        self.group_bytes + self.content_bytes
    }
}

impl CacheInner {
    /// Evicts if the cache is above its high mark, or could not store something. Runs on the worker
    /// thread. A no-op during the pause after an eviction that did not free enough.
    pub(super) fn evict(&self) {
        let began = Instant::now();
        if self.rest_until.lock().is_some_and(|until| began < until) {
            return;
        }
        self.room.refresh();
        let mut target = self.room.low();
        if self.starved.swap(false, Ordering::Relaxed) {
            // The disk is full although the budget is not: free a tenth.
            target = target.min(self.room.used() / 10 * 9);
        }
        match self.evict_to(target, Spare::Pins) {
            Ok(evicted) => tracing::debug!(?evicted, "evicted"),
            Err(error) => tracing::debug!(%error, "evicting"),
        }
        // If all that is left is in use or pinned, scanning again soon would be wasted work.
        let rest = (self.room.used() > target).then(|| began.elapsed() * REST);
        *self.rest_until.lock() = rest.and_then(|rest| Instant::now().checked_add(rest));
    }

    /// Evicts until the cache uses at most `target` bytes, or nothing more can be evicted.
    pub(super) fn evict_to(&self, target: u64, spare: Spare) -> io::Result<Evicted> {
        let _alone = self.eviction_lock()?;
        self.note_uses();
        self.recount_if_suspect()?;
        let mut total = Evicted::default();
        // Rescan after each round, because other processes may evict and store concurrently.
        for _ in 0..64 {
            self.room.refresh();
            if self.room.used() <= target || self.worker.is_out_of_time() {
                break;
            }
            let pinned = match spare {
                Spare::Pins => Pinned::load(&self.dir)?,
                Spare::Nothing => Pinned::default(),
            };
            let mut oldest = BinaryHeap::new();
            let inventory = self.scan(&mut |candidate| {
                oldest.push(candidate);
                if oldest.len() > CANDIDATES_MAX {
                    oldest.pop();
                }
            })?;
            let oldest = oldest.into_sorted_vec();
            let more = oldest.len() == CANDIDATES_MAX;
            let round = self.evict_these(&oldest, target, &pinned);
            total.groups += round.groups;
            total.contents += round.contents;
            total.bytes += round.bytes;
            total.spared = round.spared;
            // A process that died or a disk that failed may have left the count too high. Reserved
            // bytes that are not yet written are in no inventory.
            let others = self.staging.reserved_by_others().unwrap_or(0);
            let reserved = self.room.reserved().saturating_add(others);
            let used = self.room.used().saturating_sub(reserved);
            let drift = used.saturating_sub(inventory.bytes().saturating_sub(round.bytes));
            let missed = self.room.used() > target && !more;
            if drift > if missed { 0 } else { self.room.limit() / 64 }
                && let Err(error) = self.recount()
            {
                tracing::debug!(%error, "measuring the cache");
                self.suspect.store(true, Ordering::Relaxed);
            }
            if !more {
                break;
            }
        }
        self.counters.evicted_bytes.fetch_add(total.bytes, Ordering::Relaxed);
        self.counters.evictions.fetch_add(total.groups + total.contents, Ordering::Relaxed);
        Ok(total)
    }

    pub(super) fn recount(&self) -> io::Result<()> {
        self.room.recount(|| {
            // Before the scan, which misses files that are written meanwhile.
            let others = self.staging.reserved_by_others()?;
            Ok(self.scan(&mut |_| ())?.bytes().saturating_add(others))
        })
    }

    /// Recounts after a disk error, because an operation that reported failure may have taken
    /// effect, and vice versa.
    fn recount_if_suspect(&self) -> io::Result<()> {
        self.room.refresh();
        if self.suspect.swap(false, Ordering::Relaxed) || self.room.is_unknown() {
            let counted = self.recount();
            if counted.is_err() {
                self.suspect.store(true, Ordering::Relaxed);
            }
            return counted;
        }
        Ok(())
    }

    /// Acquires the lock that serializes eviction between processes. Pinning holds it too, to keep
    /// eviction out.
    pub(super) fn eviction_lock(&self) -> io::Result<File> {
        let lock = self.disk.open(&self.dir.join("evicting"), Open::ReadWrite)?;
        if self.worker.is_stopping() {
            // Do not wait during shutdown: the process that holds the lock frees room for this one,
            // too.
            lock.try_lock()?;
        } else {
            lock.lock()?;
        }
        Ok(lock)
    }

    /// Evicts candidates in order, until the cache uses at most `target` bytes.
    fn evict_these(&self, oldest: &[Candidate], target: u64, pinned: &Pinned) -> Evicted {
        let mut evicted = Evicted::default();
        for candidate in oldest {
            if self.room.used() <= target || self.worker.is_out_of_time() {
                break;
            }
            let gone = match candidate.what {
                What::Group(group) if pinned.groups.contains(&group) => Ok(false),
                What::Group(group) => self.evict_group(&group, candidate.cost),
                What::Part(digest, _) | What::Sealed(digest, _)
                    if pinned.contents.contains(&digest) || self.contents.is_held(&digest) =>
                {
                    Ok(false)
                }
                What::Part(digest, size) | What::Sealed(digest, size) => {
                    let id = ContentId { digest, size };
                    self.evict_content(&id, candidate.what, candidate.cost)
                }
            };
            if let Ok(true) = gone {
                evicted.bytes += candidate.cost;
            }
            match (gone, candidate.what) {
                (Ok(true), What::Group(_)) => evicted.groups += 1,
                (Ok(true), _) => evicted.contents += 1,
                (Ok(false), _) => evicted.spared += 1,
                (Err(error), _) => {
                    tracing::debug!(%error, "can't evict a cache file");
                    self.write_failed();
                    evicted.spared += 1;
                }
            }
        }
        evicted
    }

    /// Removes a group file. Returns false if it is in use or gone. Holds the shard's `opening`
    /// lock, so that no thread of this process opens the file concurrently.
    fn evict_group(&self, group: &GroupDigest, cost: u64) -> io::Result<bool> {
        let path = self.group_path(group);
        let opening = self.files.opening(group);
        self.files.forget(group);
        // Held until the name is gone.
        let Some(_owned) = self.own(&path)? else { return Ok(false) };
        self.disk.remove(&path)?;
        drop(opening);
        self.room.release(cost);
        Ok(true)
    }

    /// Removes the part or the sealed file of a content, with its metadata. Returns false if the
    /// file is in use or gone. Each has its own lock and cost, so a part never takes a sealed file
    /// with it that another process uses.
    fn evict_content(&self, id: &ContentId, what: What, cost: u64) -> io::Result<bool> {
        let content = self.contents.get(id);
        Contents::close(&content, self.epoch());
        let Some(_writing) = content.writing.try_lock() else { return Ok(false) };
        if !matches!(&*content.state.read(), ContentState::Absent { .. } | ContentState::Lie) {
            return Ok(false);
        }
        let is_part = matches!(what, What::Part(..));
        let path = if is_part { &content.paths.part } else { &content.paths.sealed };
        // Held until the names are gone.
        let Some(_owned) = self.own(path)? else { return Ok(false) };
        if is_part {
            self.discard_part(&content, cost);
        } else {
            self.discard_sealed(&content, cost);
        }
        // The previous epoch makes the next reader probe for the other file.
        *content.state.write() = ContentState::Absent { epoch: self.epoch().wrapping_sub(1) };
        Ok(true)
    }

    /// Opens the file at `path` and takes its exclusive lock. Returns `None` if the file is in use
    /// or gone, or `path` refers to another file by now, e.g. because a part has been sealed.
    fn own(&self, path: &Path) -> io::Result<Option<File>> {
        let Some(file) = there(self.disk.open(path, Open::Read))? else { return Ok(None) };
        if !lease::own(&file)? {
            return Ok(None);
        }
        let inode = self.disk.stamp(&file)?.inode;
        let is_same = there(self.disk.stamp_at(path))?.is_some_and(|stamp| stamp.inode == inode);
        Ok(is_same.then_some(file))
    }

    /// Visits every file of the cache. Removes orphaned `.ready` and `.seal` files.
    pub(super) fn scan(&self, each: &mut dyn FnMut(Candidate)) -> io::Result<Inventory> {
        let mut inventory = Inventory::default();
        for_each_file(&self.groups, &mut |path, name| {
            let Ok(digest) = name.parse::<Digest>() else { return Ok(()) };
            self.check_time()?;
            let Some(stamp) = there(self.disk.stamp_at(path))? else { return Ok(()) };
            let cost = file_cost(stamp.len);
            inventory.groups += 1;
            inventory.group_bytes += cost;
            let what = What::Group(GroupDigest(digest));
            each(Candidate { last_use: stamp.last_use(), what, cost });
            Ok(())
        })?;
        for_each_file(self.contents.dir(), &mut |path, name| {
            let Some((id, role)) = parse_name(name) else { return Ok(()) };
            self.check_time()?;
            let (marker, what, cost) = match role {
                FileRole::Sealed => {
                    (with_end(path, ".seal"), What::Sealed(id.digest, id.size), sealed_cost(&id))
                }
                FileRole::Part => {
                    let ready = with_end(&path.with_extension(""), ".ready");
                    let opened = there(self.disk.open(&ready, Open::Read))?;
                    let cost = match &opened {
                        Some(file) => cost_of_ready(self, &id, file)?,
                        // Its `.ready` file is gone, but its blocks are still allocated.
                        None => there(self.disk.stamp_at(path))?.map_or(0, |s| s.allocated),
                    };
                    (ready, What::Part(id.digest, id.size), cost)
                }
                // These are created after the file that they describe and removed before it.
                FileRole::Ready => return self.clear_orphan(path, ".part"),
                FileRole::Seal => return self.clear_orphan(path, ""),
            };
            let stamp = match there(self.disk.stamp_at(&marker))? {
                Some(stamp) => Some(stamp),
                None => there(self.disk.stamp_at(path))?,
            };
            let Some(stamp) = stamp else { return Ok(()) };
            match role {
                FileRole::Sealed => inventory.contents_whole += 1,
                _ => inventory.contents_partial += 1,
            }
            inventory.content_bytes += cost;
            each(Candidate { last_use: stamp.last_use(), what, cost });
            Ok(())
        })?;
        Ok(inventory)
    }

    fn check_time(&self) -> io::Result<()> {
        if self.worker.is_out_of_time() {
            return Err(io::Error::new(ErrorKind::TimedOut, "the cache is being closed"));
        }
        Ok(())
    }

    /// Removes a metadata file if the file that it describes does not exist.
    fn clear_orphan(&self, path: &Path, of: &str) -> io::Result<()> {
        let file = with_end(&path.with_extension(""), of);
        if there(self.disk.stamp_at(&file))?.is_none() {
            let _ = self.disk.remove(path);
        }
        Ok(())
    }

    /// Persists the reads since the last call in file timestamps, for other processes and for this
    /// one after a restart.
    pub(super) fn note_uses(&self) {
        for group in self.files.take_used() {
            let _ = self.disk.touch(&self.group_path(&group));
        }
        for content in self.contents.all() {
            self.note_use(&content);
        }
    }

    fn note_use(&self, content: &super::content::CachedContent) -> bool {
        let in_use = matches!(&*content.state.read(),
            ContentState::Sealed(sealed) if std::sync::Arc::strong_count(sealed) > 1);
        if !content.take_used() && !in_use {
            return false;
        }
        if let Some(marker) = content.marker() {
            let _ = self.disk.touch(marker);
        }
        true
    }

    /// Periodic maintenance: persists uses, closes idle files, recounts and evicts if necessary.
    pub(super) fn tick(&self) {
        self.next_epoch();
        for group in self.files.close_idle() {
            let _ = self.disk.touch(&self.group_path(&group));
        }
        for content in self.contents.all() {
            if !self.note_use(&content) {
                Contents::close(&content, self.epoch());
            }
        }
        if let Err(error) = self.recount_if_suspect() {
            tracing::debug!(%error, "measuring the cache");
        }
        self.room.refresh();
        if self.room.fill() == super::room::Fill::High {
            self.evict();
        }
    }
}

fn with_end(path: &Path, end: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Maps `NotFound` to `None`.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn for_each_file(
    parent: &Path,
    each: &mut dyn FnMut(&Path, &str) -> io::Result<()>,
) -> io::Result<()> {
    let Some(dirs) = there(fs::read_dir(parent))? else { return Ok(()) };
    for dir in dirs {
        let dir = dir?;
        // Not a cache file: at this level, the cache has only directories.
        if dir.file_type()?.is_file() {
            continue;
        }
        let Some(files) = there(fs::read_dir(dir.path()))? else { continue };
        for file in files {
            let file = file?;
            if let Some(name) = file.file_name().to_str() {
                each(&file.path(), name)?;
            }
        }
    }
    Ok(())
}
