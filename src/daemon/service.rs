//! What the daemon can be asked to do, whatever way it is asked.

use std::path::Path;
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
    AttachedShown, CacheUse, Fingerprint, IfMounted, LoadOptions, MountRequest, MountShown,
    PrefetchAnswer, StatusAnswer, StoreRef, StoreShown, UmountAnswer, UmountRequest,
};
use super::error::DaemonError;
use super::given_up::unless_given_up;
use super::metrics::Activity;
use super::once::RequestKey;
use super::sandboxes::Sandboxes;
use super::snapshots::{Attached, Shape, Snapshots, Use};
use super::traces::Traces;
use crate::mount::{
    Caller, Claim, Layer, MakePath, MountError, MountRecord, Mounts, Owner, ProcessId, Standing,
    Wanted, WantedView,
};

/// How long the daemon's end waits for requests that are under way.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How often a mount point that somebody else is about to use is tried.
const TRIES_OF_CLAIM: u32 = 100;

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
    sandboxes: Sandboxes,
    traces: Traces,
    load: Mutex<Load>,
    activity: Activity,
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
pub(super) struct UnderWay(Arc<Inner>);

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

/// A mount point for a request.
enum Place {
    Free(Box<Claim>),
    /// The same request has mounted it before.
    Taken(Box<MountRecord>),
}

/// What is to be attached.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attach<'a> {
    /// Name or id.
    pub(super) snapshot: &'a str,
    pub(super) store: &'a StoreRef,
    pub(super) cache: CacheUse,
    pub(super) load: &'a LoadOptions,
}

/// A mount that was just made. Dropped without being taken, it is undone: whoever wanted it is gone.
struct Made {
    service: Service,
    record: Option<MountRecord>,
    under_way: Option<UnderWay>,
}

