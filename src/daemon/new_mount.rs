//! What all mounts have in common, on the host and in sandboxes: the claim of a mount point, and
//! the guard that undoes a mount whose client is gone.

use std::path::PathBuf;
use std::time::Duration;

use inlay_mounts::{Caller, Claim, MakePath, MountError, MountRecord};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::DaemonError;
use super::lifecycle::InFlight;
use super::service::Service;

/// How long a mount waits for another one at the same mount point to be confirmed or undone.
const CLAIM_WITHIN: Duration = Duration::from_secs(10);
/// The longest pause between two attempts. Nothing reports that a directory was renamed or removed
/// by another program in the middle of a claim.
const RETRY: Duration = Duration::from_millis(100);
/// The shortest one. A claim that fails late notifies its own waiter.
const PAUSE: Duration = Duration::from_millis(5);

/// A request for a mount point.
#[derive(Clone)]
pub(super) struct MountPoint {
    /// The process in whose mount namespace the path is resolved.
    pub(super) caller: Caller,
    /// Absolute path, as the caller sees it.
    pub(super) path: PathBuf,
    /// Whether a missing directory is created.
    pub(super) make: MakePath,
    /// The idempotency key of the request.
    pub(super) key: Option<String>,
}

/// The outcome of a claim.
pub(super) enum Claimed {
    /// The mount point is reserved.
    Free(Box<Claim>),
    /// An earlier attempt of the same request has mounted it.
    Taken(Box<MountRecord>),
}

/// A new mount. Unless taken, it is rolled back on drop: its client is gone.
pub(super) struct NewMount {
    service: Service,
    record: Option<MountRecord>,
    rollback: Option<Rollback>,
    in_flight: Option<InFlight>,
}

/// Undoes a mount, and everything recorded for it elsewhere. Blocks.
type Rollback = Box<dyn FnOnce(&Service, &MountRecord) -> Result<(), DaemonError> + Send>;

impl NewMount {
    /// Guards `record`. The rollback must undo the mount.
    pub(super) fn new(
        service: Service,
        record: MountRecord,
        in_flight: InFlight,
        rollback: impl FnOnce(&Service, &MountRecord) -> Result<(), DaemonError> + Send + 'static,
    ) -> Self {
        let (record, rollback) = (Some(record), Some(Box::new(rollback) as Rollback));
        Self { service, record, rollback, in_flight: Some(in_flight) }
    }

    /// Makes the mount outlive this daemon, before the client gets its answer. Blocks.
    pub(super) fn confirm(&mut self) -> Result<(), DaemonError> {
        if let Some(record) = &mut self.record {
            *record = self.service.mount_table().confirm(record)?;
        }
        Ok(())
    }

    pub(super) fn record(&self) -> Option<&MountRecord> {
        self.record.as_ref()
    }

    /// The mount stays.
    pub(super) fn keep(mut self) {
        self.record = None;
    }
}

impl Drop for NewMount {
    fn drop(&mut self) {
        let (Some(record), Some(rollback)) = (self.record.take(), self.rollback.take()) else {
            return;
        };
        tracing::info!(
            mountpoint = %record.mountpoint.to_path().display(),
            snapshot = %record.snapshot,
            sandbox = record.owner,
            "undoing a mount: the caller disconnected"
        );
        let (service, in_flight) = (self.service.clone(), self.in_flight.take());
        // Marked before any other request can see that the caller is gone.
        service.mount_table().mark_for_undo(&record);
        spawn_blocking(move || {
            if let Err(error) = rollback(&service, &record) {
                tracing::warn!(
                    %error,
                    mountpoint = %record.mountpoint.to_path().display(),
                    "can't undo a cancelled mount completely"
                );
            }
            service.sweep();
            drop(in_flight);
        });
    }
}

impl Service {
    /// Claims a mount point. Waits while another request mounts there or undoes a mount there.
    ///
    /// # Errors
    ///
    /// [`MountError::BeingMounted`] if that is still so after 10 seconds, and the errors of
    /// [`inlay_mounts::Mounts::claim`].
    pub(super) async fn claim(&self, wanted: &MountPoint) -> Result<Claimed, DaemonError> {
        let deadline = Instant::now() + CLAIM_WITHIN;
        let settled = self.mount_table().settled().clone();
        loop {
            // Created before the attempt, so that a notification in between is not lost.
            let notified = settled.notified();
            let (service, this) = (self.clone(), wanted.clone());
            let claimed = spawn_blocking(move || service.claim_now(&this));
            if let Some(claimed) = claimed.await.map_err(|_| DaemonError::Panicked)?? {
                return Ok(claimed);
            }
            if Instant::now() >= deadline {
                return Err(MountError::BeingMounted(wanted.path.clone()).into());
            }
            // Timing out is not an error: it tries again.
            let _ = timeout_at(deadline.min(Instant::now() + RETRY), notified).await;
            sleep(PAUSE).await;
        }
    }

    /// Returns `None` if it is undecided whether another mount there stays. Blocks.
    fn claim_now(&self, wanted: &MountPoint) -> Result<Option<Claimed>, DaemonError> {
        let MountPoint { caller, path, make, key } = wanted;
        match self.mount_table().claim(caller, path, *make) {
            Ok(claim) => Ok(Some(Claimed::Free(Box::new(claim)))),
            Err(MountError::BeingMounted(_)) => Ok(None),
            Err(error @ MountError::AlreadyMounted { .. }) => {
                let Some(record) = self.mount_table().find(caller, path)? else { return Ok(None) };
                if key.is_some() && record.key == *key {
                    return Ok(Some(Claimed::Taken(Box::new(record))));
                }
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}
