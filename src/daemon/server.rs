//! Shared handle of the FUSE server: many callers use it, one ends it.

use std::path::PathBuf;
use std::sync::Arc;

use inlay_fusefs::{
    Ended, HostError, HostServer, Metering, OpenFiles, RequestCounts, Slot, SnapshotFs,
};
use parking_lot::RwLock;

use super::error::DaemonError;

/// The host's FUSE server until it is ended. Clones share it.
#[derive(Clone)]
pub(super) struct Server {
    inner: Arc<RwLock<Option<HostServer>>>,
}

impl Server {
    pub(super) fn new() -> Self {
        Self { inner: Arc::default() }
    }

    /// Installs the server. Until then calls fail with [`DaemonError::Ending`].
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
        self.with(|server| {
            server.let_go_if_unused(slot);
            Ok(())
        })
    }

    /// Opens a slot that an earlier daemon attached. Blocks.
    pub(super) fn open(&self, slot: Slot) -> Result<(), DaemonError> {
        // Called without the lock: opening may wait for the store.
        let opening = self.with(|server| server.opening(slot))?;
        Ok(opening()?)
    }

    pub(super) fn dir(&self, slot: Slot) -> Result<PathBuf, DaemonError> {
        self.with(|server| server.dir(slot))
    }

    /// Returns the counts of FUSE requests so far.
    pub(super) fn requests(&self) -> Result<RequestCounts, DaemonError> {
        self.with(|server| Ok(server.counters().snapshot()))
    }

    /// Starts metering requests; returns also the number of reads answered before.
    pub(super) fn metering(&self) -> Result<(Metering, u64), DaemonError> {
        let metering = self.with(|server| Ok(server.meter().start()))?;
        Ok((metering, self.reads()?))
    }

    /// Returns the number of reads answered so far.
    pub(super) fn reads(&self) -> Result<u64, DaemonError> {
        self.requests().map(|counts| counts.read_hit + counts.read_miss)
    }

    pub(super) fn open_files(&self) -> Result<OpenFiles, DaemonError> {
        self.with(|server| Ok(server.open_files()))
    }

    /// Leaves the session to the keeper. This process must exit soon.
    pub(super) fn leave(&self) {
        if let Some(server) = self.inner.write().as_mut() {
            server.leave();
        }
    }

    /// Ends the session and the keeper.
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
