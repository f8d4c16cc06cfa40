//! Recovers the sandboxes of earlier daemons: adopts running ones, cleans up half-created and
//! half-removed ones, and leaves those with damaged records in place.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use inlay_base::mountinfo::{self, MountLine};
use inlay_mounts::{MountRecord, PathText, ProcessId};
use inlay_sandbox::{
    Found, Layout, Phase, SandboxError, SandboxRecord, StopOptions, attach_disk, has_root_mount,
    list, recover, stop,
};

use super::damaged::{DamagedSandbox, unknown};
use super::mounted::{MountFile, MountFileState, damage, files};
use super::{Sandbox, Service};
use crate::daemon::api::IntoView;
use crate::daemon::error::DaemonError;

impl Service {
    /// Recovers the sandboxes of the state directory. Called after the mounts were recovered.
    /// Blocks.
    pub(in crate::daemon) fn find_sandboxes(&self) -> Result<(), DaemonError> {
        // Mounts that the last daemon unmounted without removing their records count as gone.
        self.mount_table().sweep();
        for id in list(&self.sandboxes().state)? {
            let layout = Layout::of(&self.sandboxes().state, &id);
            let why = match self.take_on(&layout) {
                Ok(Taken::On) => continue,
                Ok(Taken::Damaged(why)) => why,
                // Every step so far is idempotent: the next daemon can repeat it.
                Err(error) => error.to_string(),
            };
            self.sandboxes().add_damaged(DamagedSandbox::new(layout, why));
        }
        Ok(())
    }

    fn take_on(&self, layout: &Layout) -> Result<Taken, DaemonError> {
        let id = layout.id();
        // Checked first, because recovery ends sandboxes without a monitor.
        if let Some(why) = damage_of_daemon(layout)? {
            return Ok(Taken::Damaged(why));
        }
        let found = recover(layout)?;
        let record = match &found {
            Found::Damaged(why) => return Ok(Taken::Damaged(why.clone())),
            Found::HalfMade | Found::Removing => None,
            Found::Running(_) | Found::Stopped(_) => SandboxRecord::read(layout)?,
        };
        let Some(record) = record else {
            tracing::info!(sandbox = %id, "removing an incomplete sandbox");
            self.clear_now(&Sandbox::new(layout.clone(), unknown(id)))?;
            return Ok(Taken::On);
        };
        let sandbox = Sandbox::new(layout.clone(), record);
        match found {
            Found::Running(status) if self.has_root(&sandbox) => {
                if let Some(path) = self.mount_without_record(&sandbox, status.init)? {
                    let path = path.to_path();
                    let why = format!("the record of its mount on {} is damaged", path.display());
                    return Ok(Taken::Damaged(why));
                }
                self.forget_discarded(&sandbox)?;
                self.note_unmounted(&sandbox)?;
                *sandbox.first.lock() = Some(status.init);
            }
            Found::Running(_) if has_root_mount(layout)? => {
                let why = "the record of its root's mount is missing or damaged".to_owned();
                return Ok(Taken::Damaged(why));
            }
            Found::Running(_) => {
                tracing::warn!(sandbox = %id, "stopping a sandbox that has lost its root");
                let now = StopOptions { signal: None, grace: Duration::ZERO };
                let exit = stop(sandbox.layout(), now)?;
                sandbox.ended(exit)?;
            }
            Found::Stopped(exit) => {
                // After a reboot, its changes are inaccessible until its disk is attached.
                let options = sandbox.record.lock().options.clone();
                attach_disk(sandbox.layout(), &options)?;
                sandbox.ended(exit)?;
            }
            Found::HalfMade | Found::Removing | Found::Damaged(_) => {}
        }
        self.sandboxes().add(&sandbox)?;
        Ok(Taken::On)
    }

