//! The end of sandboxes: stopping, waiting for the end, removing.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::{Sandbox, Service, injected};
use crate::daemon::api::{IfRunning, SandboxShown, StopSandbox, StoppedSandbox, WhenEnded};
use crate::daemon::error::DaemonError;
use crate::inject::Step;
use crate::sandbox::{Exit, Phase, StopOptions, reap_monitors, remove, stop};

impl Service {
    /// Ends a sandbox's processes; before that, takes the snapshot that is wanted. If that fails, the
    /// sandbox goes on.
    pub(in crate::daemon) async fn stop_sandbox(
        &self,
        reference: &str,
        request: StopSandbox,
    ) -> Result<StoppedSandbox, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let snapshot = match request.snapshot {
            Some(wanted) => Some(self.take_snapshot_of(&sandbox, wanted).await?),
            None => None,
        };
        let options = StopOptions { signal: None, grace: Duration::from_millis(request.grace_ms) };
        let service = self.clone();
        let shown = sandbox.in_turn(move |sandbox| {
            let _under_way = under_way;
            if sandbox.record.lock().phase == Phase::Running {
                injected(Step::SandboxStopping)?;
                let exit = stop(sandbox.layout(), options)?;
                injected(Step::SandboxProcessesEnded)?;
                sandbox.ended(exit)?;
            }
            service.look();
            service.sandbox_shown(sandbox)
        });
        Ok(StoppedSandbox { sandbox: shown.await?, snapshot })
    }

    /// Removes a sandbox, with all that was changed in it.
    pub(in crate::daemon) async fn remove_sandbox(
        &self,
        reference: &str,
        if_running: IfRunning,
    ) -> Result<SandboxShown, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let under_way = self.under_way().ok_or(DaemonError::Ending)?;
        let shown = self.sandbox(sandbox.id().as_str()).await?;
        if if_running == IfRunning::Refuse && sandbox.running().is_ok() {
            return Err(DaemonError::Runs(shown.name));
        }
        let service = self.clone();
        // Once begun it is done, whoever waits.
        let removal = tokio::spawn(async move {
            let _under_way = under_way;
            service.clear_sandbox(&sandbox).await
        });
        removal.await.map_err(|_| DaemonError::Panicked)??;
        Ok(shown)
    }

    /// Waits at most `limit` for the end of a sandbox's first process.
    pub(in crate::daemon) async fn wait_for_sandbox(
        &self,
        reference: &str,
        limit: Duration,
    ) -> Result<Option<Exit>, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let waited = spawn_blocking(move || {
            sandbox.refresh()?;
            if let Phase::Stopped { exit } = &sandbox.record.lock().phase {
                return Ok(Some(exit.clone()));
            }
            let exit = sandbox.monitor().wait(limit)?;
            if let Some(exit) = &exit {
                sandbox.ended(exit.clone())?;
            }
            Ok(exit)
        });
        waited.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Clears away all that there is of a sandbox, however far it was made, when it is its turn.
    pub(super) async fn clear_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), DaemonError> {
        let service = self.clone();
        let cleared = sandbox.in_turn(move |sandbox| service.clear_now(sandbox)).await;
        if cleared.is_ok() {
            self.sandboxes().forget(sandbox.id());
        }
        cleared
    }

    /// The same, now. Blocks.
    pub(super) fn clear_now(&self, sandbox: &Sandbox) -> Result<(), DaemonError> {
        if sandbox.layout().record().exists() {
            sandbox.update(|record| record.phase = Phase::Removing)?;
        }
        injected(Step::SandboxRemovalNoted)?;
        *sandbox.first.lock() = None;
        let ended = stop(sandbox.layout(), StopOptions { signal: None, grace: Duration::ZERO });
        if let Err(error) = ended {
            // It may never have run. What does run is ended when the rest is removed.
            tracing::debug!(%error, sandbox = %sandbox.id(), "a sandbox's processes");
        }
        injected(Step::SandboxRemovalEnded)?;
        self.mount_table().end_owned_by(sandbox.id().as_str())?;
        self.look();
        injected(Step::SandboxRemovalUnmounted)?;
        remove(sandbox.layout())?;
        self.look();
        Ok(())
    }

    /// Ends all sandboxes that run, keeping what was changed in them. Blocks.
    pub(in crate::daemon) fn stop_all_sandboxes(&self) {
        for sandbox in self.sandboxes().list() {
            let _turn = sandbox.turn.blocking_lock();
            if sandbox.running().is_err() {
                continue;
            }
            let exit = stop(sandbox.layout(), StopOptions::default()).map_err(DaemonError::from);
            if let Err(error) = exit.and_then(|exit| sandbox.ended(exit)) {
                tracing::warn!(%error, sandbox = %sandbox.id(), "a sandbox goes on");
            }
        }
    }

    /// The names of those that run.
    pub(in crate::daemon) fn running_sandboxes(&self) -> Vec<String> {
        let all = self.sandboxes().list();
        let running = all.iter().filter(|sandbox| sandbox.running().is_ok());
        running.map(|sandbox| sandbox.record.lock().name.clone()).collect()
    }

    /// Notices which have ended, and removes those of them that were wanted only until then. Blocks.
    pub(in crate::daemon) fn look_at_sandboxes(&self) {
        reap_monitors();
        for sandbox in self.sandboxes().list() {
            if let Err(error) = sandbox.refresh() {
                tracing::warn!(%error, sandbox = %sandbox.id(), "can't tell whether a sandbox runs");
                continue;
            }
            let stopped = matches!(sandbox.record.lock().phase, Phase::Stopped { .. });
            let wanted = sandbox.origin().is_ok_and(|origin| origin.when_ended == WhenEnded::Keep);
            if !stopped || wanted {
                continue;
            }
            let Ok(_turn) = sandbox.turn.try_lock() else { continue };
            match self.clear_now(&sandbox) {
                Ok(()) => self.sandboxes().forget(sandbox.id()),
                Err(error) => {
                    tracing::warn!(%error, sandbox = %sandbox.id(), "a sandbox is not removed");
                }
            }
        }
    }
}
