//! One outbox: snapshots sealed on this host for one store, and their shipping state.
//!
//! A single lock covers the queue, the captures in flight and removals, so that nothing is removed
//! while a capture writes. It is held only for I/O on the local disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inlay_base::durable;
use inlay_base::record::{self, Extra, Record};
use inlay_store::ids::{Digest, SnapshotId};
use inlay_store::remote::{Name, NameRecord, NameSeen, ObjectKey, OutboxDir, Used};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::super::api::StoreRef;
use super::super::error::DaemonError;
use super::super::timestamp::Moment;
use super::queue::{Claim, Damage, Queue, QueueEntry};
use super::recover;

/// First and longest pause before a failed snapshot is retried; each failure doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_mins(5);
/// Longest pause of a store that fails; starts at [`RETRY_FIRST`].
const PAUSE_LAST: Duration = Duration::from_mins(2);

/// The file that names an outbox's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoreFile {
    #[serde(default = "first_version")]
    version: u32,
    url: Option<String>,
    plain_http: bool,
    #[serde(flatten)]
    extra: Extra,
}

fn first_version() -> u32 {
    1
}

impl Record for StoreFile {
    const VERSION: u32 = 1;
}

impl StoreFile {
    pub(super) fn of(store: &StoreRef) -> Self {
        let StoreRef { url, plain_http } = store.clone();
        Self { version: Self::VERSION, url, plain_http, extra: Extra::new() }
    }

    pub(super) fn store(&self) -> StoreRef {
        StoreRef { url: self.url.clone(), plain_http: self.plain_http }
    }
}

/// Snapshots on their way to one store.
pub(in crate::daemon) struct Outbox {
    pub(super) dir: PathBuf,
    pub(super) objects: OutboxDir,
    state: Mutex<OutboxState>,
}

struct OutboxState {
    store: StoreRef,
    /// The queue, or why it can't be read.
    queue: Result<Queue, Damage>,
    /// Damage outside the queue.
    damaged: Vec<Damage>,
    /// Captures in flight, which write objects.
    sealing: BTreeSet<SealNumber>,
    next_seal: SealNumber,
    /// The directories are durable.
    synced: bool,
    failed: BTreeMap<u64, Failed>,
    /// Shipped snapshots whose objects are still on disk.
    shipped: Vec<(SnapshotId, Vec<ObjectKey>)>,
    /// Set while the store fails: no attempt before this time; the last pause.
    paused: Option<(Instant, Duration)>,
}

impl OutboxState {
    fn pause(&mut self, now: Instant) {
        let pause = self.paused.map_or(RETRY_FIRST, |(_, last)| (last * 2).min(PAUSE_LAST));
        self.paused = Some((now + pause, pause));
    }
}

/// Shipping state of a snapshot after a failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) error: String,
    pub(super) side: Side,
    pub(super) attempts: u32,
    retry_at: Instant,
    pause: Duration,
    /// A retry was requested and has not been attempted yet.
    pub(super) retry_asked: bool,
}

/// Which side a failure is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// This host's data: another attempt will not help on its own.
    Here,
    /// The store, or the network.
    Store,
}

/// An entry and its shipping state.
pub(super) struct Standing {
    pub(super) entry: QueueEntry,
    pub(super) failed: Option<Failed>,
}

/// State of an outbox at one moment.
pub(super) struct OutboxView {
    pub(super) store: StoreRef,
    pub(super) sealing: usize,
    pub(super) waiting: Vec<Standing>,
    pub(super) damaged: Vec<Damage>,
}

/// Sequence number of a capture that seals a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SealNumber(u64);

/// A point in the history of an outbox. A sync waits for earlier snapshots only; otherwise a host
/// that keeps sealing would make it wait forever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    seals_before: SealNumber,
    /// Known once all earlier captures have ended, since their entries belong to them.
    entries_before: Option<u64>,
}

/// When an outbox has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    At(Instant),
    Never,
}

/// Returns the directory of a store's outbox below `outboxes`.
pub(super) fn outbox_dir(outboxes: &Path, store: &StoreRef) -> PathBuf {
    let url = store.url.as_deref().unwrap_or_default();
    outboxes.join(Digest::of(url.as_bytes()).to_hex())
}

