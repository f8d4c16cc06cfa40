//! Runs one request end to end: fetch, verify, decode, answer readers, cache.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use futures::future::join_all;
use inlay_store::cache::{Cache, Insert};
use inlay_store::format::FormatError;
use inlay_store::ids::BlobId;
use inlay_store::remote::Arrivals;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::FetchError;
use crate::fetcher::Shared;
use crate::scheduler::{Failed, Request, RequestId, Settled};
use crate::stats::{Gauged, count};
use crate::want::{Class, GroupRef};
use crate::watch::{Failure, FetchEvent, Sent};

/// Arrivals are reported to the scheduler in steps of this many bytes, not per packet.
const TELL_BYTES: u64 = 64 << 10;

/// Runs one request. Guarantees on every path, even if the task is dropped, that each group is
/// settled and the buffers are released.
pub(crate) async fn run(shared: Arc<Shared>, request: Request, stop: CancellationToken) {
    let _task = Gauged::new(&shared.counters.tasks);
    let Request { id, class, wants, buffer_bytes, blob, range, .. } = request;
    let _coming = PendingInsert::new(&shared, &wants);
    let mut buffers = Buffers { shared: Arc::clone(&shared), class, bytes: buffer_bytes };
    let first = (blob, range.start);
    let running = RunningRequest { shared: Arc::clone(&shared), id, class, first, done: Done::No };
    let unsettled: Vec<Unsettled> = wants
        .iter()
        .map(|want| Unsettled { shared: Arc::clone(&shared), want: *want, class, done: Done::No })
        .collect();
    let unsettled = from_cache(&shared, unsettled).await;
    if unsettled.is_empty() {
        running.ended(None);
        return;
    }
    let range = range_of(&unsettled);
    let fetched = fetch(&shared, id, class, &unsettled, range.clone(), &stop).await;
    let stored = match fetched {
        Ok((stored, waited)) => {
            shared.emit(|| FetchEvent::Received(id));
            running.ended(Some((waited, stored.len() as u64)));
            stored
        }
        Err(why) => {
            shared.emit(|| FetchEvent::Over(id, why.as_told()));
            unsettled.into_iter().for_each(Unsettled::leave_to_request);
            // Dropped after `buffers`, so that a retry finds room.
            drop(buffers);
            running.failed(why);
            return;
        }
    };
    shared.counters.bytes.add(class, stored.len() as u64);
    let mut work: Vec<(bool, Unsettled)> = {
        let table = shared.table.lock();
        let waited_for = |one: &Unsettled| table.is_waited_for(&one.want.key());
        unsettled.into_iter().map(|one| (waited_for(&one), one)).collect()
    };
    // Decode groups with waiting readers first.
    work.sort_by_key(|(waited_for, _)| !waited_for);
    let landed = join_all(work.into_iter().map(|(waited_for, one)| {
        let slice = slice_of(&stored, range.start, &one.want);
        decode(&shared, one, slice, waited_for)
    }))
    .await;
    drop(stored);
    let all = landed.iter().all(Option::is_some);
    let told = if all { FetchEvent::Ready(id) } else { FetchEvent::Over(id, Failure::Failed) };
    shared.emit(|| told);
    let landed = landed.into_iter().flatten().collect();
    insert(&shared, class, &mut buffers, landed).await;
}

/// Returns the blob range that covers all of these groups.
fn range_of(unsettled: &[Unsettled]) -> Range<u64> {
    let start = unsettled.iter().map(|one| one.want.group.offset).min().unwrap_or(0);
    let end = unsettled.iter().map(|one| one.want.end()).max().unwrap_or(0);
    start..end
}

/// Settles groups that are cached by now, by another process or a fetch that has just ended, and
/// returns the others.
async fn from_cache(shared: &Arc<Shared>, unsettled: Vec<Unsettled>) -> Vec<Unsettled> {
    let Some(cache) = &shared.cache else { return unsettled };
    let mut open = Vec::with_capacity(unsettled.len());
    for one in unsettled {
        let GroupRef { group, home, .. } = one.want;
        if cache.has(&group.digest, home.as_ref()) {
            let cache = cache.clone();
            let read = move || cache.read_placed(&group.digest, home.as_ref(), group.raw_len);
            if let Ok(Some(decoded)) = shared.runtime.spawn_blocking(read).await {
                one.landed(Bytes::from(decoded)).settle(None);
                continue;
            }
        }
        open.push(one);
    }
    open
}

