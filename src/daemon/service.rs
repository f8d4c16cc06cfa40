//! Operations of the daemon, independent of the transport.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use inlay_mounts::{
    Caller, Claim, Layer, MakePath, MountError, MountFlags, MountRecord, Mounts, Owner, Process,
    ProcessId, Standing, Wanted, WantedView,
};
use inlay_prefetch::Class;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::api::{
    AttachedShown, CacheUse, DamagedRecord, Fingerprint, IfMounted, InsideShown, LoadOptions,
    MountOrigin, MountRequest, MountShown, PrefetchAnswer, StatusAnswer, StoreRef, StoreShown,
    UmountAnswer, UmountRequest,
};
use super::error::DaemonError;
use super::given_up::unless_given_up;
use super::metrics::Activity;
use super::mounted_already::target;
use super::once::RequestKey;
use super::sandboxes::Sandboxes;
use super::snapshots::{Attached, Shape, Snapshots, Use};
use super::traces::Traces;

/// Deadline for requests in flight when the daemon stops.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Attempts to claim a mount point that another request holds.
const TRIES_OF_CLAIM: u32 = 100;

/// Facts that are constant for a daemon's lifetime.
#[derive(Debug, Clone)]
pub(super) struct DaemonInfo {
    pub(super) process: ProcessId,
    pub(super) keeper: Option<u32>,
    pub(super) session: String,
    pub(super) state: PathBuf,
    pub(super) cache_size: Option<String>,
    pub(super) idle_exit: Option<Duration>,
    pub(super) environment: Fingerprint,
}

/// Operations of the daemon. Clones share state.
#[derive(Clone)]
pub(super) struct Service {
    inner: Arc<ServiceInner>,
}

struct ServiceInner {
    about: DaemonInfo,
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
    /// Cancelled when the daemon was asked to stop.
    stop: CancellationToken,
}

/// Accounting of requests that may leave mounts or processes behind.
#[derive(Debug, Clone, Copy)]
struct Load {
    under_way: usize,
    taking: AcceptsWork,
    /// Requests that may stop the daemon. While there are any, no others are accepted.
    closings: usize,
    /// Requests completed, including those of earlier daemons.
    done: u64,
}

/// Whether further requests are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptsWork {
    More,
    NoMore,
}

/// A request that may stop the daemon. While it lives, no request that may leave something behind
/// is accepted; dropping it, because it failed or its caller is gone, accepts them again.
struct Closing(Service);

impl Closing {
    fn begin(service: &Service) -> Self {
        service.inner.load.lock().closings += 1;
        Self(service.clone())
    }

    /// Commits to stopping: no more requests are accepted.
    fn done(self) {
        self.0.inner.load.lock().taking = AcceptsWork::NoMore;
        self.0.inner.stop.cancel();
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.inner.load.lock().closings -= 1;
        // Work that waited for this may proceed, e.g. the exit of an idle daemon.
        self.0.something_ended();
    }
}

/// A request in flight; the daemon does not stop before it is dropped.
pub(super) struct UnderWay(Arc<ServiceInner>);

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

/// Outcome of claiming a mount point.
enum MountTarget {
    Free(Box<Claim>),
    /// An earlier attempt of the same request has mounted it.
    Taken(Box<MountRecord>),
}

/// A snapshot to attach.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attach<'a> {
    /// Name or id.
    pub(super) snapshot: &'a str,
    pub(super) store: &'a StoreRef,
    pub(super) cache: CacheUse,
    pub(super) load: &'a LoadOptions,
    pub(super) origin: MountOrigin,
    /// New owner of the snapshot's root directory and of all files with the same owner; `None`:
    /// owners as in the snapshot.
    pub(super) chown: Option<Owner>,
}

/// A new mount. Unless taken, it is undone on drop: its client is gone.
struct Made {
    service: Service,
    record: Option<MountRecord>,
    under_way: Option<UnderWay>,
}