impl Outbox {
    /// Opens the outbox of `store` in `dir`, which may be missing. Damaged files are kept and
    /// reported.
    pub(super) fn open(dir: PathBuf, store: StoreRef) -> Self {
        let outbox_dir = OutboxDir::new(dir.join("objects"));
        let recovered = recover::recover(&dir, &outbox_dir, &store);
        let (queue, damaged) = match recovered {
            Ok((queue, damaged)) => (Ok(queue), damaged),
            Err(damage) => (Err(damage), Vec::new()),
        };
        let waits = queue.as_ref().map_or(0, Queue::len);
        if waits > 0 {
            outbox_dir.set_used(Used::Yes);
            tracing::info!(waits, outbox = %dir.display(), "sealed snapshots wait to be shipped");
        }
        let state = OutboxState {
            store,
            queue,
            damaged,
            sealing: BTreeSet::new(),
            next_seal: SealNumber(0),
            synced: false,
            failed: BTreeMap::new(),
            shipped: Vec::new(),
            paused: None,
        };
        Self { dir, objects: outbox_dir, state: Mutex::new(state) }
    }

    /// The directory that reads consult before the store.
    pub(in crate::daemon) fn outbox_dir(&self) -> &OutboxDir {
        &self.objects
    }

    pub(super) fn store(&self) -> StoreRef {
        self.state.lock().store.clone()
    }

    /// Registers a capture that is about to write objects. Fails if the queue is unreadable.
    /// Blocks.
    pub(super) fn begin(&self, store: &StoreRef) -> Result<SealNumber, DaemonError> {
        let mut state = self.state.lock();
        if let Err(damage) = &state.queue {
            return Err(DaemonError::Outbox { path: damage.path.clone(), why: damage.why.clone() });
        }
        if !state.synced {
            self.create().map_err(DaemonError::io("create", self.objects.dir()))?;
            state.synced = true;
        }
        let path = self.dir.join(recover::STORE);
        // Plain HTTP stays allowed once a request has allowed it for this store.
        let plain_http = store.plain_http || state.store.plain_http;
        let wanted = StoreRef { plain_http, ..store.clone() };
        let known = record::read::<StoreFile>(&path)?;
        if known.as_ref().is_none_or(|file| file.store() != wanted) {
            let file = match known {
                Some(file) => StoreFile { plain_http, ..file },
                None => StoreFile::of(&wanted),
            };
            record::write(&path, &file).map_err(DaemonError::io("write", &path))?;
        }
        state.store = wanted;
        let number = state.next_seal;
        state.next_seal = SealNumber(number.0 + 1);
        state.sealing.insert(number);
        self.objects.set_used(Used::Yes);
        Ok(number)
    }

    /// Creates the directories durably. Opening the store may have created them without syncing.
    fn create(&self) -> io::Result<()> {
        durable::create_dirs(self.objects.dir())?;
        self.objects.dir().ancestors().take(4).try_for_each(durable::sync_dir)
    }

    /// Unregisters a capture, successful or not. Blocks.
    pub(super) fn end(&self, number: SealNumber) {
        let mut state = self.state.lock();
        state.sealing.remove(&number);
        self.settle(&mut state);
    }

    /// Commits a snapshot whose objects are written. Durable on return. `set_name` writes the name
    /// into the directory. Blocks.
    pub(super) fn commit(
        &self,
        snapshot: SnapshotId,
        name: Option<&Name>,
        sealed: Moment,
        set_name: impl FnOnce(&NameRecord) -> Result<(), DaemonError>,
    ) -> Result<(), DaemonError> {
        self.sync_objects().map_err(DaemonError::io("sync", self.objects.dir()))?;
        let mut state = self.state.lock();
        let queue = match &mut state.queue {
            Ok(queue) => queue,
            Err(damage) => {
                let Damage { path, why } = damage.clone();
                return Err(DaemonError::Outbox { path, why });
            }
        };
        let claim = name.map(|name| Claim { name: name.clone(), before: self.before(queue, name) });
        let record = name.map(|name| NameRecord {
            name: name.clone(),
            id: snapshot,
            updated: sealed.unix_s,
            updated_ns: sealed.unix_ns,
        });
        queue.push(snapshot, claim, sealed).map_err(DaemonError::io("write to", &self.dir))?;
        // A claim is valid as long as the directory has the name. Written after the entry, so that
        // a crash in between drops a claim that was never acknowledged.
        record.as_ref().map_or(Ok(()), set_name)
    }

