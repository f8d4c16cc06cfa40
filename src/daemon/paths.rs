//! Where the daemon of a state directory keeps its things.

use std::path::{Path, PathBuf};

/// The places of one state directory.
#[derive(Debug, Clone)]
pub struct Paths {
    state: PathBuf,
}

impl Paths {
    /// Those of `state`, an absolute path.
    pub fn of(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where sockets and locks are.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.run().join("daemon.sock")
    }

    /// Where the keeper listens.
    pub fn keeper_socket(&self) -> PathBuf {
        self.run().join("keeper.sock")
    }

    /// Held while a daemon is being started.
    pub fn start_lock(&self) -> PathBuf {
        self.run().join("start.lock")
    }

    /// Below it, the keeper's connections to the kernel are mounted.
    pub fn fuse(&self) -> PathBuf {
        self.state.join("fs")
    }

    /// What is attached: a file for each slot.
    pub fn attached(&self) -> PathBuf {
        self.state.join("attached")
    }

    /// The log of daemons in the background.
    pub fn log(&self) -> PathBuf {
        self.state.join("log").join("daemon.log")
    }
}
