//! Creates sandboxes, all or nothing.

use std::sync::Arc;
use std::time::Duration;

use inlay_base::inject::Step;
use inlay_mounts::{Caller, MakePath, PathText, UpperPlace, WantedView};
use inlay_sandbox::{
    Bundle, Layout, Monitor, Phase, SandboxId, SandboxRecord, prepare, write_bundle,
};
use inlay_store::ids::Kind;
use inlay_trace::{FIRST_EXEC, STARTING};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Origin, Sandbox, Sandboxes, Service, injected};
use crate::daemon::api::{CreateSandbox, MountOrigin, SandboxInfo, StartWhen};
use crate::daemon::cancel_on_drop::unless_given_up;
use crate::daemon::error::DaemonError;
use crate::daemon::idempotency::RequestKey;
use crate::daemon::lifecycle::InFlight;
use crate::daemon::service::Attach;
use crate::daemon::snapshots::{Attached, Shape};

/// Maximum length of a name, in bytes.
const NAME_LEN_MAX: usize = 63;
/// Pause between attempts to register a name that a sandbox being removed still holds.
const RETRY: Duration = Duration::from_millis(10);
/// Attempts to register such a name: half a minute in all.
const TRIES_OF_NAME: u32 = 3000;

/// An unfinished sandbox. Unless taken, all of it is removed on drop.
struct HalfMade {
    service: Service,
    sandbox: Option<Arc<Sandbox>>,
    in_flight: Option<InFlight>,
}

impl HalfMade {
    /// The sandbox stays.
    fn take(mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            sandbox.confirm();
        }
    }

    /// Removes all of it, after the step in progress is done.
    fn clear(&mut self) -> Option<JoinHandle<()>> {
        let sandbox = self.sandbox.take()?;
        let (service, in_flight) = (self.service.clone(), self.in_flight.take());
        Some(tokio::spawn(async move {
            if let Err(error) = service.clear_sandbox(&sandbox).await {
                tracing::warn!(%error, "can't clean up a sandbox whose creation failed");
            }
            drop(in_flight);
        }))
    }
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Sandboxes {
    /// Finds the sandbox that an earlier attempt with this key created. One that is being created
    /// or removed, or may still be undone, is no answer.
    fn made_with(&self, key: Option<&str>) -> Option<Arc<Sandbox>> {
        let key = key?;
        let all = self.list();
        all.into_iter().find(|sandbox| {
            let record = sandbox.record.lock();
            matches!(record.phase, Phase::Running | Phase::Stopped { .. })
                && record.idempotency_key.as_deref() == Some(key)
                && !sandbox.is_unconfirmed()
        })
    }

    /// Whether the sandbox named `name` is being removed, or was abandoned by an earlier attempt of
    /// the request for `instead`: no two requests with one key run concurrently.
    fn is_going(&self, name: &str, instead: &Sandbox) -> bool {
        let key = instead.record.lock().idempotency_key.clone();
        let other = match self.find(name) {
            Ok(other) => other,
            // It keeps its name.
            Err(DaemonError::DamagedSandbox { .. }) => return false,
            // It may have gone since the last attempt.
            Err(_) => return true,
        };
        let record = other.record.lock();
        match record.phase {
            Phase::Removing => true,
            Phase::Creating | Phase::Running | Phase::Stopped { .. } => {
                other.is_unconfirmed() && key.is_some() && record.idempotency_key == key
            }
        }
    }
}

