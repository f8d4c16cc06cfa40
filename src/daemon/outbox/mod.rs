//! Outboxes: snapshots sealed on this host, on their way to their stores.
//!
//! Each store has a directory, `STATE/outbox/<digest of its URL>/`: `store.json` names the store,
//! `objects` is laid out like a store, `queue` has an entry per sealed snapshot, `seen` holds the
//! last known targets of names, and `conflicts` the names that could not be moved.

mod carrier;
mod conflict;
mod queue;
mod recover;
mod store_outbox;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_snapshots::state::State;
use inlay_snapshots::{Reference, SnapshotError, resolve};
use inlay_store::ids::SnapshotId;
use inlay_store::remote::{Name, NameSeen, ObjectKey, Remote, StoreConfig};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::timeout;

use super::api::{DamagedFile, NotShipped, StoreRef, SyncAnswer};
use super::error::DaemonError;
use super::timestamp::Moment;
use queue::Damage;
pub(super) use store_outbox::Outbox;
use store_outbox::{Mark, SealNumber, Side};

/// Maximum number of snapshots, files and names listed in a report.
const LISTED_MAX: usize = 100;

/// Opens the store of a reference directly, bypassing its outbox.
pub(super) type OpenFar = Box<dyn Fn(&StoreRef) -> Result<Remote, DaemonError> + Send + Sync>;

/// Source of the current time.
pub(super) type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// All outboxes. Clones share state.
#[derive(Clone)]
pub(super) struct Outboxes {
    inner: Arc<OutboxesInner>,
}

struct OutboxesInner {
    state: State,
    open: OpenFar,
    clock: Clock,
    /// By directory.
    all: Mutex<BTreeMap<PathBuf, Arc<Outbox>>>,
    /// Woken when there may be more to ship.
    more: Notify,
    /// Woken when a snapshot was shipped or an attempt failed.
    changed: Notify,
    shipping: Mutex<Option<JoinHandle<()>>>,
}

/// A snapshot being sealed. Once committed, it is shipped to its store in the background.
pub(super) struct Sealing {
    outboxes: Outboxes,
    outbox: Arc<Outbox>,
    number: SealNumber,
    remote: Remote,
    runtime: Handle,
}

/// The outboxes that a sync waits for, each with the point at which the sync began.
pub(super) struct Marked(Vec<(Arc<Outbox>, Mark)>);

impl Sealing {
    /// The outbox's directory as a store; no request leaves this host.
    pub(super) fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Whether the snapshot waits to be shipped.
    pub(super) fn waits(&self, snapshot: SnapshotId) -> bool {
        self.outbox.has(snapshot)
    }

    /// Whether the directory holds a record of the snapshot.
    pub(super) fn has_record(&self, snapshot: SnapshotId) -> bool {
        self.outbox.objects.file(&ObjectKey::Record(snapshot)).exists()
    }

    /// Resolves `reference` from knowledge on this host only. Blocks.
    pub(super) fn resolve(&self, reference: &str) -> Result<SnapshotId, DaemonError> {
        let here = self.runtime.block_on(resolve(&self.remote, reference));
        match (here, Reference::parse(reference)?) {
            (Err(SnapshotError::Unknown { .. }), Reference::Name(name)) => {
                match self.outbox.objects.seen(&name) {
                    NameSeen::Snapshot(id) => Ok(id),
                    NameSeen::Unknown | NameSeen::Nothing => {
                        Err(DaemonError::ParentElsewhere { reference: reference.to_owned() })
                    }
                }
            }
            (Err(SnapshotError::Unknown { .. }), _) => {
                Err(DaemonError::ParentElsewhere { reference: reference.to_owned() })
            }
            (here, _) => Ok(here?),
        }
    }

    /// Commits a snapshot that is complete in the directory, and points `name` at it. Durable on
    /// return. Blocks.
    pub(super) fn commit(
        &self,
        snapshot: SnapshotId,
        name: Option<&Name>,
    ) -> Result<(), DaemonError> {
        let sealed = (self.outboxes.inner.clock)();
        self.outbox.commit(snapshot, name, sealed, |record| {
            self.runtime.block_on(self.remote.set_name(record))?;
            Ok(())
        })
    }
}