/// Why a request returned no bytes.
enum NoBytes {
    Error(FetchError),
    Cancelled,
}

impl NoBytes {
    fn as_told(&self) -> Failure {
        match self {
            Self::Error(_) => Failure::Failed,
            Self::Cancelled => Failure::Cancelled,
        }
    }
}

/// Fetches `range`. Returns the bytes and the time it took.
async fn fetch(
    shared: &Arc<Shared>,
    id: RequestId,
    class: Class,
    unsettled: &[Unsettled],
    range: Range<u64>,
    stop: &CancellationToken,
) -> Result<(Bytes, std::time::Duration), NoBytes> {
    let Some(Unsettled { want: first, .. }) = unsettled.first() else {
        return Err(NoBytes::Cancelled);
    };
    if let Some(watch) = shared.watched() {
        let groups: Vec<GroupRef> = unsettled.iter().map(|one| one.want).collect();
        let (blob, range) = (first.blob, range.clone());
        watch.on_event(&FetchEvent::Sent(Sent { id, class, blob, range, groups: &groups }));
    }
    let (start, limits, began) = (range.start, &shared.limits, Instant::now());
    let arrivals = Arc::new(Watch {
        shared: Arc::clone(shared),
        id,
        began,
        answered: AtomicBool::new(false),
        untold: AtomicU64::new(0),
    });
    let watch: Arc<dyn Arrivals> = Arc::<Watch>::clone(&arrivals);
    let get = shared.source.get_range(&first.blob, range, class, limits.store_budget, watch);
    tokio::select! {
        got = timeout(limits.deadline, get) => match got {
            Ok(Ok(stored)) => {
                arrivals.notify();
                Ok((stored, began.elapsed()))
            }
            Ok(Err(source)) => Err(NoBytes::Error(FetchError::Store {
                blob: first.blob,
                offset: start,
                source: Arc::new(source),
            })),
            Err(_) => Err(NoBytes::Error(shared.too_late(first))),
        },
        () = shared.stop.cancelled() => Err(NoBytes::Error(FetchError::Shutdown)),
        () = stop.cancelled() => Err(NoBytes::Cancelled),
    }
}

/// Reports arriving bytes to the scheduler.
struct Watch {
    shared: Arc<Shared>,
    id: RequestId,
    began: Instant,
    answered: AtomicBool,
    untold: AtomicU64,
}

impl Watch {
    fn notify(&self) {
        let bytes = self.untold.swap(0, Ordering::Relaxed);
        let now = self.shared.now();
        self.shared.table.lock().scheduler.arrived(now, self.id, bytes);
        self.shared.pump();
    }
}

impl Arrivals for Watch {
    fn came(&self, bytes: u64) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            let (now, after) = (self.shared.now(), self.began.elapsed());
            self.shared.table.lock().scheduler.answered(now, after);
            self.shared.emit(|| FetchEvent::FirstByte(self.id));
        }
        if self.untold.fetch_add(bytes, Ordering::Relaxed) + bytes >= TELL_BYTES {
            self.notify();
        }
    }
}

fn slice_of(stored: &Bytes, start: u64, want: &GroupRef) -> Option<Bytes> {
    let from = usize::try_from(want.group.offset.checked_sub(start)?).ok()?;
    let to = from.checked_add(want.group.stored_len as usize)?;
    (to <= stored.len()).then(|| stored.slice(from..to))
}

/// Verifies and decodes a group and wakes its readers.
async fn decode(
    shared: &Arc<Shared>,
    one: Unsettled,
    stored: Option<Bytes>,
    waited_for: bool,
) -> Option<Landed> {
    let (group, decode) = (one.want.group, shared.decode);
    let decode = move || {
        // Nothing that the decoder shares with others can be left inconsistent.
        catch_unwind(AssertUnwindSafe(|| decode(&stored.unwrap_or_default(), &group)))
    };
    let decoded = if waited_for {
        let _permit = shared.decoders.acquire().await;
        shared.runtime.spawn_blocking(decode).await.ok()
    } else {
        shared.workers.run(decode).await
    };
    match decoded {
        Some(Ok(Ok(decoded))) => {
            shared.counters.groups.add(one.class, 1);
            Some(one.landed(Bytes::from(decoded)))
        }
        Some(Ok(Err(source))) => {
            one.corrupt(source);
            None
        }
        Some(Err(_)) => {
            one.panicked();
            None
        }
        // The runtime is shutting down. Dropping `one` fails its readers.
        None => None,
    }
}

