//! One request from its start to the cache: fetch, verify, decode, answer, store.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::join_all;
use inlay_store::cache::{Cache, Insert};
use inlay_store::format::FormatError;
use inlay_store::group::decode_group;
use inlay_store::remote::Arrivals;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::FetchError;
use crate::fetcher::Shared;
use crate::scheduler::{Failed, Request, RequestId, Settled};
use crate::stats::{Gauged, count};
use crate::want::{Class, GroupRef};
use crate::watch::{Failure, FetchEvent, Sent};

/// Bytes that come are told of when they are so many: not for each packet.
const TELL_BYTES: u64 = 64 << 10;

/// Runs one request. Whatever happens, even if the task is dropped, each of its groups is settled and
/// its room is given back.
pub(crate) async fn run(shared: Arc<Shared>, request: Request, stop: CancellationToken) {
    let _task = Gauged::new(&shared.counters.tasks);
    let Request { id, class, wants, buffer_bytes, .. } = request;
    let _coming = Coming::new(&shared, &wants);
    let mut buffers = Buffers { shared: Arc::clone(&shared), class, bytes: buffer_bytes };
    let running = RunningRequest { shared: Arc::clone(&shared), id, class, done: Done::No };
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
            shared.tell(|| FetchEvent::Received(id));
            running.ended(Some((waited, stored.len() as u64)));
            stored
        }
        Err(why) => {
            shared.tell(|| FetchEvent::Over(id, why.as_told()));
            unsettled.into_iter().for_each(Unsettled::leave_to_request);
            // After them, so that buffers are there for what is tried again.
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
    // Those that somebody waits for are decoded first.
    work.sort_by_key(|(waited_for, _)| !waited_for);
    let landed = join_all(work.into_iter().map(|(waited_for, one)| {
        let slice = slice_of(&stored, range.start, &one.want);
        decode(&shared, one, slice, waited_for)
    }))
    .await;
    drop(stored);
    let all = landed.iter().all(Option::is_some);
    let told = if all { FetchEvent::Ready(id) } else { FetchEvent::Over(id, Failure::Failed) };
    shared.tell(|| told);
    let landed = landed.into_iter().flatten().collect();
    insert(&shared, class, &mut buffers, landed).await;
}

/// The bytes of the blob that hold all of these groups.
fn range_of(unsettled: &[Unsettled]) -> Range<u64> {
    let start = unsettled.iter().map(|one| one.want.group.offset).min().unwrap_or(0);
    let end = unsettled.iter().map(|one| one.want.end()).max().unwrap_or(0);
    start..end
}

/// A group may have come into the cache since it was asked for: from another process, or from a
/// fetch that had just ended. Answers those, and gives back the others.
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

/// Why a request did not succeed.
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

/// The bytes, and how long they took.
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
        watch.told(&FetchEvent::Sent(Sent { id, class, blob, range, groups: &groups }));
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
                arrivals.tell();
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

/// Tells the scheduler of bytes that come.
struct Watch {
    shared: Arc<Shared>,
    id: RequestId,
    began: Instant,
    answered: AtomicBool,
    untold: AtomicU64,
}

impl Watch {
    fn tell(&self) {
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
            self.shared.tell(|| FetchEvent::FirstByte(self.id));
        }
        if self.untold.fetch_add(bytes, Ordering::Relaxed) + bytes >= TELL_BYTES {
            self.tell();
        }
    }
}

fn slice_of(stored: &Bytes, start: u64, want: &GroupRef) -> Option<Bytes> {
    let from = usize::try_from(want.group.offset.checked_sub(start)?).ok()?;
    let to = from.checked_add(want.group.stored_len as usize)?;
    (to <= stored.len()).then(|| stored.slice(from..to))
}

/// Verifies and decodes a group, and answers its readers.
async fn decode(
    shared: &Arc<Shared>,
    one: Unsettled,
    stored: Option<Bytes>,
    waited_for: bool,
) -> Option<Landed> {
    let group = one.want.group;
    let decode = move || decode_group(&stored.unwrap_or_default(), &group);
    let decoded = if waited_for {
        let _permit = shared.decoders.acquire().await;
        shared.runtime.spawn_blocking(decode).await.ok()
    } else {
        shared.workers.run(decode).await
    };
    match decoded {
        Some(Ok(decoded)) => {
            shared.counters.groups.add(one.class, 1);
            Some(one.landed(Bytes::from(decoded)))
        }
        Some(Err(source)) => {
            one.corrupt(source);
            None
        }
        // The runtime is going down.
        None => None,
    }
}

/// Hands the groups to the cache; memory keeps for a while those that it does not take.
async fn insert(shared: &Arc<Shared>, class: Class, buffers: &mut Buffers, landed: Vec<Landed>) {
    let bytes: u64 = landed.iter().map(|one| one.bytes.len() as u64).sum();
    let Some(cache) = shared.cache.clone() else {
        return landed.into_iter().for_each(Landed::keep);
    };
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    // A slow disk holds prefetching back. Readers it must not hold back: their buffers are freed for
    // the next of them, and if too much waits for the disk, these groups are not cached.
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

/// Whether the cache takes so many bytes more without evicting anything. When they were asked for, it
/// did; but others came meanwhile. Halfway to where eviction begins, because several look at once.
fn has_room(cache: &Cache, len: usize) -> bool {
    let (high, low) = cache.marks();
    cache.figures().disk_bytes.saturating_add(len as u64) <= low.midpoint(high)
}

enum Done {
    No,
    Yes,
}

/// A request that is under way. If it is dropped so, its groups are lost.
struct RunningRequest {
    shared: Arc<Shared>,
    id: RequestId,
    class: Class,
    done: Done,
}

impl RunningRequest {
    /// It has ended well. `fetched` says how long its bytes took and how many they were.
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
            self.settle(NoBytes::Error(FetchError::Shutdown));
        }
    }
}

/// Decoded bytes that will be in the cache when this is dropped, or never.
struct Coming {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Coming {
    fn new(shared: &Arc<Shared>, wants: &[GroupRef]) -> Self {
        let bytes = wants.iter().map(|want| u64::from(want.group.raw_len)).sum();
        shared.coming.fetch_add(bytes, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), bytes }
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.shared.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Room for buffers. Given back when dropped.
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

/// A group whose readers have no answer yet. If it is dropped so, they get an error.
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
        tracing::warn!(%blob, offset, error = %source, "a group came with wrong bytes");
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

    /// The failure of its request settles it.
    fn leave_to_request(mut self) {
        self.done = Done::Yes;
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if matches!(self.done, Done::No) {
            let mut table = self.shared.table.lock();
            table.scheduler.lost(&self.want.key());
            table.fail(&self.want.key(), FetchError::Shutdown);
        }
    }
}

/// A group whose readers are answered and that is on its way into the cache.
struct Landed {
    shared: Arc<Shared>,
    want: GroupRef,
    bytes: Bytes,
    done: Done,
}

impl Landed {
    /// The cache does not have it: memory keeps it for a while.
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
