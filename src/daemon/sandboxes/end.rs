//! Stops, awaits and removes sandboxes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_base::inject::Step;
use inlay_sandbox::{Exit, Phase, StopOptions, reap_monitors, remove, stop};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;

use super::damaged::DamagedSandbox;
use super::{Sandbox, Service, injected};
use crate::daemon::api::{IfRunning, SandboxInfo, StopSandbox, StoppedSandbox, WhenEnded};
use crate::daemon::error::DaemonError;
use crate::daemon::lifecycle::InFlight;

/// Concurrent stops when all sandboxes are stopped.
const STOPS_AT_ONCE: usize = 128;
/// Grace period of programs when all sandboxes are stopped; then they are killed.
const GRACE_OF_ALL: Duration = Duration::from_secs(10);
/// Minimum grace period for a sandbox that is stopped late.
const GRACE_MIN: Duration = Duration::from_secs(1);
/// Deadline for stopping all sandboxes.
const STOP_ALL_WITHIN: Duration = Duration::from_secs(45);

/// Stops a sandbox if it runs; its programs are killed at `kill_at`.
fn stop_if_it_runs(sandbox: &Arc<Sandbox>, kill_at: Instant) -> Result<(), DaemonError> {
    if sandbox.running().is_err() {
        return Ok(());
    }
    let grace = kill_at.saturating_duration_since(Instant::now()).max(GRACE_MIN);
    let exit = stop(sandbox.layout(), StopOptions { signal: None, grace })?;
    sandbox.ended(exit)
}

impl Sandbox {
    /// Runs `inspect` on this sandbox, on a blocking thread.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        inspect: impl FnOnce(&Self) -> Result<T, DaemonError> + Send + 'static,
    ) -> Result<T, DaemonError> {
        let sandbox = Arc::clone(self);
        let inspected = spawn_blocking(move || inspect(&sandbox));
        inspected.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Returns the exit of the first process, if it has ended. Blocks.
    fn exit_recorded(&self) -> Result<Option<Exit>, DaemonError> {
        self.refresh()?;
        match &self.record.lock().phase {
            Phase::Stopped { exit } => Ok(Some(exit.clone())),
            _ => Ok(None),
        }
    }
}

