//! One request from its start to the cache: fetch, verify, decode, answer, store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::join_all;
use inlay_store::cache::Insert;
use inlay_store::format::FormatError;
use inlay_store::group::decode_group;
use tokio::time::timeout;

use crate::error::FetchError;
use crate::fetcher::Shared;
use crate::stats::{Gauged, count};
use crate::table::{Announce, Batch, Settled, Trouble};
use crate::want::{Class, GroupRef};

type Want = (GroupRef, Announce);

/// Runs one batch. Whatever happens, even if the task is dropped, each of its groups is settled and
/// its room is given back.
pub(crate) async fn run(shared: Arc<Shared>, batch: Batch) {
    let _task = Gauged::new(&shared.counters.tasks);
    let Batch { class, wants, bytes, .. } = batch;
    let mut buffers = Buffers { shared: Arc::clone(&shared), class, bytes };
    let request = Request { shared: Arc::clone(&shared), class };
    let unsettled: Vec<Unsettled> = wants
        .iter()
        .map(|(want, _)| Unsettled { shared: Arc::clone(&shared), want: *want, done: Done::No })
        .collect();
    let (wants, unsettled) = from_cache(&shared, wants, unsettled).await;
    if wants.is_empty() {
        return;
    }
    let fetched = fetch(&shared, class, &wants).await;
    drop(request);
    let (start, stored) = match fetched {
        Fetched::Bytes(start, stored) => (start, stored),
        Fetched::Failed(error) => {
            let groups = unsettled.len();
            for one in unsettled {
                one.trouble(Trouble::Request { error: error.clone(), class, groups });
            }
            drop(buffers);
            return;
        }
        Fetched::Abandoned => {
            unsettled.into_iter().for_each(Unsettled::let_go);
            return;
        }
    };
    shared.counters.fetched_bytes.fetch_add(stored.len() as u64, Ordering::Relaxed);
    let mut work: Vec<_> = wants.iter().zip(unsettled).collect();
    // Those that somebody waits for are decoded first.
    work.sort_by_key(|((_, announce), _)| announce.receiver_count() == 0);
    let landed = join_all(work.into_iter().map(|((want, announce), one)| {
        let slice = slice_of(&stored, start, want);
        decode(&shared, *want, announce, slice, one)
    }))
    .await;
    drop(stored);
    let landed = landed.into_iter().flatten().collect();
    insert(&shared, class, &mut buffers, landed).await;
}

enum Fetched {
    /// Where they begin in the blob, and the bytes.
    Bytes(u64, Bytes),
    Failed(FetchError),
    /// Nobody waits any more.
    Abandoned,
}

/// A group may have come into the cache since it was asked for: from another process, or from a
/// fetch that had just ended. Answers those, and gives back the others.
async fn from_cache(
    shared: &Arc<Shared>,
    wants: Vec<Want>,
    unsettled: Vec<Unsettled>,
) -> (Vec<Want>, Vec<Unsettled>) {
    let Some(cache) = &shared.cache else { return (wants, unsettled) };
    let (mut rest, mut open) = (Vec::new(), Vec::new());
    for (want, one) in wants.into_iter().zip(unsettled) {
        let GroupRef { group, home, .. } = want.0;
        if cache.has(&group.digest, home.as_ref()) {
            let cache = cache.clone();
            let read = move || cache.read_placed(&group.digest, home.as_ref(), group.raw_len);
            if let Ok(Some(decoded)) = shared.runtime.spawn_blocking(read).await {
                one.landed(Bytes::from(decoded)).settle(None);
                continue;
            }
        }
        rest.push(want);
        open.push(one);
    }
    (rest, open)
}

async fn fetch(shared: &Shared, class: Class, wants: &[Want]) -> Fetched {
    let Some((first, _)) = wants.first() else { return Fetched::Abandoned };
    let range = Batch::range_of(wants);
    let (start, limits) = (range.start, &shared.limits);
    let get = shared.source.get_range(&first.blob, range, class, limits.store_budget);
    tokio::select! {
        got = timeout(limits.deadline, get) => match got {
            Ok(Ok(stored)) => Fetched::Bytes(start, stored),
            Ok(Err(source)) => Fetched::Failed(FetchError::Store {
                blob: first.blob,
                offset: start,
                source: Arc::new(source),
            }),
            Err(_) => Fetched::Failed(shared.too_late(first)),
        },
        () = shared.stop.cancelled() => Fetched::Failed(FetchError::Shutdown),
        () = abandoned(shared, class, wants) => Fetched::Abandoned,
    }
}

