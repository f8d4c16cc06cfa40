//! The paths of one sandbox's files.

use std::path::{Path, PathBuf};

use super::id::SandboxId;

/// The paths of one sandbox, below `STATE/sandboxes/ID`, a directory of mode 0700.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    id: SandboxId,
    root: PathBuf,
}

impl Layout {
    /// Returns the layout of the sandbox `id` in the state directory `state`, an absolute path.
    pub fn of(state: &Path, id: &SandboxId) -> Self {
        Self { id: id.clone(), root: Self::parent(state).join(id.as_str()) }
    }

    /// The directory that holds all sandboxes of a state directory.
    pub fn parent(state: &Path) -> PathBuf {
        state.join("sandboxes")
    }

    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        // `root` is `state` with two components appended.
        self.root.parent().and_then(Path::parent).unwrap_or(&self.root)
    }

    /// The sandbox's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The sandbox's record ([`super::SandboxRecord`]).
    pub fn record(&self) -> PathBuf {
        self.root.join("sandbox.json")
    }

    /// The mount point of the root overlay. The caller mounts it.
    pub fn rootfs(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// The upper directory of the root overlay (an `UpperPlace::Kept`); with a disk limit, a
    /// mounted filesystem.
    pub fn rw(&self) -> PathBuf {
        self.root.join("rw")
    }

    /// The filesystem image mounted at [`Layout::rw`] if the disk is limited.
    pub fn disk_image(&self) -> PathBuf {
        self.root.join("disk.img")
    }

    /// The sandbox's own files for `/etc`. They count towards the disk limit, if any.
    pub fn names(&self) -> PathBuf {
        self.rw().join("etc")
    }

    /// The records of live mounts; [`Layout::mount_upper`] has their upper directories.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// The upper directory of live mount `number` (an `UpperPlace::Kept`): on the limited disk, if
    /// any. Earlier versions kept it beside the records even then; an existing one is still used.
    pub fn mount_upper(&self, number: u32) -> PathBuf {
        let beside = self.mounts().join(number.to_string());
        if !self.disk_image().exists() || beside.exists() {
            return beside;
        }
        self.rw().join("live").join(number.to_string())
    }

    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.root.join("bundle")
    }

    /// The runtime's configuration of the container.
    pub fn config(&self) -> PathBuf {
        self.bundle().join("config.json")
    }

    /// A tmpfs with one file per secret.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Small files to bind-mount into the sandbox's /dev.
    pub fn dev_files(&self) -> PathBuf {
        self.root.join("shown")
    }

    /// The log of the first process's output.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The record of how the first process ended ([`super::Exit`]).
    pub fn exit(&self) -> PathBuf {
        self.root.join("exit.json")
    }

    /// The Unix socket on which the monitor listens.
    pub fn monitor_socket(&self) -> PathBuf {
        self.root.join("monitor.sock")
    }

    /// The monitor's lock file, locked while it is alive.
    pub fn monitor_lock(&self) -> PathBuf {
        self.root.join("monitor.lock")
    }

    /// The monitor's record.
    pub fn monitor_record(&self) -> PathBuf {
        self.root.join("monitor.json")
    }

    /// The log of the monitor and the runtime.
    pub fn monitor_log(&self) -> PathBuf {
        self.root.join("monitor.log")
    }

    /// The runtime's state directory (`--root`).
    pub fn runtime_root(&self) -> PathBuf {
        self.root.join("runtime")
    }

    /// The pid of the container's first process, written by the runtime.
    pub fn pid_file(&self) -> PathBuf {
        self.root.join("pid")
    }

    /// The container's cgroup: a path below the root of each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/inlay/{}", self.id)
    }
}