impl Made {
    /// Has the mount outlive this daemon: its caller is about to be told. Blocks.
    fn confirm(&mut self) -> Result<(), DaemonError> {
        if let Some(record) = &mut self.record {
            *record = self.service.inner.mounts.confirm(record)?;
        }
        Ok(())
    }

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
            // Before anybody else can see that the caller is gone.
            service.inner.mounts.doom(&record);
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
        sandboxes: Sandboxes,
        changed: Arc<Notify>,
        adopted: usize,
    ) -> Self {
        let done = u64::try_from(adopted).unwrap_or(u64::MAX);
        let inner = Inner {
            about,
            snapshots,
            mounts,
            sandboxes,
            traces: Traces::default(),
            load: Mutex::new(Load { under_way: 0, taking: Taking::More, done }),
            activity: Activity::default(),
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

    /// The host's mounts.
    pub(super) fn mount_table(&self) -> &Mounts {
        &self.inner.mounts
    }

    pub(super) fn sandboxes(&self) -> &Sandboxes {
        &self.inner.sandboxes
    }

    /// What was asked for so far.
    pub(super) fn activity(&self) -> &Activity {
        &self.inner.activity
    }

    pub(super) fn traces(&self) -> &Traces {
        &self.inner.traces
    }

    /// Whoever waits for the end of everything looks again.
    pub(super) fn something_ended(&self) {
        self.inner.changed.notify_one();
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
            sealed: self.inner.snapshots.stores().outboxes().waiting(),
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
    /// nothing of the mount stays. If the request with this `key` has made the mount before, it is that
    /// mount.
    pub(super) async fn mount(
        &self,
        caller: Pid,
        request: MountRequest,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountShown, DaemonError> {
        self.activity().mounts.of(self.mount_within(caller, request, key, limit)).await
    }

    async fn mount_within(
        &self,
        caller: Pid,
        request: MountRequest,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountShown, DaemonError> {
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let work = self.clone().make(caller, request, key, under_way);
        let mut made = unless_given_up(limit, work).await?;
        // Should nobody wait for it any more, what comes of it is dropped, and so undone.
        let made = spawn_blocking(move || made.confirm().map(|()| made)).await;
        let made = made.map_err(|_| DaemonError::Panicked)??;
        made.take().map(|record| self.shown(record)).ok_or(DaemonError::Panicked)
    }

    async fn make(
        self,
        caller: Pid,
        request: MountRequest,
        key: Option<RequestKey>,
        under_way: UnderWay,
    ) -> Result<Made, DaemonError> {
        let path = request.mountpoint.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let key = key.map(|RequestKey(key)| key);
        // First, because it costs nothing and is what goes wrong most often.
        let (caller, make) = target(request.pid, caller)?;
        let claim = match self.claim((caller, make), &path, key.as_deref()).await? {
            Place::Free(claim) => *claim,
            Place::Taken(record) => {
                return Ok(Made {
                    service: self,
                    record: Some(*record),
                    under_way: Some(under_way),
                });
            }
        };
        let MountRequest { snapshot, store, cache, view, chown, load, .. } = request;
        let shape = match view {
            WantedView::ReadOnly => Shape::Alone,
            WantedView::Writable(_) => Shape::Below,
        };
        let what = Attach { snapshot: &snapshot, store: &store, cache, load: &load };
        let attached = self.attach(what, shape).await?;
        let wanted = Wanted {
            chown,
            key,
            standing: Standing::Unconfirmed,
            ..self.wanted(attached, view, None)?
        };
        let service = self.clone();
        let made = spawn_blocking(move || {
            let slots = [Some(wanted.top.slot), wanted.below.as_ref().map(|below| below.slot)];
            let record = service.inner.mounts.create(claim, wanted)?;
            service.mark("mounted", || record.mountpoint.to_path().display().to_string());
            // Many mounts are made and few are looked at.
            slots.into_iter().flatten().for_each(|slot| {
                service.inner.snapshots.release_pages_of(slot);
            });
            // From here on, whatever becomes of this task, the mount is undone unless it is taken.
            Ok(Made { service, record: Some(record), under_way: Some(under_way) })
        });
        made.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Attaches a snapshot, so that it can be mounted.
    pub(super) async fn attach(
        &self,
        what: Attach<'_>,
        shape: Shape,
    ) -> Result<Attached, DaemonError> {
        let Attach { snapshot, store, cache, load } = what;
        let attach = self.inner.snapshots.attach(snapshot, store, cache, shape, load);
        self.activity().attaches.of(attach).await
    }

    /// What was attached, as the table of mounts wants it. It stays, unless that is changed.
    pub(super) fn wanted(
        &self,
        attached: Attached,
        view: WantedView,
        owner: Option<String>,
    ) -> Result<Wanted, DaemonError> {
        let layer = |part: Arc<Use>| -> Result<Layer, DaemonError> {
            let dir = self.inner.snapshots.dir(part.slot())?;
            Ok(Layer { slot: part.slot().get(), dir, hold: Box::new(part) })
        };
        Ok(Wanted {
            snapshot: attached.snapshot,
            top: layer(attached.top)?,
            below: attached.below.map(layer).transpose()?,
            view,
            owner,
            chown: None,
            key: None,
            standing: Standing::Confirmed,
        })
    }

    /// Takes `path` for a mount. One that is being undone is waited for.
    async fn claim(
        &self,
        (caller, make): (Caller, MakePath),
        path: &Path,
        key: Option<&str>,
    ) -> Result<Place, DaemonError> {
        for _ in 0..TRIES_OF_CLAIM {
            let (service, path, key) = (self.clone(), path.to_owned(), key.map(str::to_owned));
            let claimed = spawn_blocking(move || {
                let mounts = &service.inner.mounts;
                match mounts.claim(caller, &path, make) {
                    Ok(claim) => Ok(Some(Place::Free(Box::new(claim)))),
                    Err(MountError::BeingMounted(_)) => Ok(None),
                    Err(error @ MountError::AlreadyMounted { .. }) => {
                        let Some(record) = mounts.find(caller, &path)? else { return Ok(None) };
                        if key.is_some() && record.key == key {
                            return Ok(Some(Place::Taken(Box::new(record))));
                        }
                        Err(error)
                    }
                    Err(error) => Err(error),
                }
            });
            if let Some(place) = claimed.await.map_err(|_| DaemonError::Panicked)?? {
                return Ok(place);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(MountError::BeingMounted(path.to_owned()).into())
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
        let (caller, _) = target(request.pid, caller)?;
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        let ended = spawn_blocking(move || {
            let _under_way = under_way;
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
        let running = self.running_sandboxes();
        if mounted == IfMounted::Refuse && !running.is_empty() {
            return Err(DaemonError::SandboxesRun(running));
        }
        // Those of sandboxes that have ended are made again when they are needed.
        let of_users = |record: &&MountRecord| record.owner.is_none();
        let mounts: Vec<MountRecord> = mounts.iter().filter(of_users).cloned().collect();
        if mounted == IfMounted::Refuse && !mounts.is_empty() {
            let shown = |record: &MountRecord| record.mountpoint.to_path().display().to_string();
            return Err(DaemonError::Mounted(mounts.iter().map(shown).collect()));
        }
        let service = self.clone();
        let unmounted = spawn_blocking(move || {
            service.stop_all_sandboxes();
            service.inner.mounts.unmount_all();
        });
        unmounted.await.map_err(|_| DaemonError::Panicked)?;
        Ok(mounts)
    }

    /// Ends the taking of requests if nothing is mounted, attached or under way, and no client still
    /// reads what a sandbox has printed. Returns whether it did.
    pub(super) fn close_if_idle(&self) -> bool {
        let mut load = self.inner.load.lock();
        let idle = load.under_way == 0
            && self.is_unused()
            && !self.inner.traces.any()
            && !self.inner.sandboxes.talk();
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
        self.inner.mounts.is_empty()
            && self.inner.snapshots.count() == 0
            && self.inner.snapshots.stores().outboxes().waiting() == 0
    }

    /// Forgets everything, after the session has ended.
    pub(super) fn forget_all(&self) {
        self.inner.mounts.forget_all();
        self.inner.snapshots.forget_all();
    }

    /// Clears up after mounts that are gone. Blocks. Returns when to look again.
    pub(super) fn look(&self) -> Option<Duration> {
        self.look_at_sandboxes();
        let mounts = self.inner.mounts.look();
        self.inner.gone.notify_waiters();
        let snapshots = self.inner.snapshots.look();
        [mounts, snapshots].into_iter().flatten().min()
    }

    pub(super) fn under_way(&self) -> Option<UnderWay> {
        let mut load = self.inner.load.lock();
        if load.taking == Taking::NoMore {
            return None;
        }
        load.under_way += 1;
        Some(UnderWay(Arc::clone(&self.inner)))
    }

    fn shown(&self, record: MountRecord) -> MountShown {
        let owner = record.owner.as_deref();
        let sandbox = owner.and_then(|id| self.inner.sandboxes.name(id));
        MountShown { record, sandbox, server: Some(self.inner.about.process), served: true }
    }
}

/// Whose view a mount is for, and what is done if its place is missing.
fn target(pid: Option<u32>, caller: Pid) -> Result<(Caller, MakePath), DaemonError> {
    let Some(pid) = pid else { return Ok((Caller::Process(caller), MakePath::Never)) };
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.filter(|_| ProcessId::of(pid).is_ok_and(|found| found.is_some()));
    let process =
        process.ok_or_else(|| DaemonError::Request(format!("there is no process {pid}")))?;
    Ok((Caller::Process(process), MakePath::OwnedBy(Owner::ROOT)))
}
