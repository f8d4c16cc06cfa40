//! Resolves the process that a mount is for, and accepts an identical mount as success, as for
//! `mount -a` on a running host.

use std::path::{Path, PathBuf};

use inlay_mounts::{Caller, MakePath, MountError, Owner, Process};
use tokio::task::spawn_blocking;

use super::api::{MountInfo, MountOrigin, MountRequest};
use super::error::DaemonError;
use super::service::{Attach, Service};

impl Service {
    /// Returns the mount that made `request` fail with `error`, if it is identical to the requested
    /// one; otherwise fails with `error`.
    pub(super) async fn mounted_already(
        self,
        caller: Process,
        request: MountRequest,
        error: DaemonError,
    ) -> Result<MountInfo, DaemonError> {
        let DaemonError::Mount(MountError::AlreadyMounted { mountpoint, .. }) = &error else {
            return Err(error);
        };
        let wanted = Attach {
            snapshot: &request.snapshot,
            store: &request.store,
            cache: request.cache,
            load: &request.load,
            origin: request.origin,
            chown: request.chown,
        };
        let snapshot = self.snapshots().named(wanted).await?;
        let (caller, _) = target(request.pid, caller, request.origin)?;
        let (service, path) = (self.clone(), mountpoint.clone());
        let found = spawn_blocking(move || {
            let mounts = service.mount_table();
            let record = mounts.find(&caller, path.as_ref() as &Path)?;
            let same = record.filter(|record| {
                mounts.is_as_wanted(record, snapshot, &request.view, &request.flags)
            });
            Ok::<_, DaemonError>(same.map(|record| service.mount_info(record)))
        });
        found.await.map_err(|_| DaemonError::Panicked)??.ok_or(error)
    }
}

/// Returns the caller in whose mount namespace a mount is made, and whether a missing mount point
/// is created.
pub(super) fn target(
    pid: Option<u32>,
    caller: Process,
    origin: MountOrigin,
) -> Result<(Caller, MakePath), DaemonError> {
    let Some(pid) = pid else {
        let make = match origin {
            MountOrigin::Command => MakePath::Never,
            MountOrigin::MountTable => MakePath::WorkingDirectory,
        };
        return Ok((Caller::Process(caller), make));
    };
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let held = Process::hold(pid).map_err(DaemonError::io("hold the process of", &proc))?;
    let process = held.ok_or_else(|| DaemonError::Request(format!("there is no process {pid}")))?;
    Ok((Caller::Process(process), MakePath::OwnedBy(Owner::ROOT)))
}
