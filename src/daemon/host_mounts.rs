//! Mounts on the host and in the mount namespaces of its processes.

use std::time::Duration;

use inlay_mounts::{MountRecord, Process, Standing, Wanted, WantedView};
use tokio::task::spawn_blocking;

use super::api::{MountInfo, MountOrigin, MountRequest, UmountAnswer, UmountRequest};
use super::cancel_on_drop::unless_given_up;
use super::error::DaemonError;
use super::idempotency::RequestKey;
use super::lifecycle::InFlight;
use super::new_mount::{Claimed, MountPoint, NewMount};
use super::repeated_mount::target;
use super::service::{Attach, Service};
use super::snapshots::Shape;

impl Service {
    /// Mounts a snapshot for the process `caller`. Cancel-safe: if the future is dropped or `limit`
    /// passes, nothing of the mount stays. Idempotent: if an earlier attempt with the same `key`
    /// created the mount, returns that mount.
    pub(super) async fn mount(
        &self,
        caller: Process,
        request: MountRequest,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountInfo, DaemonError> {
        self.activity().mounts.of(self.mount_within(caller, request, key, limit)).await
    }

    async fn mount_within(
        &self,
        caller: Process,
        request: MountRequest,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<MountInfo, DaemonError> {
        let in_flight = self.lifecycle().admit()?;
        let again = (request.origin == MountOrigin::MountTable).then(|| request.clone());
        let work = self.clone().make(caller.clone(), request, key, in_flight);
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
            let shown = made.record().cloned().map(|record| service.mount_info(record));
            Ok::<_, DaemonError>((made, shown))
        });
        let (made, shown) = made.await.map_err(|_| DaemonError::Panicked)??;
        made.keep();
        shown.ok_or(DaemonError::Panicked)
    }

    async fn make(
        self,
        caller: Process,
        request: MountRequest,
        key: Option<RequestKey>,
        in_flight: InFlight,
    ) -> Result<NewMount, DaemonError> {
        let path = request.mountpoint.to_path();
        if !path.is_absolute() {
            return Err(DaemonError::Request("the mount point must be an absolute path".into()));
        }
        let key = key.map(|RequestKey(key)| key);
        let undo = |service: &Self, record: &MountRecord| {
            service.mount_table().undo(record).map_err(DaemonError::from)
        };
        // Claimed first: it costs nothing, and fails most often.
        let (caller, make) = target(request.pid, caller, request.origin)?;
        let wanted = MountPoint { caller, path, make, key: key.clone() };
        let claim = match self.claim(&wanted).await? {
            Claimed::Free(claim) => claim,
            Claimed::Taken(record) => return Ok(NewMount::new(self, *record, in_flight, undo)),
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
            let record = service.mount_table().create(*claim, wanted)?;
            service.mark("mounted", || record.mountpoint.to_path().display().to_string());
            // Most mounts are read little: release the index pages that attaching has mapped.
            slots.into_iter().flatten().for_each(|slot| service.snapshots().release_pages_of(slot));
            // From here on the mount is undone unless kept, however this task ends.
            Ok(NewMount::new(service, record, in_flight, undo))
        });
        made.await.map_err(|_| DaemonError::Panicked)?
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
        let in_flight = self.lifecycle().admit()?;
        let service = self.clone();
        let ended = spawn_blocking(move || {
            let _in_flight = in_flight;
            let ended = service.mount_table().unmount(&caller, &path, request.how, request.changes);
            service.sweep();
            ended
        });
        let ended = ended.await.map_err(|_| DaemonError::Panicked)??;
        let MountRecord { mountpoint, snapshot, view, .. } = ended.record;
        let (in_use, discarded) = (ended.in_use, ended.discarded);
        Ok(UmountAnswer { mountpoint, snapshot, view, in_use, discarded })
    }
}
