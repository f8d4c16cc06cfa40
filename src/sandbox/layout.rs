//! Where the things of one sandbox are.

use std::path::{Path, PathBuf};

use super::id::SandboxId;

/// The places of one sandbox, below `STATE/sandboxes/ID`, which is for its owner alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    id: SandboxId,
    root: PathBuf,
}

impl Layout {
    /// Those of the sandbox `id` in the state directory `state`, an absolute path.
    pub fn of(state: &Path, id: &SandboxId) -> Self {
        Self { id: id.clone(), root: Self::parent(state).join(id.as_str()) }
    }

    /// The directory that holds all sandboxes of a state.
    pub fn parent(state: &Path) -> PathBuf {
        state.join("sandboxes")
    }

    /// Whose places these are.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// The sandbox's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The record.
    pub fn record(&self) -> PathBuf {
        self.root.join("sandbox.json")
    }

    /// Where the root overlay is mounted, by the caller.
    pub fn rootfs(&self) -> PathBuf {
        self.root.join("rootfs")
    }

    /// The changes of the root overlay (an `UpperPlace::Kept`); with a disk limit, a filesystem of
    /// its own.
    pub fn rw(&self) -> PathBuf {
        self.root.join("rw")
    }

    /// The filesystem of [`Layout::rw`], if the disk is limited.
    pub fn disk_image(&self) -> PathBuf {
        self.root.join("disk.img")
    }

    /// The changes of all live mounts.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// The changes of live mount `number` (an `UpperPlace::Kept`).
    pub fn mount_upper(&self, number: u32) -> PathBuf {
        self.mounts().join(number.to_string())
    }

    /// What the runtime is given.
    pub fn bundle(&self) -> PathBuf {
        self.root.join("bundle")
    }

    /// How the container is to be.
    pub fn config(&self) -> PathBuf {
        self.bundle().join("config.json")
    }

    /// A tmpfs with a file for each secret.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Small files that are shown in the sandbox's /etc and /dev.
    pub fn shown(&self) -> PathBuf {
        self.root.join("shown")
    }

    /// The first process's output.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// How the first process ended.
    pub fn exit(&self) -> PathBuf {
        self.root.join("exit.json")
    }

    /// Where the monitor listens.
    pub fn monitor_socket(&self) -> PathBuf {
        self.root.join("monitor.sock")
    }

    /// Locked for as long as the monitor lives.
    pub fn monitor_lock(&self) -> PathBuf {
        self.root.join("monitor.lock")
    }

    /// What the monitor looks after.
    pub fn monitor_record(&self) -> PathBuf {
        self.root.join("monitor.json")
    }

    /// What the monitor and the runtime have to say.
    pub fn monitor_log(&self) -> PathBuf {
        self.root.join("monitor.log")
    }

    /// Where the runtime keeps its own records (`--root`).
    pub fn runtime_root(&self) -> PathBuf {
        self.root.join("runtime")
    }

    /// The container's first process, as the runtime wrote it.
    pub fn pid_file(&self) -> PathBuf {
        self.root.join("pid")
    }

    /// Where the container is among the cgroups: a path below each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/inlay/{}", self.id)
    }
}
