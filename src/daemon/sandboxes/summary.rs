//! Converts sandboxes to their wire type.

use inlay_sandbox::{Phase, SandboxError};

use super::damaged::DamagedSandbox;
use super::{Sandbox, Service};
use crate::daemon::api::{MountedIn, SandboxInfo, SandboxState};
use crate::daemon::error::DaemonError;

impl Service {
    /// Returns a sandbox's current state. Blocks.
    pub(super) fn sandbox_shown(&self, sandbox: &Sandbox) -> Result<SandboxInfo, DaemonError> {
        match self.shown_whole(sandbox) {
            // A record was damaged while this daemon ran.
            Err(
                error @ (DaemonError::Record(_)
                | DaemonError::DamagedSandbox { .. }
                | DaemonError::Sandbox(SandboxError::Record(_))),
            ) => {
                let damaged = DamagedSandbox {
                    layout: sandbox.layout().clone(),
                    name: Some(sandbox.record.lock().name.clone()),
                    why: match error {
                        DaemonError::DamagedSandbox { why, .. } => why,
                        other => other.to_string(),
                    },
                };
                Ok(damaged.info())
            }
            other => other,
        }
    }

    fn shown_whole(&self, sandbox: &Sandbox) -> Result<SandboxInfo, DaemonError> {
        sandbox.refresh()?;
        let mounts = self.live_mounts(sandbox)?.into_iter().map(|(_, file)| MountedIn {
            path: file.path,
            snapshot: file.snapshot,
            view: file.view,
        });
        let mounts = mounts.collect();
        let origin = sandbox.origin()?;
        let record = sandbox.record.lock();
        let (state, exit) = match &record.phase {
            Phase::Creating => (SandboxState::Creating, None),
            Phase::Running => (SandboxState::Running, None),
            Phase::Stopped { exit } => (SandboxState::Stopped, Some(exit.clone())),
            Phase::Removing => (SandboxState::Removing, None),
        };
        Ok(SandboxInfo {
            id: record.id.clone(),
            name: record.name.clone(),
            snapshot: Some(record.snapshot),
            image: Some(origin.image),
            state,
            damage: None,
            pid: (*sandbox.first.lock()).map(|first| first.pid),
            exit,
            created_ms: Some(record.created_ms),
            options: Some(record.options.clone()),
            confinement: record.bundle.as_ref().and_then(|bundle| bundle.confinement.clone()),
            mounts,
        })
    }
}

impl DamagedSandbox {
    /// Returns a damaged sandbox's current state. Blocks.
    pub(super) fn info(&self) -> SandboxInfo {
        let status = self.monitor_status();
        SandboxInfo {
            id: self.id().clone(),
            name: self.name.clone().unwrap_or_else(|| self.id().to_string()),
            snapshot: None,
            image: None,
            state: SandboxState::Damaged,
            damage: Some(self.error().to_string()),
            pid: status.filter(|status| status.exit.is_none()).map(|status| status.init.pid),
            exit: None,
            created_ms: None,
            options: None,
            confinement: None,
            mounts: Vec::new(),
        }
    }
}
