//! Sandboxes of a daemon, and the operations on them.
//!
//! Operations that change a sandbox are serialized by its turn, a lock. An operation holds the turn
//! until its work is done, even if its caller is gone, so that cleanup after an abandoned request
//! starts only when nothing of that request is in flight. A capture only reads, and may take as
//! long as its store: it holds a lease (`leases.rs`) rather than the turn.

mod capture;
mod create;
mod damaged;
mod end;
mod leases;
mod live;
mod mounted;
mod places;
mod plan;
mod recover;
mod shared_waits;
mod streams;
mod summary;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;

use leases::Captures;
pub(super) use streams::{LogWanted, Pieces};

use damaged::DamagedSandbox;
use inlay_base::inject::{self, Step};
use inlay_mounts::{Caller, Process, ProcessId};
use inlay_sandbox::{
    Exit, ExitCause, Layout, Monitor, Phase, SandboxId, SandboxRecord, StopOptions, stop,
};

use super::api::{CacheUse, SandboxInfo, StoreRef};
use super::error::DaemonError;
use super::service::Service;

/// Maximum number of sandboxes.
const SANDBOXES_MAX: usize = 4096;

/// All sandboxes of a state directory.
pub(super) struct Sandboxes {
    state: PathBuf,
    /// Arguments that run this program as a monitor, without the sandbox's id.
    monitor: Vec<OsString>,
    all: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    /// Sandboxes with damaged records.
    damaged: Mutex<BTreeMap<SandboxId, DamagedSandbox>>,
    /// Tasks that serve streams of clients.
    streams: TaskTracker,
}

/// A sandbox.
pub(super) struct Sandbox {
    layout: Layout,
    /// Held for moments: every lookup by name takes it.
    record: Mutex<SandboxRecord>,
    /// Orders changes of the record. Held while the record is written.
    changing: Mutex<()>,
    /// Its first process, while it runs.
    first: Mutex<Option<ProcessId>>,
    /// Whether the request that creates it is in flight, and removes it unless it succeeds.
    unconfirmed: AtomicBool,
    turn: Arc<AsyncMutex<()>>,
    waits: shared_waits::Waits,
    /// Captures that read it. They don't take the turn.
    captures: Captures,
}

/// Origin of a sandbox's root, stored in its record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Origin {
    store: StoreRef,
    cache: CacheUse,
    /// The reference by which the user named the snapshot.
    image: String,
    /// What happens when its first process ends.
    #[serde(default)]
    when_ended: super::api::WhenEnded,
}

impl Sandboxes {
    pub(super) fn new(state: &Path, monitor: Vec<OsString>) -> Self {
        Self {
            state: state.to_owned(),
            monitor,
            all: Mutex::default(),
            damaged: Mutex::default(),
            streams: TaskTracker::new(),
        }
    }

    /// Whether a client still streams.
    pub(super) fn talk(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Finds the sandbox that `reference` names: a name, an id, or a unique prefix of an id. A
    /// damaged sandbox is an error that says so.
    pub(super) fn find(&self, reference: &str) -> Result<Arc<Sandbox>, DaemonError> {
        let all = self.all.lock();
        let by_name = all.values().find(|sandbox| sandbox.record.lock().name == reference);
        if let Some(sandbox) = by_name {
            return Ok(Arc::clone(sandbox));
        }
        let mut fitting = all.values().filter(|sandbox| {
            reference.len() >= ID_PREFIX_MIN && sandbox.id().as_str().starts_with(reference)
        });
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (Some(_), Some(_)) => Err(DaemonError::Request(format!(
                "'{reference}' is the beginning of several sandboxes' ids; give more of it"
            ))),
            (None, _) => Err(match self.damaged_meant(reference) {
                Some(damaged) => damaged.error(),
                None => DaemonError::NoSandbox(reference.to_owned()),
            }),
        }
    }

    /// Returns the name of the sandbox with this id.
    pub(super) fn name(&self, id: &str) -> Option<String> {
        let all = self.all.lock();
        let sandbox = all.get(&id.parse::<SandboxId>().ok()?)?;
        Some(sandbox.record.lock().name.clone())
    }

    /// Lists all sandboxes, oldest first.
    fn list(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.all.lock().values().cloned().collect();
        all.sort_by_key(|sandbox| {
            let record = sandbox.record.lock();
            (record.created_ms, record.id.clone())
        });
        all
    }