impl Service {
    /// Creates a sandbox. Cancel-safe: if the future is dropped or `limit` passes, nothing of it
    /// stays. Idempotent: if an earlier attempt with the same `key` created a sandbox, returns that
    /// sandbox.
    pub(in crate::daemon) async fn create_sandbox(
        &self,
        request: CreateSandbox,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<SandboxInfo, DaemonError> {
        let start = request.start;
        let create = self.create_within(request, key, limit);
        match start {
            StartWhen::Now => self.activity().sandbox_starts.of(create).await,
            // Not timed: the caller decides when it starts.
            StartWhen::Later => create.await,
        }
    }

    async fn create_within(
        &self,
        request: CreateSandbox,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<SandboxInfo, DaemonError> {
        let key = key.map(|RequestKey(key)| key);
        if let Some(made) = self.sandboxes().made_with(key.as_deref()) {
            return self.sandbox(made.id().as_str()).await;
        }
        let in_flight = self.lifecycle().admit()?;
        let service = self.clone();
        let work = async move { Box::pin(service.make_sandbox(request, key, in_flight)).await };
        let half = unless_given_up(limit, work).await?;
        let id = half.sandbox.as_ref().map(|sandbox| sandbox.id().clone());
        let shown = self.sandbox(id.as_ref().map_or("", |id| id.as_str())).await?;
        half.take();
        Ok(shown)
    }

    async fn make_sandbox(
        &self,
        request: CreateSandbox,
        key: Option<String>,
        in_flight: InFlight,
    ) -> Result<HalfMade, DaemonError> {
        let id = SandboxId::random();
        let id = id.map_err(DaemonError::io("read", "/dev/urandom".as_ref()))?;
        let name = match &request.name {
            Some(name) => checked(name.clone())?,
            None => id.to_string(),
        };
        self.mark("asked", || id.to_string());
        let CreateSandbox { snapshot, store, cache, load, .. } = &request;
        let wanted = Attach {
            snapshot,
            store,
            cache: *cache,
            load,
            origin: MountOrigin::Command,
            chown: None,
        };
        let attached = self.attach(wanted, Shape::Below).await?;
        if !matches!(attached.snapshot.kind, Kind::Image | Kind::Filesystem) {
            return Err(DaemonError::NoRoot(attached.snapshot));
        }
        let origin = Origin {
            store: store.clone(),
            cache: *cache,
            image: snapshot.clone(),
            when_ended: request.when_ended,
        };
        let origin = serde_json::to_value(origin)
            .map_err(|error| DaemonError::Request(error.to_string()))?;
        let mut options = request.options.clone();
        options.secrets = request.secrets.iter().map(|secret| secret.name.clone()).collect();
        options.settle()?;
        let mut record = SandboxRecord::new(id.clone(), name, attached.snapshot, origin, options);
        record.idempotency_key = key;
        let sandbox = Sandbox::unconfirmed(Layout::of(&self.sandboxes().state, &id), record);
        self.add_patiently(&sandbox).await?;
        let mut half = HalfMade {
            service: self.clone(),
            sandbox: Some(Arc::clone(&sandbox)),
            in_flight: Some(in_flight),
        };
        let Err(error) = self.fill(&sandbox, request, attached).await else { return Ok(half) };
        // Awaited, so that nothing of it exists any more when its caller gets the error.
        if let Some(cleared) = half.clear() {
            cleared.await.map_err(|_| DaemonError::Panicked)?;
        }
        Err(error)
    }

    /// Registers a new sandbox, after one of the same request that is being cleaned up is gone.
    async fn add_patiently(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        for _ in 0..TRIES_OF_NAME {
            match self.sandboxes().add(sandbox) {
                Err(DaemonError::NameTaken(name)) if self.sandboxes().is_going(&name, sandbox) => {
                    tokio::time::sleep(RETRY).await;
                }
                other => return other,
            }
        }
        self.sandboxes().add(sandbox)
    }

    /// Creates everything of a sandbox, from its record on.
    async fn fill(
        &self,
        sandbox: &Arc<Sandbox>,
        request: CreateSandbox,
        attached: Attached,
    ) -> Result<(), DaemonError> {
        let CreateSandbox { store, cache, secrets, mounts, start, .. } = request;
        sandbox
            .in_turn(move |sandbox| {
                sandbox.update(|_| {})?;
                injected(Step::SandboxRecorded)?;
                let options = sandbox.record.lock().options.clone();
                prepare(sandbox.layout(), &options, &secrets)?;
                injected(Step::SandboxPrepared)
            })
            .await?;
        let config = self.snapshots().image_config(attached.snapshot, &store, cache).await?;
        let wanted = self.wanted(
            attached,
            WantedView::Writable(UpperPlace::Kept(PathText::from(&*sandbox.layout().rw()))),
            Some(sandbox.id().to_string()),
        )?;
        let service = self.clone();
        sandbox
            .in_turn(move |sandbox| {
                let rootfs = sandbox.layout().rootfs();
                let claim = service.mount_table().claim(&Caller::This, &rootfs, MakePath::Never)?;
                service.mount_table().create(claim, wanted)?;
                service.mark("mounted", || sandbox.id().to_string());
                injected(Step::SandboxRootMounted)?;
                service.start_monitor(sandbox, config.as_deref())?;
                service.mark("created", || sandbox.id().to_string());
                Ok(())
            })
            .await?;
        for mount in mounts {
            let limit = Duration::from_millis(mount.deadline_ms);
            self.mount_into(sandbox.id().as_str(), mount, None, limit).await?;
        }
        if start == StartWhen::Now {
            self.start_sandbox(sandbox.id().as_str()).await?;
        }
        sandbox
            .in_turn(|sandbox| {
                sandbox.update(|record| record.phase = Phase::Running)?;
                injected(Step::SandboxRunning)
            })
            .await
    }

    /// Creates the container, from its bundle on. Called in the turn. Blocks.
    fn start_monitor(
        &self,
        sandbox: &Arc<Sandbox>,
        config: Option<&[u8]>,
    ) -> Result<(), DaemonError> {
        let options = sandbox.record.lock().options.clone();
        let bundle: Bundle = write_bundle(sandbox.layout(), &options, config)?;
        sandbox.update(|record| record.bundle = Some(bundle))?;
        injected(Step::SandboxBundleWritten)?;
        let mut words = self.sandboxes().monitor.clone();
        words.extend(["--sandbox".into(), sandbox.id().to_string().into()]);
        let monitor = Monitor::spawn(sandbox.layout(), &words)?;
        *sandbox.first.lock() = Some(monitor.status()?.init);
        injected(Step::SandboxContainerMade)
    }

    /// Starts the first process of a sandbox created with [`StartWhen::Later`].
    pub(in crate::daemon) async fn start_sandbox(
        &self,
        reference: &str,
    ) -> Result<(), DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let id = sandbox.id().clone();
        self.mark(STARTING, || id.to_string());
        let started = spawn_blocking(move || sandbox.monitor().start());
        started.await.map_err(|_| DaemonError::Panicked)??;
        self.mark(FIRST_EXEC, || id.to_string());
        Ok(())
    }
}

/// Validates a name: it must fit in a path, an address and a command line.
fn checked(name: String) -> Result<String, DaemonError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && name.len() <= NAME_LEN_MAX && !name.starts_with("sb-") {
        return Ok(name);
    }
    Err(DaemonError::Request(format!(
        "{name:?} can't be a sandbox's name; use letters, digits, '_', '.' and '-', a letter or digit \
         first, {NAME_LEN_MAX} at most, and not 'sb-' at the beginning"
    )))
}