/// Ends when nobody waits for any of these groups; never, if nobody had to.
async fn abandoned(shared: &Shared, class: Class, wants: &[Want]) {
    if class == Class::ReadAhead {
        return std::future::pending().await;
    }
    loop {
        for (_, announce) in wants {
            announce.closed().await;
        }
        // A reader may have come while another went: they come under this lock.
        if shared.table.lock().abandon(wants) {
            return;
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
    want: GroupRef,
    announce: &Announce,
    stored: Option<Bytes>,
    one: Unsettled,
) -> Option<Landed> {
    let ahead = match announce.receiver_count() {
        0 => shared.read_ahead_decoders.acquire().await.ok(),
        _ => None,
    };
    let permit = shared.decoders.acquire().await;
    let decoded = shared
        .runtime
        .spawn_blocking(move || decode_group(&stored.unwrap_or_default(), &want.group))
        .await;
    drop((permit, ahead));
    match decoded {
        Ok(Ok(decoded)) => {
            count(&shared.counters.groups);
            Some(one.landed(Bytes::from(decoded)))
        }
        Ok(Err(source)) => {
            one.corrupt(source);
            None
        }
        // The runtime is going down.
        Err(_) => None,
    }
}

/// Hands the groups to the cache; memory keeps for a while those that it does not take.
async fn insert(shared: &Arc<Shared>, class: Class, buffers: &mut Buffers, landed: Vec<Landed>) {
    let bytes: u64 = landed.iter().map(|one| one.bytes.len() as u64).sum();
    let Some(cache) = shared.cache.clone() else {
        return landed.into_iter().for_each(Landed::keep);
    };
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    // A slow disk holds read-ahead back. Readers it must not hold back: their buffers are freed for
    // the next of them, and if too much waits for the disk, these groups are not cached.
    let backlog = match class {
        Class::ReadAhead => None,
        Class::Demand => {
            let Ok(backlog) = shared.insert_backlog.try_acquire_many(kib) else {
                return landed.into_iter().for_each(Landed::keep);
            };
            buffers.release();
            Some(backlog)
        }
    };
    for one in landed {
        let Ok(_slot) = shared.inserters.acquire().await else { return };
        let (cache, bytes) = (cache.clone(), one.bytes.clone());
        let GroupRef { group, home, .. } = one.want;
        let insert = move || cache.insert_placed(&group.digest, home.as_ref(), &bytes);
        let inserted = shared.runtime.spawn_blocking(insert).await;
        match inserted {
            Ok(Insert::Stored | Insert::AlreadyThere) => one.settle(None),
            Ok(Insert::Full | Insert::Paused | Insert::Failed(_)) | Err(_) => one.keep(),
        }
    }
    drop(backlog);
}

/// The place of a request. Given back when dropped.
struct Request {
    shared: Arc<Shared>,
    class: Class,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.shared.table.lock().request_ended(self.class);
        self.shared.pump();
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
        self.shared.table.lock().release(self.class, bytes);
        self.shared.pump();
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.release();
    }
}

enum Done {
    No,
    Yes,
}

/// A group whose readers have no answer yet. If it is dropped so, they get an error.
struct Unsettled {
    shared: Arc<Shared>,
    want: GroupRef,
    done: Done,
}

impl Unsettled {
    fn landed(mut self, bytes: Bytes) -> Landed {
        self.done = Done::Yes;
        let (shared, want) = (Arc::clone(&self.shared), self.want);
        shared.table.lock().landed(&want, bytes.clone());
        Landed { shared, want, bytes, done: Done::No }
    }

    fn corrupt(self, source: FormatError) {
        let (blob, offset) = (self.want.blob, self.want.group.offset);
        count(&self.shared.counters.corrupt);
        tracing::warn!(%blob, offset, error = %source, "a group came with wrong bytes");
        let source = Arc::new(source);
        self.trouble(Trouble::Corrupt(Box::new(move |attempts| FetchError::Corrupt {
            blob,
            offset,
            attempts,
            source,
        })));
    }

    fn trouble(mut self, trouble: Trouble) {
        self.done = Done::Yes;
        self.settle(trouble);
    }

    /// Its flight has been removed already.
    fn let_go(mut self) {
        self.done = Done::Yes;
    }

    fn settle(&self, trouble: Trouble) {
        if let Trouble::Request { error, .. } = &trouble {
            tracing::debug!(%error, "a request failed");
        }
        let settled = self.shared.table.lock().trouble(&self.want, trouble);
        match settled {
            Settled::Failed => count(&self.shared.counters.failed),
            Settled::Again => self.shared.pump(),
            Settled::Dropped => {}
        }
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if matches!(self.done, Done::No) {
            let (error, class) = (FetchError::Shutdown, Class::Demand);
            self.settle(Trouble::Request { error, class, groups: 1 });
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
        self.shared.table.lock().forget(&self.want, keep);
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        if matches!(self.done, Done::No) {
            self.shared.table.lock().forget(&self.want, None);
        }
    }
}
