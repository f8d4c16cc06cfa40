//! What the daemon can be asked to do, whatever way it is asked.

use std::sync::Arc;
use std::time::Duration;

use inlay_prefetch::Class;
use parking_lot::Mutex;
use rustix::process::Pid;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::api::{
    AttachedShown, Fingerprint, IfMounted, MountRequest, MountShown, PrefetchAnswer, StatusAnswer,
    StoreShown, UmountAnswer, UmountRequest,
};
use super::error::DaemonError;
use super::snapshots::{Shape, Snapshots, Use};
use crate::mount::{Caller, Layer, MountRecord, Mounts, ProcessId, Wanted, WantedView};

/// How long the daemon's end waits for requests that are under way.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What does not change while a daemon lives.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) process: ProcessId,
    pub(super) keeper: Option<u32>,
    pub(super) session: String,
    pub(super) state: std::path::PathBuf,
    pub(super) cache_size: Option<String>,
    pub(super) idle_exit: Option<Duration>,
    pub(super) environment: Fingerprint,
}

/// The daemon's doings. Clones share everything.
#[derive(Clone)]
pub(super) struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    about: About,
    snapshots: Snapshots,
    mounts: Mounts,
    load: Mutex<Load>,
    /// Woken when something may have ended.
    changed: Arc<Notify>,
    /// Woken when a mount is gone.
    gone: Notify,
    /// Somebody wants the daemon to end.
    stop: CancellationToken,
}

/// Requests that may leave something behind.
#[derive(Debug, Clone, Copy)]
struct Load {
    under_way: usize,
    taking: Taking,
    /// How many have come to an end, those of earlier daemons included.
    done: u64,
}

/// Whether more of them are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taking {
    More,
    NoMore,
}

/// A request that the daemon does not end before.
struct UnderWay(Arc<Inner>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        {
            let mut load = self.0.load.lock();
            load.under_way -= 1;
            load.done += 1;
        }
        self.0.changed.notify_one();
    }
}

/// A mount that was just made. Dropped without being taken, it is undone: whoever wanted it is gone.
struct Made {
    service: Service,
    record: Option<MountRecord>,
    under_way: Option<UnderWay>,
}

impl Made {
    fn take(mut self) -> Option<MountRecord> {
        self.record.take()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            tracing::info!(
                mountpoint = %record.mountpoint.to_path().display(),
                "a mount is undone, because its caller is gone"
            );
            let (service, under_way) = (self.service.clone(), self.under_way.take());
            spawn_blocking(move || {
                if let Err(error) = service.inner.mounts.undo(&record) {
                    tracing::warn!(%error, "a mount that nobody wants stays");
                }
                service.look();
                drop(under_way);
            });
        }
    }
}