impl Service {
    /// Stops a sandbox's processes, after taking the requested snapshot, if any. If the snapshot
    /// fails, the sandbox keeps running.
    pub(in crate::daemon) async fn stop_sandbox(
        &self,
        reference: &str,
        request: StopSandbox,
    ) -> Result<StoppedSandbox, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let in_flight = self.lifecycle().admit()?;
        let snapshot = match request.snapshot {
            Some(wanted) => Some(self.take_snapshot_of(&sandbox, wanted).await?),
            None => None,
        };
        let options = StopOptions { signal: None, grace: Duration::from_millis(request.grace_ms) };
        let service = self.clone();
        let shown = sandbox.in_turn(move |sandbox| {
            let _in_flight = in_flight;
            if sandbox.record.lock().phase == Phase::Running {
                injected(Step::SandboxStopping)?;
                let exit = stop(sandbox.layout(), options)?;
                injected(Step::SandboxProcessesEnded)?;
                sandbox.ended(exit)?;
            }
            service.sweep();
            service.sandbox_shown(sandbox)
        });
        Ok(StoppedSandbox { sandbox: shown.await?, snapshot })
    }

    /// Removes a sandbox with its changes. Cancels snapshots of it in flight.
    pub(in crate::daemon) async fn remove_sandbox(
        &self,
        reference: &str,
        if_running: IfRunning,
    ) -> Result<SandboxInfo, DaemonError> {
        let in_flight = self.lifecycle().admit()?;
        if let Some(damaged) = self.sandboxes().damaged_with_id(reference) {
            return self.remove_damaged(damaged, if_running, in_flight).await;
        }
        let sandbox = self.sandboxes().find(reference)?;
        let shown = self.sandbox(sandbox.id().as_str()).await?;
        if if_running == IfRunning::Refuse && sandbox.running().is_ok() {
            return Err(DaemonError::Runs(shown.name));
        }
        let service = self.clone();
        // Once begun, the removal completes even if its caller is gone.
        let removal = tokio::spawn(async move {
            let _in_flight = in_flight;
            service.clear_sandbox(&sandbox).await
        });
        removal.await.map_err(|_| DaemonError::Panicked)??;
        Ok(shown)
    }

    /// Removes a damaged sandbox and everything in it; requires force.
    async fn remove_damaged(
        &self,
        damaged: DamagedSandbox,
        if_running: IfRunning,
        in_flight: InFlight,
    ) -> Result<SandboxInfo, DaemonError> {
        if if_running == IfRunning::Refuse {
            return Err(damaged.error());
        }
        let service = self.clone();
        let removal = tokio::spawn(async move {
            let _in_flight = in_flight;
            let one = damaged.clone();
            let given_up = spawn_blocking(move || {
                let info = one.info();
                Ok::<_, DaemonError>((info, one.given_up()?))
            });
            let (shown, sandbox) = given_up.await.map_err(|_| DaemonError::Panicked)??;
            service.clear_sandbox(&sandbox).await?;
            service.sandboxes().forget_damaged(damaged.id());
            Ok(shown)
        });
        removal.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Waits at most `limit` for the end of a sandbox's first process.
    pub(in crate::daemon) async fn wait_for_sandbox(
        &self,
        reference: &str,
        limit: Duration,
    ) -> Result<Option<Exit>, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        if let Some(exit) = sandbox.blocking(Sandbox::exit_recorded).await? {
            return Ok(Some(exit));
        }
        let Ok(exit) = timeout(limit, sandbox.exit()).await else { return Ok(None) };
        let exit = exit?;
        let noted = exit.clone();
        sandbox.blocking(move |sandbox| sandbox.ended(noted)).await?;
        Ok(Some(exit))
    }

    /// Removes everything of a sandbox, in its turn and in any state.
    pub(super) async fn clear_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let service = self.clone();
        let cleared = sandbox.in_turn(move |sandbox| service.clear_now(sandbox)).await;
        if cleared.is_ok() {
            self.sandboxes().forget(sandbox.id());
        }
        cleared
    }

    /// Same as [`Self::clear_sandbox`], for a caller that holds the turn. Blocks.
    pub(super) fn clear_now(&self, sandbox: &Sandbox) -> Result<(), DaemonError> {
        if sandbox.layout().record().exists() {
            sandbox.update(|record| record.phase = Phase::Removing)?;
        }
        injected(Step::SandboxRemovalNoted)?;
        sandbox.cancel_captures();
        *sandbox.first.lock() = None;
        let ended = stop(sandbox.layout(), StopOptions { signal: None, grace: Duration::ZERO });
        if let Err(error) = ended {
            // It may never have run. Anything that does run is killed when the rest is removed.
            tracing::debug!(%error, sandbox = %sandbox.id(), "a sandbox's processes");
        }
        injected(Step::SandboxRemovalEnded)?;
        self.mount_table().end_owned_by(sandbox.id().as_str())?;
        self.sweep();
        injected(Step::SandboxRemovalUnmounted)?;
        remove(sandbox.layout())?;
        self.sweep();
        Ok(())
    }

    /// Stops all running sandboxes and keeps their changes: several concurrently, within
    /// [`STOP_ALL_WITHIN`]. Fails with the names of those that still run.
    pub(in crate::daemon) async fn stop_all_sandboxes(&self) -> Result<(), DaemonError> {
        let turns = Arc::new(Semaphore::new(STOPS_AT_ONCE));
        let kill_at = Instant::now() + GRACE_OF_ALL;
        let mut stops = JoinSet::new();
        for sandbox in self.sandboxes().list() {
            let turns = Arc::clone(&turns);
            stops.spawn(async move {
                let _turn = turns.acquire_owned().await.ok();
                let stop = move |sandbox: &Arc<Sandbox>| stop_if_it_runs(sandbox, kill_at);
                if let Err(error) = sandbox.in_turn(stop).await {
                    tracing::warn!(%error, sandbox = %sandbox.id(), "can't stop a sandbox");
                }
            });
        }
        for damaged in self.sandboxes().damaged() {
            let turns = Arc::clone(&turns);
            stops.spawn(async move {
                let _turn = turns.acquire_owned().await.ok();
                // Ending its processes neither needs nor changes a record.
                let ended = spawn_blocking(move || {
                    if damaged.runs()
                        && let Err(error) = stop(&damaged.layout, StopOptions::default())
                    {
                        tracing::warn!(%error, sandbox = %damaged.id(), "can't stop a damaged sandbox");
                    }
                });
                // A panic leaves it running, which the check below reports.
                ended.await.ok();
            });
        }
        let all = async { while stops.join_next().await.is_some() {} };
        if timeout(STOP_ALL_WITHIN, all).await.is_err() {
            tracing::warn!("sandboxes are not stopped after {STOP_ALL_WITHIN:?}");
        }
        let service = self.clone();
        let left = spawn_blocking(move || service.running_sandboxes());
        let left = left.await.map_err(|_| DaemonError::Panicked)?;
        if left.is_empty() { Ok(()) } else { Err(DaemonError::SandboxesStay(left)) }
    }

    /// Returns the names of running sandboxes, including damaged ones, for which it blocks.
    pub(in crate::daemon) fn running_sandboxes(&self) -> Vec<String> {
        let all = self.sandboxes().list();
        let running = all.iter().filter(|sandbox| sandbox.running().is_ok());
        let names = running.map(|sandbox| sandbox.record.lock().name.clone());
        let damaged = self.sandboxes().damaged().into_iter().filter(DamagedSandbox::runs);
        names.chain(damaged.map(|one| one.id().to_string())).collect()
    }

    /// Detects which sandboxes have ended, and removes those with [`WhenEnded::Remove`]. Blocks.
    pub(in crate::daemon) fn look_at_sandboxes(&self) {
        reap_monitors();
        for sandbox in self.sandboxes().list() {
            if let Err(error) = sandbox.refresh() {
                tracing::warn!(%error, sandbox = %sandbox.id(), "can't tell whether a sandbox runs");
                continue;
            }
            let stopped = matches!(sandbox.record.lock().phase, Phase::Stopped { .. });
            let wanted = sandbox.origin().is_ok_and(|origin| origin.when_ended == WhenEnded::Keep);
            // A captured sandbox stays until its snapshot is taken.
            if !stopped || wanted || sandbox.is_captured() {
                continue;
            }
            let Ok(_turn) = sandbox.turn.try_lock() else { continue };
            match self.clear_now(&sandbox) {
                Ok(()) => self.sandboxes().forget(sandbox.id()),
                Err(error) => {
                    tracing::warn!(%error, sandbox = %sandbox.id(), "can't remove a sandbox");
                }
            }
        }
    }
}