impl Made {
    /// Makes the mount outlive this daemon, before the caller gets its answer. Blocks.
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
                "undoing a mount: the caller disconnected"
            );
            let (service, under_way) = (self.service.clone(), self.under_way.take());
            // Marked before any other request can see that the caller is gone.
            service.inner.mounts.doom(&record);
            spawn_blocking(move || {
                if let Err(error) = service.inner.mounts.undo(&record) {
                    tracing::warn!(%error, "can't undo a cancelled mount");
                }
                service.look();
                drop(under_way);
            });
        }
    }
}

impl Service {
    pub(super) fn new(
        about: DaemonInfo,
        snapshots: Snapshots,
        mounts: Mounts,
        sandboxes: Sandboxes,
        changed: Arc<Notify>,
        adopted: usize,
    ) -> Self {
        let done = u64::try_from(adopted).unwrap_or(u64::MAX);
        let inner = ServiceInner {
            about,
            snapshots,
            mounts,
            sandboxes,
            traces: Traces::default(),
            load: Mutex::new(Load { under_way: 0, taking: AcceptsWork::More, closings: 0, done }),
            activity: Activity::default(),
            changed,
            gone: Notify::new(),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn about(&self) -> &DaemonInfo {
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

    /// Counters of requests.
    pub(super) fn activity(&self) -> &Activity {
        &self.inner.activity
    }

    pub(super) fn traces(&self) -> &Traces {
        &self.inner.traces
    }

    /// Wakes those who wait for the daemon to become idle.
    pub(super) fn something_ended(&self) {
        self.inner.changed.notify_one();
    }

    /// Cancelled when the daemon was asked to stop.
    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.inner.stop
    }

    pub(super) async fn status(&self) -> Result<StatusAnswer, DaemonError> {
        let service = self.clone();
        let status = spawn_blocking(move || service.status_now()).await;
        status.map_err(|_| DaemonError::Panicked)
    }

    /// Reads records from disk. Blocks.
    fn status_now(&self) -> StatusAnswer {
        let about = &self.inner.about;
        let outbox = self.inner.snapshots.stores().outboxes().report();
        StatusAnswer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server: about.process,
            keeper: about.keeper,
            session: about.session.clone(),
            state: about.state.as_path().into(),
            mounts: self.mounted(),
            attached: self.inner.snapshots.count(),
            sealed: outbox.waiting,
            outbox,
            cache_size: about.cache_size.clone(),
            idle_exit_ms: about
                .idle_exit
                .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            environment: about.environment.clone(),
            damaged: self.damaged_records(),
        }
    }

    /// Returns the damaged records, except those of sandboxes.
    fn damaged_records(&self) -> Vec<DamagedRecord> {
        let of_mounts = self.inner.mounts.damaged_records().into_iter().map(ToString::to_string);
        let all = of_mounts.chain(self.inner.snapshots.damaged());
        all.map(|why| DamagedRecord { why }).collect()
    }

    pub(super) fn attached(&self) -> Vec<AttachedShown> {
        self.inner.snapshots.list()
    }

    /// Returns prefetch progress by store and snapshot.
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

    /// Number of mounts.
    pub(super) fn mounted(&self) -> usize {
        self.inner.mounts.count()
    }

    /// Lists all mounts, after clearing up those that others have just unmounted.
    pub(super) async fn mounts(&self) -> Result<Vec<MountShown>, DaemonError> {
        let service = self.clone();
        let listed = spawn_blocking(move || {
            let records = service.mount_records();
            records.into_iter().map(|record| service.shown(record)).collect()
        });
        listed.await.map_err(|_| DaemonError::Panicked)
    }

    /// The records of all mounts, the oldest first. Blocks.
    fn mount_records(&self) -> Vec<MountRecord> {
        self.look();
        let mut records = self.inner.mounts.list();
        records.sort_by_key(|record| record.seen.number());
        records
    }

    /// Mounts a snapshot for the process `caller`. Cancel-safe: if the future is dropped or `limit`
    /// passes, nothing of the mount stays. Idempotent: if an earlier attempt with the same `key`
    /// created the mount, returns that mount.
    pub(super) async fn mount(
        &self,
        caller: Process,
        request: MountRequest,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountShown, DaemonError> {
        self.activity().mounts.of(self.mount_within(caller, request, key, limit)).await
    }

    async fn mount_within(
        &self,
        caller: Process,
        request: MountRequest,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountShown, DaemonError> {
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let again = (request.origin == MountOrigin::MountTable).then(|| request.clone());
        let work = self.clone().make(caller.clone(), request, key, under_way);
        let mut made = match (unless_given_up(limit, work).await, again) {
            (Err(error), Some(again)) => {
                let same = self.clone().mounted_already(caller, again, error);
                return unless_given_up(limit, same).await;
            }
            (made, _) => made?,
        };
        // If the caller is gone, this is dropped and the mount undone.
        let service = self.clone();
        let made = spawn_blocking(move || {
            made.confirm()?;
            let shown = made.record.clone().map(|record| service.shown(record));
            Ok::<_, DaemonError>((made, shown))
        });
        let (made, shown) = made.await.map_err(|_| DaemonError::Panicked)??;
        made.take();
        shown.ok_or(DaemonError::Panicked)
    }

    async fn make(
        self,
        caller: Process,
        request: MountRequest,
        key: Option<RequestKey>,
        under_way: UnderWay,
    ) -> Result<Made, DaemonError> {
        let path = request.mountpoint.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let key = key.map(|RequestKey(key)| key);
        // Claimed first: it costs nothing, and fails most often.
        let (caller, make) = target(request.pid, caller, request.origin)?;
        let claim = match self.claim((&caller, make), &path, key.as_deref()).await? {
            MountTarget::Free(claim) => *claim,
            MountTarget::Taken(record) => {
                return Ok(Made {
                    service: self,
                    record: Some(*record),
                    under_way: Some(under_way),
                });
            }
        };
        let MountRequest { snapshot, store, cache, view, chown, flags, origin, load, .. } = request;
        let shape = match view {
            WantedView::ReadOnly => Shape::Alone,
            WantedView::Writable(_) => Shape::Below,
        };
        let what = Attach { snapshot: &snapshot, store: &store, cache, load: &load, origin, chown };
        let attached = self.attach(what, shape).await?;
        let wanted = Wanted {
            chown,
            flags,
            key,
            standing: Standing::Unconfirmed,
            ..self.wanted(attached, view, None)?
        };
        let service = self.clone();
        let made = spawn_blocking(move || {
            let slots = [Some(wanted.top.slot), wanted.below.as_ref().map(|below| below.slot)];
            let record = service.inner.mounts.create(claim, wanted)?;
            service.mark("mounted", || record.mountpoint.to_path().display().to_string());
            // Most mounts are read little: release the index pages that attaching has mapped.
            slots.into_iter().flatten().for_each(|slot| {
                service.inner.snapshots.release_pages_of(slot);
            });
            // From here on the mount is undone unless taken, however this task ends.
            Ok(Made { service, record: Some(record), under_way: Some(under_way) })
        });
        made.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Attaches a snapshot so that it can be mounted.
    pub(super) async fn attach(
        &self,
        what: Attach<'_>,
        shape: Shape,
    ) -> Result<Attached, DaemonError> {
        let attach = self.inner.snapshots.attach(what, shape);
        self.activity().attaches.of(attach).await
    }

    /// Converts an attached snapshot for the mount table. The mount is confirmed, i.e. it stays;
    /// the caller may override that.
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
            longest_path: attached.longest_path,
            view,
            owner,
            chown: None,
            flags: MountFlags::default(),
            alias: attached.alias,
            key: None,
            standing: Standing::Confirmed,
            file: None,
        })
    }

    /// Claims `path` for a mount. Retries while another request claims it or undoes a mount there.
    async fn claim(
        &self,
        (caller, make): (&Caller, MakePath),
        path: &Path,
        key: Option<&str>,
    ) -> Result<MountTarget, DaemonError> {
        for _ in 0..TRIES_OF_CLAIM {
            let (service, path, key) = (self.clone(), path.to_owned(), key.map(str::to_owned));
            let caller = caller.clone();
            let claimed = spawn_blocking(move || {
                let mounts = &service.inner.mounts;
                match mounts.claim(&caller, &path, make) {
                    Ok(claim) => Ok(Some(MountTarget::Free(Box::new(claim)))),
                    Err(MountError::BeingMounted(_)) => Ok(None),
                    Err(error @ MountError::AlreadyMounted { .. }) => {
                        let Some(record) = mounts.find(&caller, &path)? else { return Ok(None) };
                        if key.is_some() && record.key == key {
                            return Ok(Some(MountTarget::Taken(Box::new(record))));
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
        caller: Process,
        request: UmountRequest,
    ) -> Result<UmountAnswer, DaemonError> {
        let path = request.mountpoint.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let (caller, _) = target(request.pid, caller, MountOrigin::Command)?;
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        let ended = spawn_blocking(move || {
            let _under_way = under_way;
            let ended = service.inner.mounts.unmount(&caller, &path, request.how, request.changes);
            service.look();
            ended
        });
        let ended = ended.await.map_err(|_| DaemonError::Panicked)??;
        let MountRecord { mountpoint, snapshot, view, .. } = ended.record;
        let (in_use, discarded) = (ended.in_use, ended.discarded);
        Ok(UmountAnswer { mountpoint, snapshot, view, in_use, discarded })
    }

    /// Waits at most `limit` until the mount with this id is gone. Returns whether it is.
    pub(super) async fn gone(&self, mount: u64, limit: Duration) -> bool {
        let is_gone = || !self.inner.mounts.has(mount);
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

    /// Stops the daemon. Returns the mounts that were unmounted. If the caller goes away before
    /// anything was ended, the daemon continues; after that, the stop is completed in any case.
    pub(super) async fn stop(&self, mounted: IfMounted) -> Result<Vec<MountRecord>, DaemonError> {
        // Excludes new mounts from here on.
        let closing = Closing::begin(self);
        let mounts = self.make_room(mounted).await?;
        let service = self.clone();
        let ending = tokio::spawn(async move {
            if mounted == IfMounted::Unmount {
                service.end_everything().await?;
            }
            closing.done();
            Ok(mounts)
        });
        ending.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Stops all sandboxes and unmounts the mounts of users.
    async fn end_everything(&self) -> Result<(), DaemonError> {
        self.stop_all_sandboxes().await?;
        let service = self.clone();
        let unmounted = spawn_blocking(move || service.inner.mounts.unmount_all());
        unmounted.await.map(drop).map_err(|_| DaemonError::Panicked)
    }

    /// Waits for requests in flight and returns the mounts of users. Fails if mounts or sandboxes
    /// are in the way and `mounted` is `Refuse`.
    async fn make_room(&self, mounted: IfMounted) -> Result<Vec<MountRecord>, DaemonError> {
        let settled = async {
            while self.inner.load.lock().under_way > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        timeout(SETTLE_WITHIN, settled).await.map_err(|_| DaemonError::Busy)?;
        let service = self.clone();
        let found = spawn_blocking(move || (service.mount_records(), service.running_sandboxes()));
        let (mut mounts, running) = found.await.map_err(|_| DaemonError::Panicked)?;
        if mounted == IfMounted::Refuse && !running.is_empty() {
            return Err(DaemonError::SandboxesRun(running));
        }
        // Mounts of stopped sandboxes are created again on demand.
        mounts.retain(|record| record.owner.is_none());
        if mounted == IfMounted::Refuse && !mounts.is_empty() {
            let shown = |record: &MountRecord| record.mountpoint.to_path().display().to_string();
            return Err(DaemonError::Mounted(mounts.iter().map(shown).collect()));
        }
        let damaged = self.inner.mounts.damaged();
        if mounted == IfMounted::Refuse && !damaged.is_empty() {
            let damaged = damaged.iter().map(ToString::to_string).collect();
            return Err(DaemonError::DamagedMounts(damaged));
        }
        Ok(mounts)
    }

    /// Stops accepting requests if nothing is mounted, attached or in flight, no trace is recorded
    /// and no client reads a sandbox's output. Returns whether it did.
    pub(super) fn close_if_idle(&self) -> bool {
        let mut load = self.inner.load.lock();
        let idle = load.under_way == 0
            && self.is_unused()
            && !self.inner.traces.any()
            && !self.inner.sandboxes.talk();
        if idle {
            load.taking = AcceptsWork::NoMore;
        }
        idle
    }

    /// Whether this daemon has not served any request yet.
    pub(super) fn is_new(&self) -> bool {
        let load = *self.inner.load.lock();
        load.done == 0 && load.under_way == 0
    }

    /// Whether nothing is mounted, attached or waiting in an outbox.
    pub(super) fn is_unused(&self) -> bool {
        self.inner.mounts.is_empty()
            && self.inner.snapshots.count() == 0
            && self.inner.snapshots.stores().outboxes().are_idle()
    }

    /// Removes all records, after the session has ended.
    pub(super) fn forget_all(&self) {
        self.inner.mounts.forget_all();
        self.inner.snapshots.forget_all();
    }

    /// Cleans up after mounts that are gone. Blocks. Returns when to call again.
    pub(super) fn look(&self) -> Option<Duration> {
        self.look_at_sandboxes();
        let mounts = self.inner.mounts.look();
        self.inner.gone.notify_waiters();
        let snapshots = self.inner.snapshots.look();
        [mounts, snapshots].into_iter().flatten().min()
    }

    pub(super) fn under_way(&self) -> Option<UnderWay> {
        let mut load = self.inner.load.lock();
        if load.taking == AcceptsWork::NoMore || load.closings > 0 {
            return None;
        }
        load.under_way += 1;
        Some(UnderWay(Arc::clone(&self.inner)))
    }

    /// Converts a mount for clients. Blocks.
    pub(super) fn shown(&self, record: MountRecord) -> MountShown {
        let owner = record.owner.as_deref();
        let sandbox = owner.and_then(|id| self.inner.sandboxes.name(id));
        let inside = if owner.is_none() { inside(&record) } else { None };
        let server = Some(self.inner.about.process);
        MountShown { sandbox, inside, server, served: true, ..MountShown::of(record) }
    }
}

/// Returns a process that sees a mount in another mount namespace.
fn inside(record: &MountRecord) -> Option<InsideShown> {
    let process = record.seen.process_inside()?;
    let pid = process.id().pid;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (name, cgroup) = (read("comm").unwrap_or_default(), read("cgroup").unwrap_or_default());
    process.is_alive().then(|| InsideShown {
        pid,
        name: name.trim_end().escape_debug().to_string(),
        container: container(&cgroup),
    })
}

/// Returns the container id from the names of its cgroups: docker, podman, containerd and others
/// put its 64 hexadecimal digits there.
fn container(cgroup: &str) -> Option<String> {
    const LEN: usize = 64;
    let is_id = |word: &&str| word.len() == LEN && word.bytes().all(|b| b.is_ascii_hexdigit());
    cgroup.split(|c: char| !c.is_ascii_alphanumeric()).find(is_id).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_the_name_of_its_cgroup() {
        let id = "0123456789abcdef".repeat(4);
        for cgroup in [
            format!("12:freezer:/docker/{id}\n0::/\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/machine.slice/libpod-{id}.scope/container\n"),
            format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope\n"),
        ] {
            assert_eq!(container(&cgroup).as_ref(), Some(&id), "{cgroup}");
        }
        assert_eq!(container("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(container(&format!("0::/docker/{}\n", &id[1..])), None);
    }
}
