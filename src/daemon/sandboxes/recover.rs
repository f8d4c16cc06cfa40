//! The sandboxes of earlier daemons: those that run are taken on, those that are half made or half
//! removed are cleared away.

use std::time::Duration;

use super::mounted::{MountFile, Place, files};
use super::{Sandbox, Service};
use crate::daemon::api::IntoView;
use crate::daemon::error::DaemonError;
use crate::sandbox::{
    Found, Layout, Phase, SandboxId, SandboxOptions, SandboxRecord, StopOptions, attach_disk, list,
    recover, stop,
};

impl Service {
    /// Finds the sandboxes of the state directory. After the mounts were found. Blocks.
    pub(in crate::daemon) fn find_sandboxes(&self) -> Result<(), DaemonError> {
        // What the last daemon has unmounted and not forgotten counts as gone.
        self.mount_table().look();
        for id in list(&self.sandboxes().state)? {
            if let Err(error) = self.take_on(&id) {
                tracing::warn!(%error, sandbox = %id, "a sandbox is left as it is");
            }
        }
        Ok(())
    }

    fn take_on(&self, id: &SandboxId) -> Result<(), DaemonError> {
        let layout = Layout::of(&self.sandboxes().state, id);
        let found = recover(&layout)?;
        let record = match found {
            Found::HalfMade | Found::Removing => None,
            Found::Running(_) | Found::Stopped(_) => SandboxRecord::read(&layout)?,
        };
        let Some(record) = record else {
            tracing::info!(sandbox = %id, "a sandbox that is not whole is cleared away");
            return self.clear_now(&Sandbox::new(layout, unknown(id)));
        };
        let sandbox = Sandbox::new(layout, record);
        match found {
            Found::Running(status) if self.has_root(&sandbox) => {
                self.forget_unmade(&sandbox)?;
                *sandbox.first.lock() = Some(status.init);
            }
            Found::Running(_) => {
                tracing::warn!(sandbox = %id, "a sandbox has lost its root, and is stopped");
                let now = StopOptions { signal: None, grace: Duration::ZERO };
                let exit = stop(sandbox.layout(), now)?;
                sandbox.ended(exit)?;
            }
            Found::Stopped(exit) => {
                // After a restart of the host its changes are not there until this is done.
                let options = sandbox.record.lock().options.clone();
                attach_disk(sandbox.layout(), &options)?;
                sandbox.ended(exit)?;
            }
            Found::HalfMade | Found::Removing => {}
        }
        self.sandboxes().add(&sandbox)
    }

    fn has_root(&self, sandbox: &Sandbox) -> bool {
        let rootfs = sandbox.layout().rootfs();
        let mounts = self.mount_table().owned_by(sandbox.id().as_str());
        mounts.iter().any(|record| record.mountpoint.to_path() == rootfs)
    }

    /// Notices mounts that were noted and never made, and those whose end was not noted.
    fn forget_unmade(&self, sandbox: &Sandbox) -> Result<(), DaemonError> {
        let live = self.live_mounts(sandbox)?;
        for file in files(sandbox.layout())? {
            let is_live = live.iter().any(|(_, other)| other.number == file.number);
            if is_live || file.place == Place::Kept || sandbox.record.lock().phase != Phase::Running
            {
                continue;
            }
            if file.place == Place::Discarded
                || file.view == IntoView::ReadOnly
                || !file.is_changed(sandbox.layout())
            {
                file.remove(sandbox.layout())?;
            } else {
                MountFile { place: Place::Kept, ..file }.write(sandbox.layout())?;
            }
        }
        Ok(())
    }
}

/// A stand-in for a record that is not there, or can't be read.
fn unknown(id: &SandboxId) -> SandboxRecord {
    let nothing = crate::snapshots::empty_id();
    let options = SandboxOptions::default();
    SandboxRecord::new(id.clone(), id.to_string(), nothing, serde_json::Value::Null, options)
}