/// Inserts the groups into the cache; those it rejects stay in memory for a while.
async fn insert(shared: &Arc<Shared>, class: Class, buffers: &mut Buffers, landed: Vec<Landed>) {
    let bytes: u64 = landed.iter().map(|one| one.bytes.len() as u64).sum();
    let Some(cache) = shared.cache.clone() else {
        return landed.into_iter().for_each(Landed::keep);
    };
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    // Backpressure: a slow disk throttles prefetch, because its buffers stay taken until the insert
    // is done. It must not throttle readers: demand buffers are released for the next reader, and
    // if the insert backlog is full, these groups are not cached.
    let backlog = if class == Class::Demand {
        let Ok(backlog) = shared.insert_backlog.try_acquire_many(kib) else {
            return landed.into_iter().for_each(Landed::keep);
        };
        buffers.release();
        Some(backlog)
    } else {
        None
    };
    for one in landed {
        let (cache, bytes) = (cache.clone(), one.bytes.clone());
        let GroupRef { group, home, .. } = one.want;
        let insert = move || match class {
            Class::Rest if !has_room(&cache, bytes.len()) => Insert::Full,
            _ => cache.insert_placed(&group.digest, home.as_ref(), &bytes),
        };
        let inserted = if class == Class::Demand {
            let Ok(_slot) = shared.inserters.acquire().await else { return };
            shared.runtime.spawn_blocking(insert).await.ok()
        } else {
            shared.workers.run(insert).await
        };
        match inserted {
            Some(Insert::Stored | Insert::AlreadyThere) => one.settle(None),
            Some(Insert::Full | Insert::Paused | Insert::Failed(_)) | None => one.keep(),
        }
    }
    drop(backlog);
}

/// Returns whether the cache can take `len` more bytes without evicting. The probe has checked
/// this, but other inserts may have happened since. The limit is halfway to the high mark, because
/// several tasks check concurrently.
fn has_room(cache: &Cache, len: usize) -> bool {
    let (high, low) = cache.marks();
    cache.stats().disk_bytes.saturating_add(len as u64) <= low.midpoint(high)
}

enum Done {
    No,
    Yes,
}

/// Returns why a task is dropped before its end: a panic, or the end of its runtime.
fn died((blob, offset): (BlobId, u64)) -> FetchError {
    if thread::panicking() { FetchError::Panicked { blob, offset } } else { FetchError::Shutdown }
}

/// A request in flight. Dropping it unfinished fails its groups.
struct RunningRequest {
    shared: Arc<Shared>,
    id: RequestId,
    class: Class,
    /// Blob and offset of the requested range.
    first: (BlobId, u64),
    done: Done,
}

impl RunningRequest {
    /// Marks the request as successful. `fetched` is the time it took and its length in bytes;
    /// `None` if the cache had all groups.
    fn ended(mut self, fetched: Option<(std::time::Duration, u64)>) {
        self.done = Done::Yes;
        let now = self.shared.now();
        {
            let mut table = self.shared.table.lock();
            table.stops.remove(&self.id);
            table.scheduler.ended(now, self.id);
            if let (Class::Demand, Some((waited, bytes))) = (self.class, fetched) {
                table.scheduler.served(now, waited, bytes);
            }
        }
        self.shared.pump();
    }

    fn failed(mut self, why: NoBytes) {
        self.done = Done::Yes;
        self.settle(why);
    }

    fn settle(&self, why: NoBytes) {
        let (failed, error) = match why {
            NoBytes::Cancelled => (Failed::Cancelled, FetchError::Shutdown),
            NoBytes::Error(error) => {
                tracing::debug!(%error, "a request failed");
                self.shared.counters.failed_requests.add(self.class, 1);
                (Failed::Store, error)
            }
        };
        let now = self.shared.now();
        {
            let mut table = self.shared.table.lock();
            table.stops.remove(&self.id);
            for (key, settled) in table.scheduler.failed(now, self.id, failed) {
                match settled {
                    Settled::Failed => {
                        count(&self.shared.counters.failed);
                        let closed = table.closed;
                        let error = if closed { FetchError::Shutdown } else { error.clone() };
                        table.fail(&key, error);
                    }
                    Settled::Dropped => table.tidy(&key),
                    Settled::Again => {}
                }
            }
        }
        self.shared.pump();
    }
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        if matches!(self.done, Done::No) {
            self.settle(NoBytes::Error(died(self.first)));
        }
    }
}

