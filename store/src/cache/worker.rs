//! The background thread of the cache: it seals, evicts, copies pieces into contents, and closes
//! idle files.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::placement::{ContentId, Placement};
use super::store::CacheInner;
use crate::ids::GroupDigest;

/// How often absent contents may be probed again, and idle files are closed.
const TICK: Duration = Duration::from_secs(20);
/// The maximum number of queued adoptions; further ones are left to the next read.
const ADOPTIONS_MAX: usize = 512;
/// The maximum number of queued seals; further contents are sealed on their next use.
const SEALS_MAX: usize = 4096;
/// The time limit for a pending eviction when the cache is closed. Without that eviction, a cache
/// used only by short-lived processes would stay full forever.
const LAST_EVICTION: Duration = Duration::from_millis(500);

/// The job queue of the thread. Queueing a job never blocks.
#[derive(Debug, Default)]
pub(super) struct Worker {
    work: Mutex<Work>,
    changed: Condvar,
    stopping: AtomicBool,
    stopped_at: OnceLock<Instant>,
}

#[derive(Debug, Default)]
struct Work {
    seals: VecDeque<ContentId>,
    /// The contents in `seals`, so that each is queued once.
    sealing: HashSet<ContentId>,
    adoptions: VecDeque<(GroupDigest, Placement)>,
    evict: bool,
    /// Whether the thread is running a job.
    busy: bool,
}

enum CacheJob {
    Seal(ContentId),
    Adopt(GroupDigest, Placement),
    Evict,
    Tick,
    Stop,
}

impl Worker {
    /// Queues a content that seems to be complete for sealing.
    pub(super) fn seal(&self, id: ContentId) {
        let mut work = self.work.lock();
        if work.seals.len() < SEALS_MAX && work.sealing.insert(id) {
            work.seals.push_back(id);
            self.changed.notify_all();
        }
    }

    /// Queues a cached group for copying into a content that it also belongs to.
    pub(super) fn adopt(&self, group: GroupDigest, placement: Placement) {
        let mut work = self.work.lock();
        let job = (group, placement);
        if work.adoptions.len() < ADOPTIONS_MAX && !work.adoptions.contains(&job) {
            work.adoptions.push_back(job);
            self.changed.notify_all();
        }
    }

    /// Requests an eviction.
    pub(super) fn evict(&self) {
        let mut work = self.work.lock();
        if !work.evict {
            work.evict = true;
            self.changed.notify_all();
        }
    }

    /// Returns whether the cache is being closed. Work that can be done later stops.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Returns whether the time limit of the last eviction has expired.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.stopped_at.get().is_some_and(|at| at.elapsed() > LAST_EVICTION)
    }

    /// Blocks until the queue is empty and the thread is idle.
    pub(super) fn settle(&self) {
        let mut work = self.work.lock();
        while work.busy || work.evict || !work.seals.is_empty() || !work.adoptions.is_empty() {
            self.changed.wait(&mut work);
        }
    }

    /// Blocks until a job is queued, the tick is due, or the cache is being closed. Evictions go
    /// first.
    fn next(&self, tick: Instant) -> CacheJob {
        let mut work = self.work.lock();
        work.busy = false;
        loop {
            if self.is_stopping() && (!work.evict || self.is_out_of_time()) {
                // Wake all threads in `settle`, because the remaining jobs will not be done.
                *work = Work::default();
                self.changed.notify_all();
                return CacheJob::Stop;
            }
            let job = if std::mem::take(&mut work.evict) {
                Some(CacheJob::Evict)
            } else if let Some((group, placement)) = work.adoptions.pop_front() {
                Some(CacheJob::Adopt(group, placement))
            } else if let Some(id) = work.seals.pop_front() {
                work.sealing.remove(&id);
                Some(CacheJob::Seal(id))
            } else {
                None
            };
            if let Some(job) = job {
                work.busy = true;
                return job;
            }
            self.changed.notify_all();
            if self.changed.wait_until(&mut work, tick).timed_out() {
                return CacheJob::Tick;
            }
        }
    }

    fn stop(&self) {
        let _work = self.work.lock();
        self.stopped_at.get_or_init(Instant::now);
        self.stopping.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

/// Owns the thread; joins it on drop.
#[derive(Debug)]
pub(super) struct WorkerThread {
    worker: Arc<Worker>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    pub(super) fn start(worker: Arc<Worker>, inner: Weak<CacheInner>) -> std::io::Result<Self> {
        let shared = Arc::clone(&worker);
        let thread = std::thread::Builder::new()
            .name("inlay-cache".into())
            .spawn(move || run(&shared, &inner))?;
        Ok(Self { worker, thread: Some(thread) })
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.worker.stop();
        if let Some(thread) = self.thread.take() {
            // The thread ends at the next block that it hashes, or after the last eviction.
            let _ = thread.join();
        }
    }
}

/// Runs the thread. Holds only a weak reference while idle, so that the cache can be dropped.
fn run(worker: &Worker, inner: &Weak<CacheInner>) {
    let mut tick = Instant::now() + TICK;
    loop {
        let job = worker.next(tick);
        if matches!(job, CacheJob::Stop) {
            return;
        }
        let Some(inner) = inner.upgrade() else { return };
        let is_tick = matches!(job, CacheJob::Tick);
        let work = || match job {
            CacheJob::Seal(id) => inner.seal(&id),
            CacheJob::Adopt(group, placement) => inner.adopt(&group, &placement),
            CacheJob::Evict => inner.evict(),
            CacheJob::Tick => inner.tick(),
            CacheJob::Stop => {}
        };
        // A panic must not end the thread: `settle` would block forever, and nothing would be
        // evicted any more. Unwinding releases the locks, and each file is verified on first use.
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a job of the cache's thread panicked");
            // Its reservations may not match the disk.
            inner.write_failed();
        }
        if is_tick {
            tick = Instant::now() + TICK;
        }
    }
}