#[cfg(test)]
mod tests {
    use inlay_sandbox::{Exit, ExitCause};

    use super::*;
    use crate::daemon::sandboxes::damaged::unknown;

    fn sandbox(state: &std::path::Path, id: &str, phase: Phase) -> Arc<Sandbox> {
        let id: SandboxId = id.parse().unwrap();
        let mut record = unknown(&id);
        (record.name, record.phase) = ("a".to_owned(), phase);
        record.idempotency_key = Some("k".to_owned());
        Sandbox::unconfirmed(Layout::of(state, &id), record)
    }

    #[test]
    fn only_a_sandbox_that_stays_answers_a_repeated_request() {
        let dir = tempfile::tempdir().unwrap();
        let exit = Exit { code: 0, cause: ExitCause::Ended, oom_killed: false, at_ms: 0 };
        for (phase, stays) in [
            (Phase::Creating, false),
            (Phase::Running, true),
            (Phase::Stopped { exit }, true),
            (Phase::Removing, false),
        ] {
            let all = Sandboxes::new(dir.path(), Vec::new());
            let made = sandbox(dir.path(), "sb-0123456789ab", phase.clone());
            all.add(&made).unwrap();
            // Undone if its caller goes away.
            assert!(all.made_with(Some("k")).is_none());
            let next = sandbox(dir.path(), "sb-0123456789ac", Phase::Creating);
            assert!(all.is_going("a", &next));
            made.confirm();
            assert_eq!(all.made_with(Some("k")).is_some(), stays, "{phase:?}");
            assert!(all.made_with(Some("other")).is_none() && all.made_with(None).is_none());
            assert_eq!(all.is_going("a", &next), phase == Phase::Removing, "{phase:?}");
        }
    }
}