    /// Registers a new sandbox. Fails if its name is taken or the limit is reached.
    fn add(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let mut all = self.all.lock();
        if all.len() >= SANDBOXES_MAX {
            return Err(DaemonError::Request(format!(
                "there are {SANDBOXES_MAX} sandboxes, which is as many as there may be; remove some"
            )));
        }
        let name = sandbox.record.lock().name.clone();
        let of_damaged =
            self.damaged.lock().values().any(|other| other.name.as_ref() == Some(&name));
        if of_damaged || all.values().any(|other| other.record.lock().name == name) {
            return Err(DaemonError::NameTaken(name));
        }
        all.insert(sandbox.id().clone(), Arc::clone(sandbox));
        Ok(())
    }

    /// Counts sandboxes by state, as of the last refresh.
    pub(super) fn by_state(&self) -> [(&'static str, usize); 5] {
        let damaged = self.damaged.lock().len();
        let mut states = [
            ("creating", 0),
            ("running", 0),
            ("stopped", 0),
            ("removing", 0),
            ("damaged", damaged),
        ];
        for sandbox in self.all.lock().values() {
            let state = match sandbox.record.lock().phase {
                Phase::Creating => "creating",
                Phase::Running => "running",
                Phase::Stopped { .. } => "stopped",
                Phase::Removing => "removing",
            };
            for (name, number) in &mut states {
                *number += usize::from(*name == state);
            }
        }
        states
    }

    /// Whether a mount is a sandbox's root.
    fn is_root(&self, id: &str, mountpoint: &Path) -> bool {
        let root = |id: SandboxId| Layout::of(&self.state, &id).rootfs();
        id.parse().is_ok_and(|id| root(id) == mountpoint)
    }

    fn forget(&self, id: &SandboxId) {
        self.all.lock().remove(id);
    }
}

/// Runs an injection point, where tests make this process fail.
fn injected(step: Step) -> Result<(), DaemonError> {
    inject::point(step).map_err(DaemonError::io("go on at", step.name().as_ref()))
}

/// Minimum length of an id prefix: `sb-` and one digit.
const ID_PREFIX_MIN: usize = 4;

impl Sandbox {
    fn new(layout: Layout, record: SandboxRecord) -> Arc<Self> {
        let record = Mutex::new(record);
        Arc::new(Self {
            layout,
            record,
            changing: Mutex::default(),
            first: Mutex::default(),
            unconfirmed: AtomicBool::new(false),
            turn: Arc::default(),
            captures: Captures::default(),
            waits: shared_waits::Waits::default(),
        })
    }

    /// Returns a sandbox that counts as unconfirmed.
    fn unconfirmed(layout: Layout, record: SandboxRecord) -> Arc<Self> {
        let sandbox = Self::new(layout, record);
        sandbox.unconfirmed.store(true, Ordering::SeqCst);
        sandbox
    }

    /// The request that creates it has succeeded: it stays.
    fn confirm(&self) {
        self.unconfirmed.store(false, Ordering::SeqCst);
    }

    fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::SeqCst)
    }

    fn id(&self) -> &SandboxId {
        self.layout.id()
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn monitor(&self) -> Monitor {
        Monitor::of(&self.layout)
    }

    fn origin(&self) -> Result<Origin, DaemonError> {
        let store = self.record.lock().store.clone();
        serde_json::from_value(store).map_err(|error| DaemonError::DamagedSandbox {
            id: self.id().clone(),
            why: format!("{}: its store: {error}", self.layout.record().display()),
        })
    }

    /// Returns the first process. Fails if it does not run.
    fn running(&self) -> Result<ProcessId, DaemonError> {
        let first = *self.first.lock();
        let name = || self.record.lock().name.clone();
        first.filter(|first| first.is_alive()).ok_or_else(|| DaemonError::NotRunningSandbox(name()))
    }

    /// Returns the mount namespace view of the first process. Fails if it does not run.
    fn caller(&self) -> Result<Caller, DaemonError> {
        let first = self.running()?;
        let held = self.process()?.filter(|held| held.id() == first);
        let name = || self.record.lock().name.clone();
        held.map(Caller::Process).ok_or_else(|| DaemonError::NotRunningSandbox(name()))
    }

    /// Returns a handle of the first process, safe against reuse of its pid; `None` if it does not
    /// run.
    fn process(&self) -> Result<Option<Process>, DaemonError> {
        let first = *self.first.lock();
        let held = first.map(ProcessId::hold).transpose();
        Ok(held
            .map_err(DaemonError::io("hold the first process of", self.layout.root()))?
            .flatten())
    }

    /// Acquires the turn.
    async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Runs `work` in this sandbox's turn, on a blocking thread. Once begun, the work completes
    /// even if the returned future is dropped.
    pub(super) async fn in_turn<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> Result<T, DaemonError> + Send + 'static,
    ) -> Result<T, DaemonError> {
        let (turn, sandbox) = (self.turn().await, Arc::clone(self));
        let done = spawn_blocking(move || {
            let _turn = turn;
            work(&sandbox)
        });
        done.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Changes the record, durably. If the write fails, the record in memory is unchanged. Blocks.
    fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), DaemonError> {
        self.update_if(|_| true, change)
    }

    /// The same, or nothing if the record does not fit.
    fn update_if(
        &self,
        fits: impl FnOnce(&SandboxRecord) -> bool,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<(), DaemonError> {
        // A disk may take seconds to sync: until then, readers see the record as it was.
        let _changing = self.changing.lock();
        let mut changed = self.record.lock().clone();
        if !fits(&changed) {
            return Ok(());
        }
        change(&mut changed);
        changed.write(&self.layout)?;
        *self.record.lock() = changed;
        Ok(())
    }

    /// Detects that the first process has ended, or that the monitor died. Blocks.
    fn refresh(&self) -> Result<(), DaemonError> {
        if self.record.lock().phase != Phase::Running {
            return Ok(());
        }
        if let Some(exit) = Exit::read(&self.layout)? {
            return self.ended(exit);
        }
        if self.monitor().is_alive()? {
            return Ok(());
        }
        // An operation in progress detects it as well; the next refresh handles the rest.
        let Ok(_turn) = self.turn.try_lock() else { return Ok(()) };
        let now = StopOptions { signal: None, grace: Duration::ZERO };
        let exit = stop(&self.layout, now)?;
        if exit.cause == ExitCause::MonitorLost {
            tracing::warn!(sandbox = %self.id(), "the monitor died; the sandbox is stopped, its changes are kept");
        }
        self.ended(exit)
    }

    /// Records the exit. No-op if it is recorded already or the sandbox is being removed.
    fn ended(&self, exit: Exit) -> Result<(), DaemonError> {
        *self.first.lock() = None;
        let is_running = |record: &SandboxRecord| record.phase == Phase::Running;
        self.update_if(is_running, |record| record.phase = Phase::Stopped { exit })
    }
}

impl Service {
    /// Lists all sandboxes, oldest first; damaged ones last.
    pub(super) async fn sandbox_list(&self) -> Result<Vec<SandboxInfo>, DaemonError> {
        let service = self.clone();
        let listed = spawn_blocking(move || {
            let all = service.sandboxes().list();
            let whole = all.iter().map(|sandbox| service.sandbox_shown(sandbox));
            let damaged = service.sandboxes().damaged();
            whole.chain(damaged.iter().map(|one| Ok(one.info()))).collect()
        });
        listed.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Counts live mounts in sandboxes, excluding roots.
    pub(super) fn mounted_in_sandboxes(&self) -> usize {
        let all = self.mount_table().list();
        let live = all.iter().filter(|record| {
            let owner = record.owner.as_deref();
            owner.is_some_and(|id| !self.sandboxes().is_root(id, &record.mountpoint.to_path()))
        });
        live.count()
    }

    /// Returns one sandbox. For a damaged one, the answer says why nothing else can be done with
    /// it.
    pub(super) async fn sandbox(&self, reference: &str) -> Result<SandboxInfo, DaemonError> {
        let (service, found) = (self.clone(), self.sandboxes().find(reference));
        let damaged = self.sandboxes().damaged_meant(reference);
        let shown = spawn_blocking(move || match (found, damaged) {
            (Err(DaemonError::DamagedSandbox { .. }), Some(one)) => Ok(one.info()),
            (found, _) => service.sandbox_shown(&*found?),
        });
        shown.await.map_err(|_| DaemonError::Panicked)?
    }
}
