//! The cache's one thread of its own: it seals, evicts, copies pieces, and looks after idle files.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::placement::{ContentId, Placement};
use super::store::Inner;
use crate::ids::GroupDigest;

/// How often absent contents may be looked for again, and files that nobody reads are closed.
const TICK: Duration = Duration::from_secs(20);
/// Pieces that wait to be copied into their content; more are left to the next read.
const ADOPTIONS_MAX: usize = 512;
/// Contents that wait to be sealed; more are sealed when they are next used.
const SEALS_MAX: usize = 4096;
/// How long an eviction that is due may still take once the cache is closed. Without it a cache
/// that only short-lived processes use would stay full for ever.
const LAST_EVICTION: Duration = Duration::from_millis(500);

/// What the thread has to do. Whoever finds work says so here, and never waits.
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
    sealing: HashSet<ContentId>,
    adoptions: VecDeque<(GroupDigest, Placement)>,
    evict: bool,
    busy: bool,
}

enum Job {
    Seal(ContentId),
    Adopt(GroupDigest, Placement),
    Evict,
    Tick,
    Stop,
}

impl Worker {
    /// This content seems to have every byte.
    pub(super) fn seal(&self, id: ContentId) {
        let mut work = self.work.lock();
        if work.seals.len() < SEALS_MAX && work.sealing.insert(id) {
            work.seals.push_back(id);
            self.changed.notify_all();
        }
    }

    /// The bytes of this group, which the cache has, belong here, too.
    pub(super) fn adopt(&self, group: GroupDigest, placement: Placement) {
        let mut work = self.work.lock();
        let job = (group, placement);
        if work.adoptions.len() < ADOPTIONS_MAX && !work.adoptions.contains(&job) {
            work.adoptions.push_back(job);
            self.changed.notify_all();
        }
    }

    /// The cache is too full.
    pub(super) fn evict(&self) {
        let mut work = self.work.lock();
        if !work.evict {
            work.evict = true;
            self.changed.notify_all();
        }
    }

    /// Whether work that can as well be done another time is to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether even an eviction is to end.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.stopped_at.get().is_some_and(|at| at.elapsed() > LAST_EVICTION)
    }

    /// Waits until nothing is left to do.
    pub(super) fn settle(&self) {
        let mut work = self.work.lock();
        while work.busy || work.evict || !work.seals.is_empty() || !work.adoptions.is_empty() {
            self.changed.wait(&mut work);
        }
    }

    fn next(&self, tick: Instant) -> Job {
        let mut work = self.work.lock();
        work.busy = false;
        loop {
            if self.is_stopping() && (!work.evict || self.is_out_of_time()) {
                // So that nobody waits for what is not done any more.
                *work = Work::default();
                self.changed.notify_all();
                return Job::Stop;
            }
            let job = if std::mem::take(&mut work.evict) {
                Some(Job::Evict)
            } else if let Some((group, placement)) = work.adoptions.pop_front() {
                Some(Job::Adopt(group, placement))
            } else if let Some(id) = work.seals.pop_front() {
                work.sealing.remove(&id);
                Some(Job::Seal(id))
            } else {
                None
            };
            if let Some(job) = job {
                work.busy = true;
                return job;
            }
            self.changed.notify_all();
            if self.changed.wait_until(&mut work, tick).timed_out() {
                return Job::Tick;
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

/// Owns the thread: joins it when dropped.
#[derive(Debug)]
pub(super) struct WorkerThread {
    worker: Arc<Worker>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    pub(super) fn start(worker: Arc<Worker>, inner: Weak<Inner>) -> std::io::Result<Self> {
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
            // It ends by itself at the next block that it hashes, or after the last eviction.
            let _ = thread.join();
        }
    }
}

fn run(worker: &Worker, inner: &Weak<Inner>) {
    let mut tick = Instant::now() + TICK;
    loop {
        let job = worker.next(tick);
        let Some(inner) = inner.upgrade() else { return };
        match job {
            Job::Seal(id) => inner.seal(&id),
            Job::Adopt(group, placement) => inner.adopt(&group, &placement),
            Job::Evict => inner.evict(),
            Job::Tick => {
                inner.tick();
                tick = Instant::now() + TICK;
            }
            Job::Stop => return,
        }
    }
}
