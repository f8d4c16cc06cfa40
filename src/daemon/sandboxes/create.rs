//! Makes a sandbox: all of it, or nothing of it stays.

use std::sync::Arc;
use std::time::Duration;

use inlay_store::ids::Kind;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Origin, Sandbox, Service, injected};
use crate::daemon::api::{CreateSandbox, SandboxShown, StartWhen};
use crate::daemon::error::DaemonError;
use crate::daemon::given_up::unless_given_up;
use crate::daemon::once::RequestKey;
use crate::daemon::service::{Attach, LOOK_AGAIN, UnderWay};
use crate::daemon::snapshots::{Attached, Shape};
use crate::inject::Step;
use crate::mount::{Caller, MakePath, PathText, UpperPlace, WantedView};
use crate::sandbox::{
    Bundle, Layout, Monitor, Phase, SandboxId, SandboxRecord, prepare, write_bundle,
};
use crate::trace::{FIRST_EXEC, STARTING};

/// The longest name.
const NAME_LEN_MAX: usize = 63;
/// How often a name is tried whose sandbox is going: half a minute.
const TRIES_OF_NAME: u32 = 3000;

/// A sandbox that is not finished. Dropped without being taken, all of it is removed.
struct HalfMade {
    service: Service,
    sandbox: Option<Arc<Sandbox>>,
    under_way: Option<UnderWay>,
}

impl HalfMade {
    fn take(mut self) -> Option<Arc<Sandbox>> {
        self.sandbox.take()
    }

    /// Has all of it removed, when the step that is under way is done.
    fn clear(&mut self) -> Option<JoinHandle<()>> {
        let sandbox = self.sandbox.take()?;
        let (service, under_way) = (self.service.clone(), self.under_way.take());
        Some(tokio::spawn(async move {
            if let Err(error) = service.clear_sandbox(&sandbox).await {
                tracing::warn!(%error, "a sandbox that could not be made is not cleared away");
            }
            drop(under_way);
        }))
    }
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Service {
    /// Makes a sandbox. Should this future be dropped, or take longer than its caller waits, nothing
    /// of it stays. If the request with this `key` has made one before, it is that one.
    pub(in crate::daemon) async fn create_sandbox(
        &self,
        request: CreateSandbox,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<SandboxShown, DaemonError> {
        let start = request.start;
        let create = self.create_within(request, key, limit);
        match start {
            StartWhen::Now => self.activity().sandbox_starts.of(create).await,
            // Its caller takes its time.
            StartWhen::Later => create.await,
        }
    }

    async fn create_within(
        &self,
        request: CreateSandbox,
        key: Option<RequestKey>,
        limit: Duration,
    ) -> Result<SandboxShown, DaemonError> {
        let key = key.map(|RequestKey(key)| key);
        if let Some(made) = self.made_with(key.as_deref()) {
            return self.sandbox(made.id().as_str()).await;
        }
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let service = self.clone();
        let work = async move { Box::pin(service.make_sandbox(request, key, under_way)).await };
        let half = unless_given_up(limit, work).await?;
        let id = half.sandbox.as_ref().map(|sandbox| sandbox.id().clone());
        let shown = self.sandbox(id.as_ref().map_or("", |id| id.as_str())).await?;
        half.take();
        Ok(shown)
    }

    /// The sandbox that the request with this key has made.
    fn made_with(&self, key: Option<&str>) -> Option<Arc<Sandbox>> {
        let key = key?;
        let all = self.sandboxes().list();
        all.into_iter().find(|sandbox| {
            let record = sandbox.record.lock();
            record.phase != Phase::Creating && record.idempotency_key.as_deref() == Some(key)
        })
    }

    async fn make_sandbox(
        &self,
        request: CreateSandbox,
        key: Option<String>,
        under_way: UnderWay,
    ) -> Result<HalfMade, DaemonError> {
        let id = SandboxId::random();
        let id = id.map_err(DaemonError::io("read", "/dev/urandom".as_ref()))?;
        let name = match &request.name {
            Some(name) => checked(name.clone())?,
            None => id.to_string(),
        };
        self.mark("asked", || id.to_string());
        let CreateSandbox { snapshot, store, cache, load, .. } = &request;
        let wanted = Attach { snapshot, store, cache: *cache, load };
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
        let mut record = SandboxRecord::new(id.clone(), name, attached.snapshot, origin, options);
        record.idempotency_key = key;
        let sandbox = Sandbox::new(Layout::of(&self.sandboxes().state, &id), record);
        self.add_patiently(&sandbox).await?;
        let mut half = HalfMade {
            service: self.clone(),
            sandbox: Some(Arc::clone(&sandbox)),
            under_way: Some(under_way),
        };
        let Err(error) = self.fill(&sandbox, request, attached).await else { return Ok(half) };
        // Nothing of it is there any more when its caller is told.
        if let Some(cleared) = half.clear() {
            cleared.await.map_err(|_| DaemonError::Panicked)?;
        }
        Err(error)
    }

    /// Takes a new sandbox in, when one of the same request that is being cleared away is gone.
    async fn add_patiently(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        for _ in 0..TRIES_OF_NAME {
            match self.sandboxes().add(sandbox) {
                Err(DaemonError::NameTaken(name)) if self.is_going(&name, sandbox) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                other => return other,
            }
        }
        self.sandboxes().add(sandbox)
    }

    /// Whether the sandbox that has this name is being removed, or was given up by whoever wants
    /// `instead` now: no two requests with one key run at a time.
    fn is_going(&self, name: &str, instead: &Sandbox) -> bool {
        let key = instead.record.lock().idempotency_key.clone();
        // Between two looks it may have gone.
        self.sandboxes().find(name).map_or(true, |other| {
            let other = other.record.lock();
            match other.phase {
                Phase::Removing => true,
                Phase::Creating => key.is_some() && other.idempotency_key == key,
                Phase::Running | Phase::Stopped { .. } => false,
            }
        })
    }

    /// All of a sandbox, after its record.
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
                let claim = service.mount_table().claim(Caller::This, &rootfs, MakePath::Never)?;
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

    /// The container, from its bundle on. Blocks.
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

    /// Starts the first process of a sandbox that waits for that.
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

/// A name that can stand in a path, an address and a command line.
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
