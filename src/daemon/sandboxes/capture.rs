//! Takes snapshots of sandboxes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_base::inject::Step;
use inlay_capture::{
    Cancel, CaptureError, CaptureOptions, CaptureParent, Captured, Promise, capture,
};
use inlay_images::import::NoProgress;
use inlay_mounts::PathText;
use inlay_snapshots::host::Site;
use inlay_snapshots::resolve;
use inlay_store::ids::{Digest, Kind};
use inlay_store::remote::{Name, Remote};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::plan::{InSandbox, Wanted};
use super::{Sandbox, Service, injected};
use crate::daemon::api::{CacheUse, OmittedFile, SnapshotTaken, StoreRef, TakeSnapshot, WaitFor};
use crate::daemon::error::DaemonError;

/// Reference that stands for no parent.
const NO_PARENT: &str = "none";

/// Cancels a capture when its caller is gone.
struct UntilGone(Cancel);

impl Drop for UntilGone {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Service {
    /// Takes a snapshot of the sandbox that `request` names.
    pub(in crate::daemon) async fn take_snapshot(
        &self,
        request: TakeSnapshot,
    ) -> Result<SnapshotTaken, DaemonError> {
        let sandbox = self.sandboxes().find(&request.sandbox)?;
        self.take_snapshot_of(&sandbox, request).await
    }

    pub(super) async fn take_snapshot_of(
        &self,
        sandbox: &Arc<Sandbox>,
        request: TakeSnapshot,
    ) -> Result<SnapshotTaken, DaemonError> {
        self.activity().captures.of(self.take_snapshot_within(sandbox, request)).await
    }

    async fn take_snapshot_within(
        &self,
        sandbox: &Arc<Sandbox>,
        request: TakeSnapshot,
    ) -> Result<SnapshotTaken, DaemonError> {
        let began = Instant::now();
        let limit = Duration::from_millis(request.deadline_ms);
        let in_flight = self.lifecycle().admit()?;
        let cancel = Cancel::default();
        let _until_gone = UntilGone(cancel.clone());
        let store = match &request.store {
            Some(store) => store.clone(),
            None => sandbox.origin()?.store,
        };
        let wanted = match &request.path {
            None => Wanted::Root,
            Some(path) if path.to_path().is_absolute() => Wanted::Directory(path.to_path()),
            Some(_) => {
                let text = "the captured directory must be an absolute path";
                return Err(DaemonError::Request(text.to_owned()));
            }
        };
        let name: Option<Name> = request.name.as_deref().map(str::parse).transpose().map_err(
            |error: inlay_store::remote::NameError| DaemonError::Request(error.to_string()),
        )?;
        let options = CaptureOptions {
            name,
            cancel,
            labels: request.labels,
            ttl: request.ttl_s.map(Duration::from_secs),
            exclude: request.exclude,
            ..options(sandbox, &wanted, &store)
        };
        let taking = TakingSnapshot {
            service: self.clone(),
            store,
            wanted,
            parent: request.parent,
            options,
            runtime: Handle::current(),
        };
        let wait = request.wait;
        let lease = sandbox.lease(taking.options.cancel.clone());
        let lease = timeout(limit, lease).await.map_err(|_| DaemonError::Deadline(limit))??;
        let sandbox = Arc::clone(sandbox);
        let taken = spawn_blocking(move || {
            // Both are released when nothing of the sandbox is read any more, even if the client is
            // gone.
            let (_in_flight, _lease) = (in_flight, lease);
            let taken = match wait {
                WaitFor::Sealed => taking.seal(&sandbox)?,
                WaitFor::Durable => taking.store(&sandbox)?,
            };
            injected(Step::SnapshotTaken)?;
            Ok::<_, DaemonError>(taken)
        });
        let left = limit.saturating_sub(began.elapsed());
        let taken = timeout(left, taken).await.map_err(|_| DaemonError::Deadline(limit))?;
        let (captured, kept) = taken.map_err(|_| DaemonError::Panicked)??;
        self.activity().captured(&captured);
        Ok(to_wire(captured, request.path.as_ref(), kept, began.elapsed()))
    }
}

/// Location of a finished snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SnapshotHome {
    InStore,
    OnThisHost,
}

/// A capture in progress. Its methods block.
struct TakingSnapshot {
    service: Service,
    store: StoreRef,
    wanted: Wanted,
    parent: Option<String>,
    options: CaptureOptions,
    runtime: Handle,
}

