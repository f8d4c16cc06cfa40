//! The sandboxes of a daemon: which there are, and what is done with each.
//!
//! What belongs to one sandbox is done in turns. Whoever has the turn has it until the work is done,
//! even if whoever wanted it is gone: so clearing up after a request that was given up begins when
//! nothing of it is under way any more.

mod capture;
mod create;
mod end;
mod live;
mod mounted;
mod plan;
mod recover;
mod shown;
mod streams;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio_util::task::TaskTracker;

pub(super) use streams::{LogWanted, Pieces};

use super::api::{CacheUse, SandboxShown, StoreRef};
use super::error::DaemonError;
use super::service::Service;
use crate::inject::{self, Step};
use crate::mount::{Caller, ProcessId};
use crate::sandbox::{Exit, Layout, Monitor, Phase, SandboxId, SandboxRecord};

/// How many there may be.
const SANDBOXES_MAX: usize = 4096;

/// All sandboxes of a state directory.
pub(super) struct Sandboxes {
    state: PathBuf,
    /// The words that make this program a monitor, without the sandbox.
    monitor: Vec<OsString>,
    all: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    /// What goes on for clients.
    streams: TaskTracker,
}

/// A sandbox.
pub(super) struct Sandbox {
    layout: Layout,
    record: Mutex<SandboxRecord>,
    /// Its first process, while it runs.
    first: Mutex<Option<ProcessId>>,
    turn: Arc<AsyncMutex<()>>,
}

/// Where a sandbox's root comes from, as its record remembers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Origin {
    store: StoreRef,
    cache: CacheUse,
    /// What the user called the snapshot.
    image: String,
    /// What is done when its first process has ended.
    #[serde(default)]
    when_ended: super::api::WhenEnded,
}

impl Sandboxes {
    pub(super) fn new(state: &Path, monitor: Vec<OsString>) -> Self {
        Self {
            state: state.to_owned(),
            monitor,
            all: Mutex::default(),
            streams: TaskTracker::new(),
        }
    }

    /// Whether a client still reads or sends something.
    pub(super) fn talk(&self) -> bool {
        !self.streams.is_empty()
    }

    /// The sandbox that `reference` means: a name, an id, or the beginning of an id.
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
            (None, _) => Err(DaemonError::NoSandbox(reference.to_owned())),
        }
    }

    /// The name of the sandbox with this id.
    pub(super) fn name(&self, id: &str) -> Option<String> {
        let all = self.all.lock();
        let sandbox = all.get(&id.parse::<SandboxId>().ok()?)?;
        Some(sandbox.record.lock().name.clone())
    }

    /// All, the oldest first.
    fn list(&self) -> Vec<Arc<Sandbox>> {
        let mut all: Vec<_> = self.all.lock().values().cloned().collect();
        all.sort_by_key(|sandbox| {
            let record = sandbox.record.lock();
            (record.created_ms, record.id.clone())
        });
        all
    }

    /// Takes a new sandbox in, unless its name is taken.
    fn add(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let mut all = self.all.lock();
        if all.len() >= SANDBOXES_MAX {
            return Err(DaemonError::Request(format!(
                "there are {SANDBOXES_MAX} sandboxes, which is as many as there may be; remove some"
            )));
        }
        let name = sandbox.record.lock().name.clone();
        if all.values().any(|other| other.record.lock().name == name) {
            return Err(DaemonError::NameTaken(name));
        }
        all.insert(sandbox.id().clone(), Arc::clone(sandbox));
        Ok(())
    }

    /// How many are in each state, as far as was noticed.
    pub(super) fn by_state(&self) -> [(&'static str, usize); 4] {
        let mut states = [("creating", 0), ("running", 0), ("stopped", 0), ("removing", 0)];
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

/// Where tests have this process fail.
fn injected(step: Step) -> Result<(), DaemonError> {
    inject::point(step).map_err(DaemonError::io("go on at", step.name().as_ref()))
}

/// The shortest beginning of an id that is looked for: `sb-` and one digit.
const ID_PREFIX_MIN: usize = 4;

impl Sandbox {
    fn new(layout: Layout, record: SandboxRecord) -> Arc<Self> {
        let record = Mutex::new(record);
        Arc::new(Self { layout, record, first: Mutex::default(), turn: Arc::default() })
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
        serde_json::from_value(store).map_err(|error| {
            let id = self.id();
            DaemonError::Request(format!("the record of the sandbox {id} is damaged: {error}"))
        })
    }

    /// Its first process, if it runs.
    fn running(&self) -> Result<ProcessId, DaemonError> {
        let first = *self.first.lock();
        let name = || self.record.lock().name.clone();
        first.filter(|first| first.is_alive()).ok_or_else(|| DaemonError::NotRunningSandbox(name()))
    }

    /// The sandbox's own view, if it runs.
    fn caller(&self) -> Result<Caller, DaemonError> {
        let first = self.running()?;
        let pid = i32::try_from(first.pid).ok().and_then(rustix::process::Pid::from_raw);
        pid.map(Caller::Process).ok_or(DaemonError::Panicked)
    }

    /// The turn, when whoever has it is done.
    async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Does `work` in this sandbox's turn, on a thread that may block. What was begun is done to its
    /// end, even if nobody waits for it any more.
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

    /// Changes the record, durably.
    fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), DaemonError> {
        let mut record = self.record.lock();
        let mut changed = record.clone();
        change(&mut changed);
        changed.write(&self.layout)?;
        *record = changed;
        Ok(())
    }

    /// Notices that the first process has ended, if it has. Blocks.
    fn refresh(&self) -> Result<(), DaemonError> {
        if self.record.lock().phase != Phase::Running {
            return Ok(());
        }
        if let Some(exit) = Exit::read(&self.layout)? {
            self.ended(exit)?;
        }
        Ok(())
    }

    fn ended(&self, exit: Exit) -> Result<(), DaemonError> {
        *self.first.lock() = None;
        self.update(|record| {
            if record.phase == Phase::Running {
                record.phase = Phase::Stopped { exit };
            }
        })
    }
}

impl Service {
    /// All sandboxes, the oldest first.
    pub(super) async fn sandbox_list(&self) -> Result<Vec<SandboxShown>, DaemonError> {
        let service = self.clone();
        let listed = spawn_blocking(move || {
            let all = service.sandboxes().list();
            all.iter().map(|sandbox| service.sandbox_shown(sandbox)).collect()
        });
        listed.await.map_err(|_| DaemonError::Panicked)?
    }

    /// How many mounts there are in sandboxes, their roots not counted.
    pub(super) fn mounted_in_sandboxes(&self) -> usize {
        let all = self.mount_table().list();
        let live = all.iter().filter(|record| {
            let owner = record.owner.as_deref();
            owner.is_some_and(|id| !self.sandboxes().is_root(id, &record.mountpoint.to_path()))
        });
        live.count()
    }

    /// One sandbox.
    pub(super) async fn sandbox(&self, reference: &str) -> Result<SandboxShown, DaemonError> {
        let (service, sandbox) = (self.clone(), self.sandboxes().find(reference)?);
        let shown = spawn_blocking(move || service.sandbox_shown(&sandbox));
        shown.await.map_err(|_| DaemonError::Panicked)?
    }
}
