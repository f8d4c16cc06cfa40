//! Bundles the resources of every command: a store, a state directory, and an async runtime.

use std::future::Future;
use std::io;
use std::path::Path;

use inlay_store::cache::{Cache, CacheError, CacheOptions};
use inlay_store::remote::{OutboxDir, Remote, StoreConfig, StoreError};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::state::{State, StateError};

/// The reason a command could not start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The state directory could not be opened.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache could not be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The runtime could not be started.
    #[error("starting the runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// Resources for creating a snapshot, borrowed from a [`Host`] or from the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The store.
    pub remote: &'a Remote,
    /// The state directory.
    pub state: &'a State,
    /// Runtime for network operations.
    pub runtime: &'a Handle,
}

impl Site<'_> {
    /// Blocks until `future` completes. Must not be called from the runtime itself.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// A store and a state directory.
#[derive(Debug)]
pub struct Host {
    remote: Remote,
    state: State,
    runtime: Runtime,
}

impl Host {
    /// Opens the store.
    pub fn open(state: State, store: &StoreConfig) -> Result<Self, HostError> {
        let runtime = Builder::new_multi_thread()
            .thread_name("inlay-io")
            .enable_all()
            .build()
            .map_err(HostError::Runtime)?;
        let guard = runtime.enter();
        let remote = Remote::open(store)?;
        drop(guard);
        Ok(Self { remote, state, runtime })
    }

    /// Opens the store together with the snapshots sealed on this host but not yet uploaded, which
    /// can be read as if they were in the store. `named` is the URL under which the daemon knows
    /// the store.
    pub fn open_with_sealed(
        state: State,
        store: StoreConfig,
        named: Option<&str>,
    ) -> Result<Self, HostError> {
        let outbox_dir = OutboxDir::new(state.outbox(named).join("objects"));
        // Opening the directory would create it.
        let outbox_dir = outbox_dir.dir().parent().is_some_and(Path::is_dir).then_some(outbox_dir);
        Self::open(state, &StoreConfig { outbox_dir, ..store })
    }

    /// The store.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Returns the objects sealed on this host as a store; `None` if no upload is pending.
    pub fn sealed(&self) -> Result<Option<Remote>, HostError> {
        let Some(outbox_dir) = self.remote.outbox_dir().filter(|outbox_dir| outbox_dir.is_used())
        else {
            return Ok(None);
        };
        let _guard = self.runtime.enter();
        Ok(Some(Remote::open(&StoreConfig::new(outbox_dir.dir().display().to_string()))?))
    }

    /// The state directory.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Runtime for network operations.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Borrows the resources for creating snapshots.
    pub fn site(&self) -> Site<'_> {
        Site { remote: &self.remote, state: &self.state, runtime: self.runtime.handle() }
    }

    /// Blocks until `future` completes. Must not be called from the runtime itself.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Opens the host's cache.
    pub fn cache(&self, options: CacheOptions) -> Result<Cache, HostError> {
        Ok(Cache::open(&self.state.cache(), options)?)
    }
}