impl Marked {
    /// Whether waiting longer is pointless: everything is shipped or fails because of this host.
    fn is_settled(&mut self) -> bool {
        let stuck =
            |failed: &store_outbox::Failed| failed.side == Side::Here && !failed.retry_asked;
        self.0.iter_mut().all(|(outbox, mark)| {
            let found = outbox.look_before(mark);
            found.sealing == 0
                && found.waiting.iter().all(|one| one.failed.as_ref().is_some_and(stuck))
        })
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        self.outbox.end(self.number);
        self.outboxes.inner.more.notify_one();
        self.outboxes.inner.changed.notify_waiters();
    }
}

impl Outboxes {
    /// Opens the outboxes of the state directory, including everything that earlier daemons sealed.
    pub(super) fn open(state: &State, open: OpenFar) -> Self {
        Self::with_clock(state, open, Arc::new(Moment::now))
    }

    fn with_clock(state: &State, open: OpenFar, clock: Clock) -> Self {
        let inner = OutboxesInner {
            state: state.clone(),
            open,
            clock,
            all: Mutex::default(),
            more: Notify::new(),
            changed: Notify::new(),
            shipping: Mutex::default(),
        };
        let outboxes = Self { inner: Arc::new(inner) };
        // The path of this outbox is known, so it is found even if its file is damaged.
        outboxes.of(&StoreRef { url: None, plain_http: false });
        let (stores, damaged) = outboxes.scan();
        for store in stores {
            outboxes.of(&store);
        }
        for Damage { path, why } in damaged {
            let path = path.display();
            tracing::error!(%path, why, "an outbox is damaged; nothing in it is shipped or removed");
        }
        outboxes
    }

