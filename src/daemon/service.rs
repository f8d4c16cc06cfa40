//! Operations of the daemon, independent of the transport.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use inlay_mounts::{
    Layer, MountFlags, MountRecord, Mounts, Owner, ProcessId, Standing, Wanted, WantedView,
};
use inlay_prefetch::Class;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::api::{
    AttachedSnapshot, CacheUse, DamagedRecord, Fingerprint, IfMounted, LoadOptions, MountInfo,
    MountOrigin, NamespaceInfo, PrefetchAnswer, StatusAnswer, StoreRef, StoreStatus,
};
use super::error::DaemonError;
use super::lifecycle::Lifecycle;
use super::metrics::Activity;
use super::sandboxes::Sandboxes;
use super::snapshots::{Attached, Shape, Snapshots, Use};
use super::traces::Traces;

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
    activity: Activity,
    lifecycle: Lifecycle,
    /// Woken when a mount is gone.
    gone: Notify,
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

impl Service {
    pub(super) fn new(
        about: DaemonInfo,
        snapshots: Snapshots,
        mounts: Mounts,
        sandboxes: Sandboxes,
        changed: Arc<Notify>,
        adopted: usize,
    ) -> Self {
        let inner = ServiceInner {
            about,
            snapshots,
            mounts,
            sandboxes,
            traces: Traces::default(),
            activity: Activity::default(),
            lifecycle: Lifecycle::new(changed, adopted),
            gone: Notify::new(),
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

    /// Requests in flight, and the decision to stop.
    pub(super) fn lifecycle(&self) -> &Lifecycle {
        &self.inner.lifecycle
    }

    pub(super) fn traces(&self) -> &Traces {
        &self.inner.traces
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

    pub(super) fn attached(&self) -> Vec<AttachedSnapshot> {
        self.inner.snapshots.list()
    }

    /// Returns prefetch progress by store and snapshot.
    pub(super) fn prefetch(&self) -> PrefetchAnswer {
        let snapshots = &self.inner.snapshots;
        let stores = snapshots.stores().all().into_iter().map(|(store, _, open)| {
            let (figures, link) = open.stats();
            let by_class = |numbers: &[u64]| {
                let named = Class::ALL.iter().zip(numbers);
                named.map(|(class, number)| (class.name().to_owned(), *number)).collect()
            };
            StoreStatus {
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
    pub(super) async fn mounts(&self) -> Result<Vec<MountInfo>, DaemonError> {
        let service = self.clone();
        let listed = spawn_blocking(move || {
            let records = service.mount_records();
            records.into_iter().map(|record| service.mount_info(record)).collect()
        });
        listed.await.map_err(|_| DaemonError::Panicked)
    }

    /// The records of all mounts, the oldest first. Blocks.
    fn mount_records(&self) -> Vec<MountRecord> {
        self.sweep();
        let mut records = self.inner.mounts.list();
        records.sort_by_key(|record| record.seen.number());
        records
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
        if mounted == IfMounted::RefuseIfUsed {
            if !self.close_if_idle() {
                return Err(DaemonError::Busy);
            }
            self.inner.lifecycle.stop_token().cancel();
            return Ok(Vec::new());
        }
        // Excludes new mounts from here on.
        let closing = self.inner.lifecycle.close();
        closing.settle().await?;
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

    /// Returns the mounts of users. Fails if mounts or sandboxes are in the way and `mounted` is
    /// `Refuse`.
    async fn make_room(&self, mounted: IfMounted) -> Result<Vec<MountRecord>, DaemonError> {
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
        self.inner.lifecycle.close_if(|| {
            self.is_unused() && !self.inner.traces.any() && !self.inner.sandboxes.talk()
        })
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
    pub(super) fn sweep(&self) -> Option<Duration> {
        self.look_at_sandboxes();
        let mounts = self.inner.mounts.sweep();
        self.inner.gone.notify_waiters();
        let snapshots = self.inner.snapshots.sweep();
        [mounts, snapshots].into_iter().flatten().min()
    }

    /// Converts a mount for clients. Blocks.
    pub(super) fn mount_info(&self, record: MountRecord) -> MountInfo {
        let owner = record.owner.as_deref();
        let sandbox = owner.and_then(|id| self.inner.sandboxes.name(id));
        let inside = if owner.is_none() { inside(&record) } else { None };
        let server = Some(self.inner.about.process);
        MountInfo { sandbox, inside, server, served: true, ..MountInfo::of(record) }
    }
}

/// Returns a process that sees a mount in another mount namespace.
fn inside(record: &MountRecord) -> Option<NamespaceInfo> {
    let process = record.seen.process_inside()?;
    let pid = process.id().pid;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let (name, cgroup) = (read("comm").unwrap_or_default(), read("cgroup").unwrap_or_default());
    process.is_alive().then(|| NamespaceInfo {
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
