//! A sandbox as clients see it.

use super::{Sandbox, Service};
use crate::daemon::api::{MountedIn, SandboxShown, SandboxState};
use crate::daemon::error::DaemonError;
use crate::sandbox::Phase;

impl Service {
    /// Looks at a sandbox. Blocks.
    pub(super) fn sandbox_shown(&self, sandbox: &Sandbox) -> Result<SandboxShown, DaemonError> {
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
        Ok(SandboxShown {
            id: record.id.clone(),
            name: record.name.clone(),
            snapshot: record.snapshot,
            image: origin.image,
            state,
            pid: (*sandbox.first.lock()).map(|first| first.pid),
            exit,
            created_ms: record.created_ms,
            options: record.options.clone(),
            mounts,
        })
    }
}
