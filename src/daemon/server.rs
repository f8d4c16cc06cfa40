//! The FUSE side as the daemon holds it: one server that many use and one ends.

use std::path::PathBuf;
use std::sync::Arc;

use inlay_fusefs::{
    Ended, HostError, HostServer, Metering, OpenFiles, RequestCounts, Slot, SnapshotFs,
};
use parking_lot::RwLock;

use super::error::DaemonError;

/// The host's server, until it is ended. Clones share it.
#[derive(Clone)]
pub(super) struct Server {
    inner: Arc<RwLock<Option<HostServer>>>,
}

impl Server {
    pub(super) fn new() -> Self {
        Self { inner: Arc::default() }
    }

    /// From now on there is one.
    pub(super) fn set(&self, server: HostServer) {
        *self.inner.write() = Some(server);
    }

    pub(super) fn attach(&self, fs: SnapshotFs) -> Result<Slot, DaemonError> {
        self.with(|server| server.attach(fs))
    }

    pub(super) fn detach(&self, slot: Slot) -> Result<Arc<Ended>, DaemonError> {
        self.with(|server| server.detach(slot))
    }

    pub(super) fn let_go_if_unused(&self, slot: Slot) -> Result<(), DaemonError> {
        self.with(|server| server.let_go_if_unused(slot))
    }

    /// Opens a slot that an earlier daemon has attached. Blocks.
    pub(super) fn open(&self, slot: Slot) -> Result<(), DaemonError> {
        // Not under the lock: it may wait for the store.
        let opening = self.with(|server| server.opening(slot))?;
        Ok(opening()?)
    }

    pub(super) fn dir(&self, slot: Slot) -> Result<PathBuf, DaemonError> {
        self.with(|server| server.dir(slot))
    }

    /// What the kernel has asked for so far.
    pub(super) fn requests(&self) -> Result<RequestCounts, DaemonError> {
        self.with(|server| Ok(server.counters().snapshot()))
    }

    /// Measures requests from now on; and how many reads of files there were before.
    pub(super) fn metering(&self) -> Result<(Metering, u64), DaemonError> {
        let metering = self.with(|server| Ok(server.meter().start()))?;
        Ok((metering, self.reads()?))
    }

    /// How many reads of files were answered so far.
    pub(super) fn reads(&self) -> Result<u64, DaemonError> {
        self.requests().map(|counts| counts.read_hit + counts.read_miss)
    }

    pub(super) fn open_files(&self) -> Result<OpenFiles, DaemonError> {
        self.with(|server| Ok(server.open_files()))
    }

    /// Leaves the session to the keeper: this process must end soon.
    pub(super) fn leave(&self) {
        if let Some(server) = self.inner.write().as_mut() {
            server.leave();
        }
    }

    /// Ends the session, and the keeper with it.
    pub(super) fn unmount(&self) -> Result<(), DaemonError> {
        let server = self.inner.write().take();
        server.map_or(Ok(()), HostServer::unmount).map_err(DaemonError::Host)
    }

    fn with<T>(
        &self,
        ask: impl FnOnce(&HostServer) -> Result<T, HostError>,
    ) -> Result<T, DaemonError> {
        match self.inner.read().as_ref() {
            Some(server) => Ok(ask(server)?),
            None => Err(DaemonError::Ending),
        }
    }
}
