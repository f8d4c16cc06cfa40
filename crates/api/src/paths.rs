//! Paths of a daemon's files below its state directory.

use std::path::{Path, PathBuf};

/// Paths below one state directory.
#[derive(Debug, Clone)]
pub struct Paths {
    state: PathBuf,
}

impl Paths {
    /// Returns the paths below `state`, an absolute path.
    pub fn of(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Directory of sockets and locks.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.run().join("daemon.sock")
    }

    /// The keeper's socket.
    pub fn keeper_socket(&self) -> PathBuf {
        self.run().join("keeper.sock")
    }

    /// Lock held while a daemon is being started.
    pub fn start_lock(&self) -> PathBuf {
        self.run().join("start.lock")
    }

    /// Record of the boot in which a daemon last served.
    pub fn boot_record(&self) -> PathBuf {
        self.run().join("boot.json")
    }

    /// Directory below which the keeper mounts its FUSE connections.
    pub fn fuse(&self) -> PathBuf {
        self.state.join("fs")
    }

    /// Records of attached snapshots, one file per slot.
    pub fn attached(&self) -> PathBuf {
        self.state.join("attached")
    }

    /// Log of background daemons.
    pub fn log(&self) -> PathBuf {
        self.state.join("log").join("daemon.log")
    }
}
