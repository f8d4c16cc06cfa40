//! Takes snapshots of sandboxes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_store::ids::Kind;
use inlay_store::remote::Name;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::plan::{InSandbox, Wanted};
use super::{Sandbox, Service, injected};
use crate::capture::{Cancel, CaptureOptions, CaptureParent, Captured, capture};
use crate::daemon::api::{CacheUse, LeftOutShown, SnapshotTaken, TakeSnapshot, WaitFor};
use crate::daemon::error::DaemonError;
use crate::host::Site;
use crate::import::NoProgress;
use crate::inject::Step;
use crate::mount::PathText;
use crate::snapshots::resolve;

/// What stands for no parent.
const NO_PARENT: &str = "none";

/// Tells a capture to stop when whoever wanted it is gone.
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
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let cancel = Cancel::default();
        let _until_gone = UntilGone(cancel.clone());
        let store = match &request.store {
            Some(store) => store.clone(),
            None => sandbox.origin()?.store,
        };
        let opened = self.snapshots().stores().get(&store, CacheUse::Kept)?;
        let wanted = match &request.path {
            None => Wanted::Root,
            Some(path) if path.to_path().is_absolute() => Wanted::Directory(path.to_path()),
            Some(_) => {
                let text = "the captured directory must be an absolute path";
                return Err(DaemonError::Request(text.to_owned()));
            }
        };
        let parent = match request.parent.as_deref() {
            None => CaptureParent::Automatic,
            Some(NO_PARENT) => CaptureParent::None,
            Some(reference) => CaptureParent::Given(resolve(&opened.remote, reference).await?),
        };
        let name: Option<Name> = request.name.as_deref().map(str::parse).transpose().map_err(
            |error: inlay_store::remote::NameError| DaemonError::Request(error.to_string()),
        )?;
        let options = CaptureOptions {
            name,
            parent,
            cancel,
            labels: request.labels,
            ttl: request.ttl_s.map(Duration::from_secs),
            exclude: request.exclude,
            ..options(sandbox, &wanted)
        };
        let (service, runtime) = (self.clone(), Handle::current());
        let wait = request.wait;
        let taken = sandbox.in_turn(move |sandbox| {
            let _under_way = under_way;
            let stores = service.snapshots().stores();
            let sealing = match wait {
                WaitFor::Sealed => Some(stores.outboxes().seal(&store)?),
                WaitFor::Durable => None,
            };
            let near =
                sealing.as_ref().map(|sealing| stores.sealing(&store, sealing)).transpose()?;
            let site = Site {
                remote: near.as_ref().unwrap_or(&opened.remote),
                state: service.snapshots().state(),
                runtime: &runtime,
            };
            let subject = InSandbox::new(&service, Arc::clone(sandbox), wanted, site, store);
            let captured = capture(site, &subject, &options, &NoProgress)?;
            if let Some(sealing) = &sealing {
                sealing.done();
            }
            injected(Step::SnapshotTaken)?;
            Ok(captured)
        });
        let captured = timeout(limit, taken).await.map_err(|_| DaemonError::Deadline(limit))??;
        self.activity().captured(&captured);
        Ok(shown(captured, request.path.as_ref(), wait, began.elapsed()))
    }
}

/// What follows from where the snapshot is of.
fn options(sandbox: &Sandbox, wanted: &Wanted) -> CaptureOptions {
    let name = sandbox.record.lock().name.clone();
    let (kind, source) = match wanted {
        Wanted::Root => (Kind::Filesystem, name),
        Wanted::Directory(path) => (Kind::Directory, format!("{name}:{}", path.display())),
    };
    let seen_dir = Some(sandbox.layout().root().join("seen"));
    CaptureOptions { seen_dir, ..CaptureOptions::new(kind, source) }
}

fn shown(
    captured: Captured,
    at: Option<&PathText>,
    wait: WaitFor,
    took: Duration,
) -> SnapshotTaken {
    let base = at.map_or_else(|| "/".into(), PathText::to_path);
    let left_out = captured.left_out.into_iter().map(|left| LeftOutShown {
        path: PathText::from(&*base.join(&left.path)),
        why: left.why.to_string(),
    });
    SnapshotTaken {
        durable: wait == WaitFor::Durable,
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
