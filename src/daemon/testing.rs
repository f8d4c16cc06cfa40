//! Builds a daemon's parts without a keeper, for tests: nothing can be mounted.

use std::path::Path;
use std::sync::Arc;

use inlay_base::boot::LastServed;
use inlay_mounts::{Mounts, ProcessId};
use inlay_snapshots::state::State;
use inlay_store::cache::{Cache, CacheOptions};
use tokio::runtime::Handle;

use super::attached_records::AttachedFiles;
use super::environment;
use super::sandboxes::Sandboxes;
use super::server::Server;
use super::service::{DaemonInfo, Service};
use super::snapshots::Snapshots;
use super::stores::Stores;
use inlay_api::Paths;

/// The session of the keeper that does not run.
pub(super) const SESSION: &str = "session";

/// Returns the snapshots of a daemon in the state directory `dir`.
pub(super) fn snapshots(dir: &Path, runtime: &Handle) -> Snapshots {
    let state = State::open(dir).unwrap();
    let cache = Cache::open(&state.cache(), CacheOptions::default()).unwrap();
    let files = AttachedFiles::open(&Paths::of(state.root()), SESSION).unwrap();
    let stores = Stores::new(state.clone(), cache, runtime.clone());
    Snapshots::new(Server::new(), stores, state, files, runtime.clone(), Arc::default())
}

/// Returns the operations of a daemon in the state directory `dir`.
pub(super) fn service(dir: &Path, runtime: &Handle) -> Service {
    let snapshots = snapshots(dir, runtime);
    let mounts = Mounts::open(dir, SESSION, LastServed::ThisBoot, |_| None).unwrap();
    let about = DaemonInfo {
        process: ProcessId::this().unwrap(),
        keeper: None,
        session: SESSION.to_owned(),
        state: dir.to_owned(),
        cache_size: None,
        idle_exit: None,
        environment: environment::fingerprint().unwrap(),
    };
    let sandboxes = Sandboxes::new(dir, Vec::new());
    Service::new(about, snapshots, mounts, sandboxes, Arc::default(), 0)
}