impl Service {
    pub(super) fn new(
        about: About,
        snapshots: Snapshots,
        mounts: Mounts,
        changed: Arc<Notify>,
        adopted: usize,
    ) -> Self {
        let done = u64::try_from(adopted).unwrap_or(u64::MAX);
        let inner = Inner {
            about,
            snapshots,
            mounts,
            load: Mutex::new(Load { under_way: 0, taking: Taking::More, done }),
            changed,
            gone: Notify::new(),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn about(&self) -> &About {
        &self.inner.about
    }

    pub(super) fn snapshots(&self) -> &Snapshots {
        &self.inner.snapshots
    }

    /// Done when somebody wants the daemon to end.
    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(super) fn status(&self) -> StatusAnswer {
        let about = &self.inner.about;
        StatusAnswer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server: about.process,
            keeper: about.keeper,
            session: about.session.clone(),
            state: about.state.as_path().into(),
            mounts: self.mounted(),
            attached: self.inner.snapshots.count(),
            cache_size: about.cache_size.clone(),
            idle_exit_ms: about
                .idle_exit
                .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            environment: about.environment.clone(),
        }
    }

    pub(super) fn attached(&self) -> Vec<AttachedShown> {
        self.inner.snapshots.list()
    }

    /// What is loaded ahead of readers.
    pub(super) fn prefetch(&self) -> PrefetchAnswer {
        let snapshots = &self.inner.snapshots;
        let stores = snapshots.stores().all().into_iter().map(|(store, _, open)| {
            let (figures, link) = open.figures();
            let by_class = |numbers: &[u64]| {
                let named = Class::ALL.iter().zip(numbers);
                named.map(|(class, number)| (class.name().to_owned(), *number)).collect()
            };
            StoreShown {
                store,
                round_trip_ms: link.round_trip.map(|time| time.as_secs_f64() * 1e3),
                rate: link.rate,
                share: link.share,
                requests: by_class(&figures.requests),
                bytes: by_class(&figures.bytes),
                queued: by_class(&figures.queued),
                readers_waiting: figures.waiting,
            }
        });
        PrefetchAnswer { stores: stores.collect(), snapshots: snapshots.loading() }
    }

    /// How many mounts there are.
    pub(super) fn mounted(&self) -> usize {
        self.inner.mounts.list().len()
    }

    /// All mounts that users see, those that were just unmounted by others left out.
    pub(super) async fn mounts(&self) -> Result<Vec<MountShown>, DaemonError> {
        let service = self.clone();
        let listed = spawn_blocking(move || {
            service.look();
            service.inner.mounts.list()
        });
        let mut records = listed.await.map_err(|_| DaemonError::Panicked)?;
        records.sort_by_key(|record| record.seen.number());
        Ok(records.into_iter().map(|record| self.shown(record)).collect())
    }

    /// Mounts for the process `caller`. Should this future be dropped, or take longer than `limit`,
    /// nothing of the mount stays.
    pub(super) async fn mount(
        &self,
        caller: Pid,
        request: MountRequest,
        limit: Duration,
    ) -> Result<MountShown, DaemonError> {
        let given_up = CancellationToken::new();
        let _guard = given_up.clone().drop_guard();
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        let work = tokio::spawn(async move {
            tokio::select! {
                made = service.clone().make(caller, request, under_way) => made,
                () = given_up.cancelled() => Err(DaemonError::Deadline(limit)),
            }
        });
        match timeout(limit, work).await {
            Ok(made) => {
                let made = made.map_err(|_| DaemonError::Panicked)??;
                made.take().map(|record| self.shown(record)).ok_or(DaemonError::Panicked)
            }
            Err(_) => Err(DaemonError::Deadline(limit)),
        }
    }

    async fn make(
        self,
        caller: Pid,
        request: MountRequest,
        under_way: UnderWay,
    ) -> Result<Made, DaemonError> {
        let path = request.mountpoint.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let service = self.clone();
        // First, because it costs nothing and is what goes wrong most often.
        let claim =
            spawn_blocking(move || service.inner.mounts.claim(Caller::Process(caller), &path));
        let claim = claim.await.map_err(|_| DaemonError::Panicked)??;
        let MountRequest { snapshot, store, cache, view, load, .. } = request;
        let shape = match view {
            WantedView::ReadOnly => Shape::Alone,
            WantedView::Writable(_) => Shape::Below,
        };
        let attached = self.inner.snapshots.attach(&snapshot, &store, cache, shape, &load).await?;
        let layer = |part: Arc<Use>| -> Result<Layer, DaemonError> {
            let dir = self.inner.snapshots.dir(part.slot())?;
            Ok(Layer { slot: part.slot().get(), dir, hold: Box::new(part) })
        };
        let wanted = Wanted {
            snapshot: attached.snapshot,
            top: layer(attached.top)?,
            below: attached.below.map(layer).transpose()?,
            view,
        };
        let service = self.clone();
        let made = spawn_blocking(move || {
            let slots = [Some(wanted.top.slot), wanted.below.as_ref().map(|below| below.slot)];
            let record = service.inner.mounts.create(&claim, wanted)?;
            drop(claim);
            // Many mounts are made and few are looked at.
            slots.into_iter().flatten().for_each(|slot| {
                service.inner.snapshots.release_pages_of(slot);
            });
            // From here on, whatever becomes of this task, the mount is undone unless it is taken.
            Ok(Made { service, record: Some(record), under_way: Some(under_way) })
        });
        made.await.map_err(|_| DaemonError::Panicked)?
    }

    pub(super) async fn umount(
        &self,
        caller: Pid,
        request: UmountRequest,
    ) -> Result<UmountAnswer, DaemonError> {
        let path = request.mountpoint.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        let ended = spawn_blocking(move || {
            let _under_way = under_way;
            let caller = Caller::Process(caller);
            let ended = service.inner.mounts.unmount(caller, &path, request.how, request.changes);
            service.look();
            ended
        });
        let ended = ended.await.map_err(|_| DaemonError::Panicked)??;
        Ok(UmountAnswer { record: ended.record, in_use: ended.in_use, discarded: ended.discarded })
    }

    /// Waits at most `limit` until the mount with this number is gone. Returns whether it is.
    pub(super) async fn gone(&self, mount: u64, limit: Duration) -> bool {
        let is_gone =
            || !self.inner.mounts.list().iter().any(|record| record.seen.number() == mount);
        let wait = async {
            loop {
                let notified = self.inner.gone.notified();
                if is_gone() {
                    return;
                }
                notified.await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Wants the daemon to end. Says what was unmounted for it.
    pub(super) async fn stop(&self, mounted: IfMounted) -> Result<Vec<MountRecord>, DaemonError> {
        // No mount may come in between.
        self.inner.load.lock().taking = Taking::NoMore;
        let outcome = self.make_room(mounted).await;
        match &outcome {
            Ok(_) => self.inner.stop.cancel(),
            Err(_) => self.inner.load.lock().taking = Taking::More,
        }
        outcome
    }

    async fn make_room(&self, mounted: IfMounted) -> Result<Vec<MountRecord>, DaemonError> {
        let settled = async {
            while self.inner.load.lock().under_way > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(SETTLE_WITHIN, settled).await.map_err(|_| DaemonError::Busy)?;
        let mounts: Vec<MountRecord> =
            self.mounts().await?.into_iter().map(|shown| shown.record).collect();
        if mounted == IfMounted::Refuse && !mounts.is_empty() {
            let shown = |record: &MountRecord| record.mountpoint.to_path().display().to_string();
            return Err(DaemonError::Mounted(mounts.iter().map(shown).collect()));
        }
        let service = self.clone();
        let unmounted = spawn_blocking(move || service.inner.mounts.unmount_all());
        unmounted.await.map_err(|_| DaemonError::Panicked)?;
        Ok(mounts)
    }

    /// Ends the taking of requests if nothing is mounted, attached or under way. Returns whether
    /// it did.
    pub(super) fn close_if_idle(&self) -> bool {
        let mut load = self.inner.load.lock();
        let idle = load.under_way == 0 && self.is_unused();
        if idle {
            load.taking = Taking::NoMore;
        }
        idle
    }

    /// Whether this daemon has served nothing at all yet.
    pub(super) fn is_new(&self) -> bool {
        let load = *self.inner.load.lock();
        load.done == 0 && load.under_way == 0
    }

    /// Whether nothing is mounted or attached.
    pub(super) fn is_unused(&self) -> bool {
        self.inner.mounts.is_empty() && self.inner.snapshots.count() == 0
    }

    /// Forgets everything, after the session has ended.
    pub(super) fn forget_all(&self) {
        self.inner.mounts.forget_all();
        self.inner.snapshots.forget_all();
    }

    /// Clears up after mounts that are gone. Blocks. Returns when to look again.
    pub(super) fn look(&self) -> Option<Duration> {
        let mounts = self.inner.mounts.look();
        self.inner.gone.notify_waiters();
        let snapshots = self.inner.snapshots.look();
        [mounts, snapshots].into_iter().flatten().min()
    }

    fn under_way(&self) -> Option<UnderWay> {
        let mut load = self.inner.load.lock();
        if load.taking == Taking::NoMore {
            return None;
        }
        load.under_way += 1;
        Some(UnderWay(Arc::clone(&self.inner)))
    }

    fn shown(&self, record: MountRecord) -> MountShown {
        MountShown { record, server: Some(self.inner.about.process), served: true }
    }
}