    /// Syncs the object directories. Concurrent captures share them: one may rely on a directory
    /// that another has created and not synced yet.
    fn sync_objects(&self) -> io::Result<()> {
        for part in ["blobs", "indexes", "snapshots"] {
            match durable::sync_dir(&self.objects.dir().join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        durable::sync_dir(self.objects.dir())
    }

    /// Returns the current target of `name`, as far as this host knows.
    fn before(&self, queue: &Queue, name: &Name) -> NameSeen {
        let last = queue
            .entries()
            .filter(|entry| entry.name.as_ref().is_some_and(|claim| claim.name == *name));
        match last.last() {
            Some(entry) if self.objects.has_name(name) => NameSeen::Snapshot(entry.snapshot),
            _ => self.objects.seen(name),
        }
    }

    /// Whether `snapshot` waits here.
    pub(super) fn has(&self, snapshot: SnapshotId) -> bool {
        self.state.lock().queue.as_ref().is_ok_and(|queue| queue.has(snapshot))
    }

    /// Returns the next entry to ship: entries that never failed in the order of sealing, then the
    /// others by retry time.
    pub(super) fn next(&self, now: Instant) -> Option<QueueEntry> {
        let state = self.state.lock();
        if state.paused.is_some_and(|(until, _)| until > now) {
            return None;
        }
        let queue = state.queue.as_ref().ok()?;
        let retry_at = |entry: &QueueEntry| state.failed.get(&entry.sequence).map(|it| it.retry_at);
        let due = queue.entries().filter(|entry| retry_at(entry).is_none_or(|at| at <= now));
        due.min_by_key(|entry| (retry_at(entry), entry.sequence)).cloned()
    }

    /// Returns when [`Outbox::next`] will return an entry.
    pub(super) fn due(&self, now: Instant) -> Due {
        let state = self.state.lock();
        let Ok(queue) = &state.queue else { return Due::Never };
        let retry_at =
            |entry: &QueueEntry| state.failed.get(&entry.sequence).map_or(now, |it| it.retry_at);
        let Some(first) = queue.entries().map(retry_at).min() else { return Due::Never };
        let at = state.paused.map_or(first, |(until, _)| until.max(first));
        if at <= now { Due::Now } else { Due::At(at) }
    }

    /// Runs `look` on the queue; `None` if it is unreadable.
    pub(super) fn with_queue<T>(&self, look: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.state.lock().queue.as_mut().ok().map(look)
    }

    /// Removes an entry whose snapshot is in the store. `objects` were shipped for it. Idempotent.
    /// Blocks.
    pub(super) fn finish(&self, sequence: u64, objects: Vec<ObjectKey>) -> io::Result<()> {
        let mut state = self.state.lock();
        let Ok(queue) = &mut state.queue else { return Ok(()) };
        let Some(entry) = queue.get(sequence).cloned() else { return Ok(()) };
        queue.finish(sequence)?;
        if let Some(Claim { name, .. }) = entry.name
            && !queue.claims(&name)
        {
            durable::remove(&self.objects.file(&ObjectKey::Name(name)))?;
        }
        state.failed.remove(&sequence);
        state.paused = None;
        state.shipped.push((entry.snapshot, objects));
        self.settle(&mut state);
        Ok(())
    }

    /// Records a failed attempt and schedules the retry.
    pub(super) fn failed(&self, sequence: u64, side: Side, error: String, now: Instant) {
        let mut state = self.state.lock();
        let before = state.failed.get(&sequence);
        let pause = before.map_or(RETRY_FIRST, |failed| (failed.pause * 2).min(RETRY_LAST));
        let attempts = before.map_or(1, |failed| failed.attempts.saturating_add(1));
        let retry_at = now + pause;
        let failed = Failed { error, side, attempts, retry_at, pause, retry_asked: false };
        state.failed.insert(sequence, failed);
        if side == Side::Store {
            state.pause(now);
        }
    }

    /// Pauses shipping to this store; longer each time.
    pub(super) fn pause(&self, now: Instant) {
        self.state.lock().pause(now);
    }

    /// Schedules everything for an immediate retry.
    pub(super) fn retry(&self, now: Instant) {
        let mut state = self.state.lock();
        state.paused = None;
        for failed in state.failed.values_mut() {
            (failed.retry_at, failed.pause, failed.retry_asked) = (now, RETRY_FIRST / 2, true);
        }
    }

    /// Ends the pause of the store.
    #[cfg(test)]
    pub(super) fn unpause(&self) {
        self.state.lock().paused = None;
    }

    /// Returns the current point.
    pub(super) fn mark(&self) -> Mark {
        Mark { seals_before: self.state.lock().next_seal, entries_before: None }
    }

    /// Reports snapshots sealed, or being sealed, before `mark`.
    pub(super) fn look_before(&self, mark: &mut Mark) -> OutboxView {
        let state = self.state.lock();
        let sealing = state.sealing.range(..mark.seals_before).count();
        if sealing == 0 && mark.entries_before.is_none() {
            mark.entries_before = state.queue.as_ref().ok().map(Queue::next);
        }
        let mut found = Self::look_locked(&state);
        found.sealing = sealing;
        if let Some(end) = mark.entries_before {
            found.waiting.retain(|one| one.entry.sequence < end);
        }
        found
    }

    /// Reports everything in the outbox.
    pub(super) fn view(&self) -> OutboxView {
        Self::look_locked(&self.state.lock())
    }

    fn look_locked(state: &OutboxState) -> OutboxView {
        let mut damaged = state.damaged.clone();
        let waiting = match &state.queue {
            Ok(queue) => {
                damaged.extend(queue.damaged().iter().cloned());
                let standing = |entry: &QueueEntry| Standing {
                    entry: entry.clone(),
                    failed: state.failed.get(&entry.sequence).cloned(),
                };
                queue.entries().map(standing).collect()
            }
            Err(damage) => {
                damaged.push(damage.clone());
                Vec::new()
            }
        };
        damaged.retain(Damage::is_there);
        OutboxView { store: state.store.clone(), sealing: state.sealing.len(), waiting, damaged }
    }

    /// Counts snapshots that wait or are being sealed.
    pub(super) fn load(&self) -> usize {
        let state = self.state.lock();
        state.sealing.len() + state.queue.as_ref().map_or(0, Queue::len)
    }

    /// Whether nothing waits and nothing is being sealed, without waiting for the lock.
    pub(super) fn is_idle(&self) -> bool {
        let Some(state) = self.state.try_lock() else { return false };
        state.sealing.is_empty() && state.queue.as_ref().map_or(0, Queue::len) == 0
    }

    /// Removes shipped objects, unless a capture in flight may refer to them. Called with the lock
    /// held.
    fn settle(&self, state: &mut OutboxState) {
        if !state.sealing.is_empty() {
            return;
        }
        let shipped = std::mem::take(&mut state.shipped);
        let Ok(queue) = &state.queue else { return };
        let (kept, gone): (Vec<_>, Vec<_>) =
            shipped.into_iter().partition(|(id, _)| queue.has(*id));
        let mut failed = Ok(());
        for (id, objects) in gone {
            // The record first: without it the other objects are not found.
            let keys = [ObjectKey::Record(id)].into_iter().chain(objects.into_iter().rev());
            for key in keys {
                failed = failed.and(remove(&self.objects.file(&key)));
            }
        }
        let damaged = queue.damaged().iter().chain(&state.damaged).any(Damage::is_there);
        let idle = queue.len() == 0 && !damaged;
        state.shipped = kept;
        if idle && failed.is_ok() {
            failed = self.clear();
        }
        if let Err(error) = failed {
            let outbox = self.dir.display();
            tracing::warn!(%outbox, %error, "can't clear an outbox: what was shipped stays on disk");
        }
    }

    /// Removes leftovers of failed captures. Requires that nothing waits and no capture runs.
    fn clear(&self) -> io::Result<()> {
        for part in ["snapshots", "names", "indexes", "blobs"] {
            match fs::remove_dir_all(self.objects.dir().join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.objects.set_used(Used::No);
        Ok(())
    }
}

/// Removes a file, not durably: an object that reappears after a power cut is shipped again.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