    /// Returns the path of a live mount in a sandbox whose host record may be among the damaged
    /// ones. `init` is the sandbox's first process.
    fn mount_without_record(
        &self,
        sandbox: &Sandbox,
        init: ProcessId,
    ) -> Result<Option<PathText>, DaemonError> {
        if self.mount_table().damaged().is_empty() {
            return Ok(None);
        }
        let live = self.live_mounts(sandbox)?;
        let files = files(sandbox.layout())?.into_iter();
        let mut missing = files.filter(|file| {
            matches!(file.place, MountFileState::Making | MountFileState::Mounted)
                && !live.iter().any(|(_, other)| other.number == file.number)
        });
        let Some(file) = missing.next() else { return Ok(None) };
        // A mount that the last daemon did not complete has no record either.
        Ok(has_other_mounts(init, &live)?.then_some(file.path))
    }

    fn has_root(&self, sandbox: &Sandbox) -> bool {
        let rootfs = sandbox.layout().rootfs();
        let mounts = self.mount_table().owned_by(sandbox.id().as_str());
        mounts.iter().any(|record| record.mountpoint.to_path() == rootfs)
    }

    /// Removes changes that an earlier daemon discarded but did not remove. A mount that it had not
    /// unmounted yet keeps its changes.
    fn forget_discarded(&self, sandbox: &Sandbox) -> Result<(), DaemonError> {
        let live = self.live_mounts(sandbox)?;
        for file in files(sandbox.layout())? {
            if file.place != MountFileState::Discarded {
                continue;
            }
            if live.iter().any(|(_, other)| other.number == file.number) {
                MountFile { place: MountFileState::Mounted, ..file }.write(sandbox.layout())?;
            } else {
                file.remove(sandbox.layout())?;
            }
        }
        Ok(())
    }

    /// Keeps the changes of mounts that ended without an explicit unmount, and forgets mounts
    /// without changes and mounts that were never completed. Called in the turn of a running
    /// sandbox. Blocks.
    pub(super) fn note_unmounted(&self, sandbox: &Sandbox) -> Result<(), DaemonError> {
        let live = self.live_mounts(sandbox)?;
        for file in files(sandbox.layout())? {
            if !matches!(file.place, MountFileState::Making | MountFileState::Mounted)
                || live.iter().any(|(_, other)| other.number == file.number)
            {
                continue;
            }
            if file.view == IntoView::Writable && file.is_changed(sandbox.layout()) {
                MountFile { place: MountFileState::Kept, ..file }.write(sandbox.layout())?;
            } else {
                sandbox.forget_mount(&file)?;
            }
        }
        Ok(())
    }
}

/// Reports whether the sandbox's first process sees a mount of a kind that inlay makes which is
/// neither its root nor in `live`.
fn has_other_mounts(
    init: ProcessId,
    live: &[(MountRecord, MountFile)],
) -> Result<bool, DaemonError> {
    let mut known = HashSet::new();
    for (record, _) in live {
        known.extend(record.seen.now()?.map(|now| now.id));
    }
    let path = PathBuf::from(format!("/proc/{}/mountinfo", init.pid));
    let table = fs::read(&path).map_err(DaemonError::io("read", &path))?;
    let lines = mountinfo::parse(&table);
    let is_root = |line: &MountLine| !lines.iter().any(|other| other.id == line.parent);
    Ok(lines.iter().any(|line| {
        (line.kind == "overlay" || line.kind.starts_with("fuse"))
            && !known.contains(&line.id)
            && !is_root(line)
    }))
}

/// Outcome for a recovered sandbox.
enum Taken {
    /// Adopted, or cleaned up.
    On,
    /// Left in place, for this reason.
    Damaged(String),
}

/// Returns why a sandbox can't be used, judging by its own record and the daemon's records of its
/// mounts.
fn damage_of_daemon(layout: &Layout) -> Result<Option<String>, DaemonError> {
    let record = match SandboxRecord::read(layout) {
        Ok(Some(record)) => record,
        // Missing or damaged: the next step handles it.
        Ok(None) | Err(SandboxError::Record(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if matches!(record.phase, Phase::Creating | Phase::Removing) {
        return Ok(None);
    }
    let sandbox = Sandbox::new(layout.clone(), record);
    if let Err(DaemonError::DamagedSandbox { why, .. }) = sandbox.origin() {
        return Ok(Some(why));
    }
    damage(layout)
}
