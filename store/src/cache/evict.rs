//! Eviction: what was used longest ago goes, but nothing that is in use, held or pinned.

use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::content::{FileRole, State, parse_name, sealed_cost};
use super::contents::Contents;
use super::disk::{Open, Time};
use super::entry::file_cost;
use super::fill::cost_of_ready;
use super::lease;
use super::pins::Pinned;
use super::placement::ContentId;
use super::store::Inner;
use crate::ids::{Digest, GroupDigest};

/// The most files that one scan keeps in mind, the least recently used of all: 100 bytes each.
const CANDIDATES_MAX: usize = 1 << 16;

/// How much longer than an eviction that did not free enough the rest after it is.
const REST: u32 = 10;

/// Something that can go. Ordered by its last use.
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

/// What eviction has to leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// What is pinned.
    Pins,
    /// Nothing but what is in use.
    Nothing,
}

/// What an eviction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Evicted {
    /// Files of groups.
    pub groups: u64,
    /// Contents, whole or in parts.
    pub contents: u64,
    /// What they took.
    pub bytes: u64,
    /// Files left alone because they are in use, held or pinned.
    pub spared: u64,
}

/// What there is in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Inventory {
    /// Files of groups.
    pub groups: u64,
    /// What they take.
    pub group_bytes: u64,
    /// Contents that are whole.
    pub contents_whole: u64,
    /// Contents of which some ranges are there.
    pub contents_partial: u64,
    /// What contents take.
    pub content_bytes: u64,
}

impl Inventory {
    pub(super) fn bytes(&self) -> u64 {
        self.group_bytes + self.content_bytes
    }
}

impl Inner {
    /// Makes room, if the cache is above its high mark or could not take something.
    pub(super) fn evict(&self) {
        let began = Instant::now();
        if self.rest_until.lock().is_some_and(|until| began < until) {
            return;
        }
        self.room.look();
        let mut target = self.room.low();
        if self.starved.swap(false, Ordering::Relaxed) {
            // The disk is full before the budget is.
            target = target.min(self.room.used() / 10 * 9);
        }
        match self.evict_to(target, Spare::Pins) {
            Ok(evicted) => tracing::debug!(?evicted, "evicted"),
            Err(error) => tracing::debug!(%error, "evicting"),
        }
        // When all that is left is in use or pinned, looking again and again would help nobody.
        let rest = (self.room.used() > target).then(|| began.elapsed() * REST);
        *self.rest_until.lock() = rest.and_then(|rest| Instant::now().checked_add(rest));
    }

    /// Evicts until the cache takes no more than `target`, or nothing more can go.
    pub(super) fn evict_to(&self, target: u64, spare: Spare) -> io::Result<Evicted> {
        let _alone = self.eviction_lock()?;
        self.note_uses();
        self.recount_if_suspect()?;
        let mut total = Evicted::default();
        // Others may evict and store meanwhile, so it is looked again at what there is.
        for _ in 0..64 {
            self.room.look();
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
            // A process that died or a disk that failed may have left the count too high.
            let used = self.room.used();
            let drift = used.saturating_sub(inventory.bytes().saturating_sub(round.bytes));
            let missed = used > target && !more;
            if drift > if missed { 0 } else { self.room.limit() / 64 } {
                self.recount()?;
            }
            if !more {
                break;
            }
        }
        self.counters.evicted_bytes.fetch_add(total.bytes, Ordering::Relaxed);
        self.counters.evictions.fetch_add(total.groups + total.contents, Ordering::Relaxed);
        Ok(total)
    }

    fn recount(&self) -> io::Result<()> {
        self.room.recount(|| Ok(self.scan(&mut |_| ())?.bytes()))
    }

    /// A disk that failed may have done what it said it did not, or not what it said it did.
    fn recount_if_suspect(&self) -> io::Result<()> {
        if self.suspect.swap(false, Ordering::Relaxed) {
            let counted = self.recount();
            if counted.is_err() {
                self.suspect.store(true, Ordering::Relaxed);
            }
            return counted;
        }
        Ok(())
    }

    /// One process evicts at a time; who pins keeps eviction out.
    pub(super) fn eviction_lock(&self) -> io::Result<File> {
        let lock = self.disk.open(&self.dir.join("evicting"), Open::ReadWrite)?;
        if self.worker.is_stopping() {
            // Whoever evicts makes room for this process, too.
            lock.try_lock()?;
        } else {
            lock.lock()?;
        }
        Ok(lock)
    }

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
                    self.evict_content(&ContentId { digest, size }, candidate.cost)
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
                    tracing::debug!(%error, "a cache file can't be evicted");
                    self.write_failed();
                    evicted.spared += 1;
                }
            }
        }
        evicted
    }

    fn evict_group(&self, group: &GroupDigest, cost: u64) -> io::Result<bool> {
        let path = self.group_path(group);
        let opening = self.files.opening(group);
        self.files.forget(group);
        let file = match self.disk.open(&path, Open::Read) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        if !lease::own(&file)? {
            return Ok(false);
        }
        self.disk.remove(&path)?;
        drop(opening);
        self.room.release(cost);
        Ok(true)
    }

    fn evict_content(&self, id: &ContentId, cost: u64) -> io::Result<bool> {
        let content = self.contents.get(id);
        Contents::close(&content, self.epoch());
        let Some(_writing) = content.writing.try_lock() else { return Ok(false) };
        if !matches!(&*content.state.read(), State::Absent { .. } | State::Lie) {
            return Ok(false);
        }
        for path in [&content.paths.part, &content.paths.sealed] {
            match self.disk.open(path, Open::Read) {
                Ok(file) => {
                    if !lease::own(&file)? {
                        return Ok(false);
                    }
                    // Held until the names are gone.
                    self.discard(&content, cost);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Looks at every file of the cache. Files that belong to nothing are removed.
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
                        // Its ranges are gone already, its blocks are not.
                        None => there(self.disk.stamp_at(path))?.map_or(0, |s| s.allocated),
                    };
                    (ready, What::Part(id.digest, id.size), cost)
                }
                // Made after the file that it tells of, and removed before it.
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

    fn clear_orphan(&self, path: &Path, of: &str) -> io::Result<()> {
        let file = with_end(&path.with_extension(""), of);
        if there(self.disk.stamp_at(&file))?.is_none() {
            let _ = self.disk.remove(path);
        }
        Ok(())
    }

    /// Writes down what was read since this was last done, so that other processes, and this one
    /// after a restart, know it.
    pub(super) fn note_uses(&self) {
        for group in self.files.take_used() {
            let _ = self.disk.touch(&self.group_path(&group));
        }
        for content in self.contents.all() {
            self.note_use(&content);
        }
    }

    fn note_use(&self, content: &super::content::Content) -> bool {
        let in_use = matches!(&*content.state.read(),
            State::Sealed(sealed) if std::sync::Arc::strong_count(sealed) > 1);
        if !content.take_used() && !in_use {
            return false;
        }
        if let Some(marker) = content.marker() {
            let _ = self.disk.touch(marker);
        }
        true
    }

    /// What has to be done every now and then.
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
            tracing::debug!(%error, "counting what the cache takes");
        }
        self.room.look();
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

/// `None` for what is gone.
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
        let Some(files) = there(fs::read_dir(dir?.path()))? else { continue };
        for file in files {
            let file = file?;
            if let Some(name) = file.file_name().to_str() {
                each(&file.path(), name)?;
            }
        }
    }
    Ok(())
}