/// Accounts decoded bytes in flight into the cache, until dropped.
struct PendingInsert {
    shared: Arc<Shared>,
    bytes: u64,
}

impl PendingInsert {
    fn new(shared: &Arc<Shared>, wants: &[GroupRef]) -> Self {
        let bytes = wants.iter().map(|want| u64::from(want.group.raw_len)).sum();
        shared.coming.fetch_add(bytes, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), bytes }
    }
}

impl Drop for PendingInsert {
    fn drop(&mut self) {
        self.shared.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reserved buffer bytes, released on drop.
struct Buffers {
    shared: Arc<Shared>,
    class: Class,
    bytes: u64,
}

impl Buffers {
    fn release(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.shared.table.lock().scheduler.release(self.class, bytes);
        self.shared.pump();
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.release();
    }
}

/// A group whose readers have not been answered. Dropping it fails them.
struct Unsettled {
    shared: Arc<Shared>,
    want: GroupRef,
    class: Class,
    done: Done,
}

impl Unsettled {
    fn landed(mut self, bytes: Bytes) -> Landed {
        self.done = Done::Yes;
        let (shared, want) = (Arc::clone(&self.shared), self.want);
        shared.table.lock().landed(&want, bytes.clone());
        Landed { shared, want, bytes, done: Done::No }
    }

    fn corrupt(mut self, source: FormatError) {
        self.done = Done::Yes;
        let shared = &self.shared;
        let (blob, offset) = (self.want.blob, self.want.group.offset);
        count(&shared.counters.corrupt);
        tracing::warn!(%blob, offset, error = %source, "a group failed verification");
        let (now, key) = (shared.now(), self.want.key());
        {
            let mut table = shared.table.lock();
            let (settled, attempts) = table.scheduler.corrupt(now, &key);
            match settled {
                Settled::Failed => {
                    count(&shared.counters.failed);
                    let source = Arc::new(source);
                    let error = FetchError::Corrupt { blob, offset, attempts, source };
                    let closed = table.closed;
                    table.fail(&key, if closed { FetchError::Shutdown } else { error });
                }
                Settled::Dropped => table.tidy(&key),
                Settled::Again => {}
            }
        }
        shared.pump();
    }

    /// Fails the readers: the decoder panicked, and would again.
    fn panicked(mut self) {
        let (blob, offset) = (self.want.blob, self.want.group.offset);
        tracing::error!(%blob, offset, "the decoder of a group panicked");
        self.lost(FetchError::Panicked { blob, offset });
    }

    fn lost(&mut self, error: FetchError) {
        self.done = Done::Yes;
        let (shared, key) = (&self.shared, self.want.key());
        let now = shared.now();
        {
            let mut table = shared.table.lock();
            if table.is_waited_for(&key) {
                count(&shared.counters.failed);
            }
            table.scheduler.lost(now, &key);
            let error = if table.closed { FetchError::Shutdown } else { error };
            table.fail(&key, error);
        }
        shared.pump();
    }

    /// Leaves the group to be settled by the failure of its request.
    fn leave_to_request(mut self) {
        self.done = Done::Yes;
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if matches!(self.done, Done::No) {
            self.lost(died((self.want.blob, self.want.group.offset)));
        }
    }
}

/// A group whose readers have been answered, on its way into the cache.
struct Landed {
    shared: Arc<Shared>,
    want: GroupRef,
    bytes: Bytes,
    done: Done,
}

impl Landed {
    /// Keeps the group in memory for a while, because the cache rejected it.
    fn keep(self) {
        count(&self.shared.counters.not_cached);
        let bytes = self.bytes.clone();
        self.settle(Some(bytes));
    }

    fn settle(mut self, keep: Option<Bytes>) {
        self.done = Done::Yes;
        let now = self.shared.now();
        self.shared.table.lock().forget(now, &self.want, keep);
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        if matches!(self.done, Done::No) {
            let now = self.shared.now();
            self.shared.table.lock().forget(now, &self.want, None);
        }
    }
}