    /// Lists the stores of the outboxes on disk, and damage.
    fn scan(&self) -> (Vec<StoreRef>, Vec<Damage>) {
        let dir = self.dir();
        let (mut stores, mut damaged) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (stores, damaged),
            Err(error) => return (stores, vec![Damage { path: dir, why: error.to_string() }]),
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    damaged.push(Damage { path: dir.clone(), why: error.to_string() });
                    continue;
                }
            };
            match recover::store_of(&path) {
                Ok(store) => stores.extend(store),
                Err(damage) => damaged.push(damage),
            }
        }
        (stores, damaged)
    }

    fn dir(&self) -> PathBuf {
        self.inner.state.outboxes()
    }

    /// Returns the outbox of `store`, reading it from disk on first use.
    pub(super) fn of(&self, store: &StoreRef) -> Arc<Outbox> {
        let dir = self.inner.state.outbox(store.url.as_deref());
        let mut all = self.inner.all.lock();
        let outbox = all
            .entry(dir)
            .or_insert_with_key(|dir| Arc::new(Outbox::open(dir.clone(), store.clone())));
        Arc::clone(outbox)
    }

    /// Begins to seal a snapshot for `store`. Blocks.
    pub(super) fn seal(&self, store: &StoreRef, runtime: &Handle) -> Result<Sealing, DaemonError> {
        let outbox = self.of(store);
        let number = outbox.begin(store)?;
        let (outboxes, runtime) = (self.clone(), runtime.clone());
        let _guard = runtime.enter();
        let dir = outbox.objects.dir().display().to_string();
        match Remote::open(&StoreConfig::new(dir)) {
            Ok(remote) => {
                Ok(Sealing { outboxes, outbox, number, remote, runtime: runtime.clone() })
            }
            Err(error) => {
                outbox.end(number);
                Err(error.into())
            }
        }
    }

    fn all(&self) -> Vec<Arc<Outbox>> {
        self.inner.all.lock().values().cloned().collect()
    }

    /// Counts snapshots not yet in their stores, including those being sealed.
    pub(super) fn waiting(&self) -> usize {
        self.all().iter().map(|outbox| outbox.load()).sum()
    }

    /// Whether no snapshot waits and none is being sealed. Never waits: an outbox that is being changed
    /// is not idle.
    pub(super) fn are_idle(&self) -> bool {
        self.all().iter().all(|outbox| outbox.is_idle())
    }

    /// Reports waiting and failing snapshots, and damaged files. Blocks.
    pub(super) fn report(&self) -> SyncAnswer {
        let found = self.all().into_iter().map(|outbox| (outbox.view(), outbox)).collect();
        self.report_of(found)
    }

    /// Same as [`Self::report`], restricted to snapshots sealed before the sync began. Blocks.
    pub(super) fn report_before(&self, marked: Marked) -> SyncAnswer {
        let found = marked.0.into_iter();
        let found = found.map(|(outbox, mut mark)| (outbox.look_before(&mut mark), outbox));
        self.report_of(found.collect())
    }

    fn report_of(&self, all: Vec<(store_outbox::OutboxView, Arc<Outbox>)>) -> SyncAnswer {
        let mut report = SyncAnswer::default();
        let known: Vec<PathBuf> = all.iter().map(|(_, outbox)| outbox.dir.clone()).collect();
        let (_, mut damaged) = self.scan();
        // If the store is known nonetheless, its outbox reports the damage itself.
        damaged.retain(|damage| !known.iter().any(|dir| damage.path.starts_with(dir)));
        for (found, outbox) in all {
            report.waiting += found.sealing + found.waiting.len();
            let failing = found.waiting.into_iter().filter_map(|one| {
                let failed = one.failed?;
                Some(NotShipped {
                    snapshot: one.entry.snapshot,
                    name: one.entry.name.map(|claim| claim.name.to_string()),
                    store: found.store.clone(),
                    error: failed.error,
                    attempts: failed.attempts,
                })
            });
            report.failing.extend(failing);
            damaged.extend(found.damaged);
            let (conflicts, unreadable) = conflict::list(&outbox.objects, &found.store);
            report.name_conflicts.extend(conflicts);
            damaged.extend(unreadable);
        }
        report.damaged.extend(
            damaged.into_iter().map(|it| DamagedFile { path: (&*it.path).into(), why: it.why }),
        );
        report.failing.truncate(LISTED_MAX);
        report.damaged.truncate(LISTED_MAX);
        report.name_conflicts.truncate(LISTED_MAX);
        report
    }

    /// Stops reporting the names that could not be moved, leaving them where they point. Blocks.
    pub(super) fn leave_names(&self) -> io::Result<()> {
        self.all().iter().try_for_each(|outbox| conflict::forget_all(&outbox.objects))
    }

    /// Marks the current point in all outboxes.
    fn mark(&self) -> Marked {
        let mark = |outbox: Arc<Outbox>| {
            let mark = outbox.mark();
            (outbox, mark)
        };
        Marked(self.all().into_iter().map(mark).collect())
    }

    /// Retries everything immediately, then waits at most `limit` until each snapshot sealed before
    /// the call is shipped or fails because of this host.
    pub(super) async fn drained(&self, limit: Duration) -> Marked {
        let now = Instant::now();
        // The lock of an outbox is held across writes to the disk, which may take seconds: not on a
        // thread that serves requests.
        let mut marked = block_in_place(|| {
            let marked = self.mark();
            marked.0.iter().for_each(|(outbox, _)| outbox.retry(now));
            marked
        });
        self.inner.more.notify_one();
        let wait = async {
            loop {
                let changed = self.inner.changed.notified();
                if block_in_place(|| marked.is_settled()) {
                    return;
                }
                changed.await;
            }
        };
        // Timeout or not, the report lists the rest.
        let _ = timeout(limit, wait).await;
        marked
    }

    /// Starts shipping in the background, until [`Outboxes::stop`].
    pub(super) fn start(&self, runtime: &Handle) {
        let outboxes = self.clone();
        *self.inner.shipping.lock() = Some(runtime.spawn(carrier::run(outboxes)));
    }

    /// Stops shipping. The next daemon resumes.
    pub(super) async fn stop(&self) {
        let shipping = self.inner.shipping.lock().take();
        if let Some(shipping) = shipping {
            shipping.abort();
            // An error is expected: the task was aborted.
            let _ = shipping.await;
        }
    }
}

#[cfg(test)]
mod tests;
