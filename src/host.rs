//! What every command works with: a store, a state directory, and a runtime for what is
//! asynchronous.

use std::future::Future;
use std::io;
use std::path::Path;

use inlay_store::cache::{Cache, CacheError, CacheOptions};
use inlay_store::remote::{PlainHttp, Remote, StoreError};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::config;
use crate::state::{State, StateError};

/// Why a command could not begin.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The threads for asynchronous work.
    #[error("starting the runtime: {0}")]
    Runtime(#[source] io::Error),
}

/// What a snapshot is made with: borrowed from a [`Host`] or from the daemon.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The store.
    pub remote: &'a Remote,
    /// The state directory.
    pub state: &'a State,
    /// The runtime that network work runs on.
    pub runtime: &'a Handle,
}

impl Site<'_> {
    /// Waits for `future`. Not to be called from the runtime itself.
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
    /// Opens the state directory, and the store at `url`; without one, the store inside the state.
    pub fn open(url: Option<&str>, state: &Path, plain: PlainHttp) -> Result<Self, HostError> {
        let state = State::open(state)?;
        let embedded = state.embedded_store();
        let url = url.map_or_else(|| embedded.display().to_string(), str::to_owned);
        let runtime = Builder::new_multi_thread()
            .thread_name("inlay-io")
            .enable_all()
            .build()
            .map_err(HostError::Runtime)?;
        let guard = runtime.enter();
        let remote = Remote::open(&config::store_config(&url, plain))?;
        drop(guard);
        Ok(Self { remote, state, runtime })
    }

    /// The store.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The state directory.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The runtime that network work runs on.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// The host as what makes snapshots needs it.
    pub fn site(&self) -> Site<'_> {
        Site { remote: &self.remote, state: &self.state, runtime: self.runtime.handle() }
    }

    /// Waits for `future`. Not to be called from the runtime itself.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Opens the host's cache.
    pub fn cache(&self, options: CacheOptions) -> Result<Cache, HostError> {
        Ok(Cache::open(&self.state.cache(), options)?)
    }
}