impl TakingSnapshot {
    /// Captures into the store.
    fn store(self, sandbox: &Arc<Sandbox>) -> Result<(Captured, SnapshotHome), DaemonError> {
        let opened = self.service.snapshots().stores().get(&self.store, CacheUse::Kept)?;
        let parent = match self.parent.as_deref() {
            None => CaptureParent::Automatic,
            Some(NO_PARENT) => CaptureParent::None,
            Some(reference) => {
                CaptureParent::Given(self.runtime.block_on(resolve(&opened.remote, reference))?)
            }
        };
        let options = CaptureOptions { parent, ..self.options.clone() };
        let captured = self.capture(sandbox, &opened.remote, &options)?;
        Ok((captured, SnapshotHome::InStore))
    }

    /// Captures into the outbox, without a request to the store.
    fn seal(mut self, sandbox: &Arc<Sandbox>) -> Result<(Captured, SnapshotHome), DaemonError> {
        let outboxes = self.service.snapshots().stores().outboxes().clone();
        let sealing = outboxes.seal(&self.store, &self.runtime)?;
        let parent = match self.parent.as_deref() {
            None => CaptureParent::Automatic,
            Some(NO_PARENT) => CaptureParent::None,
            Some(reference) => CaptureParent::Given(sealing.resolve(reference)?),
        };
        // The name is set when the snapshot is committed.
        let name = self.options.name.take();
        let promise = Promise::Sealed;
        let options = CaptureOptions { parent, promise, ..self.options.clone() };
        let mut captured = self.capture(sandbox, sealing.remote(), &options)?;
        let id = captured.record.id;
        injected(Step::SealedObjectsWritten)?;
        if self.options.cancel.is_cancelled() {
            return Err(CaptureError::Cancelled.into());
        }
        let kept = if name.is_some() || sealing.has_record(id) {
            sealing.commit(id, name.as_ref())?;
            SnapshotHome::OnThisHost
        } else if sealing.waits(id) {
            SnapshotHome::OnThisHost
        } else {
            // Nothing has changed since a snapshot that was shipped.
            SnapshotHome::InStore
        };
        // The next snapshot may refer to this one, which can't be lost any more.
        captured.remember();
        Ok((captured, kept))
    }

    fn capture(
        &self,
        sandbox: &Arc<Sandbox>,
        remote: &Remote,
        options: &CaptureOptions,
    ) -> Result<Captured, DaemonError> {
        let state = self.service.snapshots().state();
        let site = Site { remote, state, runtime: &self.runtime };
        let (wanted, store) = (self.wanted.clone(), self.store.clone());
        let cancel = options.cancel.clone();
        let subject =
            InSandbox::new(&self.service, Arc::clone(sandbox), wanted, (site, store), cancel);
        Ok(capture(site, &subject, options, &NoProgress)?)
    }
}

/// Returns the options that follow from the captured path.
fn options(sandbox: &Sandbox, wanted: &Wanted, store: &StoreRef) -> CaptureOptions {
    let name = sandbox.record.lock().name.clone();
    let (kind, source) = match wanted {
        Wanted::Root => (Kind::Filesystem, name),
        Wanted::Directory(path) => (Kind::Directory, format!("{name}:{}", path.display())),
    };
    // The record of files seen refers to a snapshot, which is in one store.
    let store = Digest::of(store.url.as_deref().unwrap_or_default().as_bytes()).to_hex();
    let seen_dir = Some(sandbox.layout().root().join("seen").join(store));
    CaptureOptions { seen_dir, ..CaptureOptions::new(kind, source) }
}

fn to_wire(
    captured: Captured,
    at: Option<&PathText>,
    kept: SnapshotHome,
    took: Duration,
) -> SnapshotTaken {
    let base = at.map_or_else(|| "/".into(), PathText::to_path);
    let left_out = captured.left_out.into_iter().map(|left| OmittedFile {
        path: PathText::from(&*base.join(&left.path)),
        why: left.why.to_string(),
    });
    SnapshotTaken {
        durable: kept == SnapshotHome::InStore,
        unchanged: captured.unchanged,
        frozen_ms: captured.frozen.as_secs_f64() * 1e3,
        took_ms: took.as_secs_f64() * 1e3,
        read_files: captured.stats.files_read,
        read_bytes: captured.stats.bytes_read,
        stored_bytes: captured.stats.stored_bytes,
        left_out: left_out.collect(),
        left_out_more: captured.left_out_more,
        record: captured.record,
    }
}
