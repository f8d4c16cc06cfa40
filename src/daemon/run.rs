//! The daemon's life: prepare, take over from the keeper, serve, and leave in one of several ways.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use inlay_fusefs::keeper::{Claim, KeeperError, Kept, Stored};
use inlay_fusefs::{HostServer, ServeOptions};
use inlay_store::cache::{Cache, CacheOptions};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use super::attached::AttachedFiles;
use super::client::Client;
use super::environment;
use super::error::DaemonError;
use super::keep;
use super::paths::Paths;
use super::sandboxes::Sandboxes;
use super::server::Server;
use super::service::{About, Service};
use super::snapshots::{Snapshots, Use, Uses};
use super::socket::Access;
use super::stores::Stores;
use crate::mount::{Hold, Mounts, ProcessId, make_private_dirs};
use crate::own_signals;
use crate::state::State;

/// How often a keeper that ends while it is asked is looked for anew.
const KEEPERS: u32 = 5;
/// The pause between two looks whether another daemon is there.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How to run a daemon.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// The state directory.
    pub state: PathBuf,
    /// Whether a daemon that serves is replaced.
    pub claim: Claim,
    /// Who may talk to it.
    pub access: Access,
    /// The host's cache.
    pub cache: CacheOptions,
    /// After how long without mounts it ends.
    pub idle_exit: Option<Duration>,
    /// Where metrics are served on TCP, if they are.
    pub metrics_listen: Option<SocketAddr>,
    /// Threads for each connection to the kernel.
    pub threads: Option<NonZeroUsize>,
    /// The words that make this program the keeper.
    pub keeper: Vec<OsString>,
    /// The words that make this program a sandbox's monitor, without the sandbox.
    pub monitor: Vec<OsString>,
}

/// Why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A signal.
    Signal,
    /// A client.
    Stop,
    /// Nothing is mounted.
    Idle,
    /// Another daemon takes over.
    Leave,
    /// The kernel's connections have ended.
    Lost,
}

/// Serves the mounts of a state directory until it is told to stop; `stored` is what the service
/// manager kept of them. Calls `ready` when clients can talk to it. Afterwards the process must end.
pub fn run(
    options: &DaemonOptions,
    stored: Stored,
    ready: impl FnOnce(),
) -> Result<(), DaemonError> {
    // What it starts waits for SIGCHLD, and it ends itself by SIGTERM. It keeps other signals ignored:
    // whoever has started it with nohup(1) wanted that.
    own_signals::unblock_all();
    own_signals::unignore_child();
    let state = State::open(&options.state)?;
    let paths = Paths::of(state.root());
    for dir in [paths.run(), paths.fuse()] {
        make_private_dirs(&dir)?;
    }
    if options.claim == Claim::WhenFree {
        nobody_runs(&paths)?;
    }
    let runtime = Builder::new_multi_thread()
        .thread_name("inlay-io")
        .enable_all()
        .build()
        .map_err(DaemonError::io("start a runtime for", paths.state()))?;
    // All that may take time, before it is this process's turn: until then another serves, or
    // programs wait.
    let cache = Cache::open(&state.cache(), options.cache)?;
    let about = About {
        process: ProcessId::this().map_err(DaemonError::io("read", "/proc/self/stat".as_ref()))?,
        keeper: None,
        session: String::new(),
        state: paths.state().to_owned(),
        cache_size: Some(cache.budget().to_string()),
        idle_exit: options.idle_exit,
        environment: environment::fingerprint()
            .map_err(DaemonError::io("read", "/dev/urandom".as_ref()))?,
    };
    let kept = claim(&paths, options, stored)?;
    let mut daemon = Daemon::start(state, paths, about, cache, kept, options, &runtime)?;
    let end = runtime.block_on(daemon.serve(ready));
    daemon.finish(end, runtime)
}

fn nobody_runs(paths: &Paths) -> Result<(), DaemonError> {
    match Client::new(paths)?.status()? {
        Some(status) => {
            Err(DaemonError::Running { pid: status.server.pid, state: paths.state().to_owned() })
        }
        None => Ok(()),
    }
}

/// Waits for this process's turn. If it turns out to be another daemon's, that is an error. What was
/// `stored` is closed afterwards: a server may have one descriptor of the ledger only.
fn claim(paths: &Paths, options: &DaemonOptions, stored: Stored) -> Result<Kept, DaemonError> {
    for _ in 0..KEEPERS {
        let keeper = keep::find_or_start(paths, &options.keeper, &stored)?;
        let (sender, turn) = mpsc::sync_channel(1);
        let how = options.claim;
        // Not joined: should the turn never come, it ends with the process.
        thread::Builder::new()
            .name("inlay-claim".into())
            .spawn(move || {
                // If nobody waits any more, the turn is given back with the answer.
                let _ = sender.send(keeper.claim(how));
            })
            .map_err(DaemonError::io("start a thread for", paths.state()))?;
        loop {
            match turn.recv_timeout(LOOK_AGAIN) {
                Ok(Ok(mut kept)) => {
                    keep::store(&mut kept, &stored);
                    drop(stored);
                    return Ok(kept);
                }
                // The keeper of a daemon that was just ending.
                Ok(Err(KeeperError::Ended | KeeperError::Socket(_))) => break,
                Ok(Err(error)) => return Err(error.into()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(DaemonError::Panicked),
                Err(mpsc::RecvTimeoutError::Timeout) if how == Claim::WhenFree => {
                    nobody_runs(paths)?;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
        thread::sleep(LOOK_AGAIN);
    }
    Err(KeeperError::Ended.into())
}

/// A daemon whose turn it is.
pub(super) struct Daemon {
    pub(super) paths: Paths,
    pub(super) server: Server,
    pub(super) service: Service,
    pub(super) access: Access,
    pub(super) idle_exit: Option<Duration>,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) changed: Arc<Notify>,
    pub(super) signals: (Signal, Signal),
    pub(super) leave: oneshot::Receiver<()>,
    pub(super) lost: oneshot::Receiver<()>,
}

impl Daemon {
    fn start(
        state: State,
        paths: Paths,
        about: About,
        cache: Cache,
        kept: Kept,
        options: &DaemonOptions,
        runtime: &Runtime,
    ) -> Result<Self, DaemonError> {
        let _guard = runtime.enter();
        let caught =
            |kind| signal(kind).map_err(DaemonError::io("catch signals of", paths.state()));
        let signals = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
        let session = kept.session().to_string();
        let changed = Arc::new(Notify::new());
        let server = Server::new();
        let stores = Stores::new(state.clone(), cache, runtime.handle().clone())?;
        let files = AttachedFiles::open(&paths, &session)?;
        let handle = runtime.handle().clone();
        let snapshots =
            Snapshots::new(server.clone(), stores, state, files, handle, Arc::clone(&changed));
        let (restored, uses) = snapshots.restore(&kept.slots())?;
        let mut serve = ServeOptions::default();
        if let Some(threads) = options.threads {
            serve.threads = threads;
        }
        let adopted = restored.len();
        let host = HostServer::start(kept, restored, &serve)?;
        let (leave, lost) = (when(host.asked_to_leave()), when(host.ended()));
        server.set(host);
        let mounts = found_again(&paths, &session, &uses)?;
        // What nothing is mounted of any more is let go.
        drop(uses);
        snapshots.resume()?;
        snapshots.stores().outboxes().start(runtime.handle());
        tracing::info!(session, adopted, mounts = mounts.list().len(), "the daemon serves");
        let keeper = inlay_fusefs::keeper::Keeper::connect(&paths.keeper_socket())
            .and_then(|keeper| keeper.status())
            .map(|status| status.pid);
        let about = About { session, keeper: keeper.ok(), ..about };
        let sandboxes = Sandboxes::new(paths.state(), options.monitor.clone());
        let changes = Arc::clone(&changed);
        let service = Service::new(about, snapshots, mounts, sandboxes, changes, adopted);
        service.find_sandboxes()?;
        Ok(Self {
            paths,
            server,
            service,
            access: options.access,
            idle_exit: options.idle_exit,
            metrics_listen: options.metrics_listen,
            changed,
            signals,
            leave,
            lost,
        })
    }
}

/// The mounts of earlier daemons that are still served.
fn found_again(paths: &Paths, session: &str, uses: &Uses) -> Result<Mounts, DaemonError> {
    let hold = |slot| -> Option<Hold> {
        let hold: Arc<Use> = Arc::clone(uses.get(&slot)?);
        Some(Box::new(hold))
    };
    Ok(Mounts::open(paths.state(), session, hold)?)
}

fn when(ended: &inlay_fusefs::Ended) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    ended.then(move || {
        // Nobody may wait any more.
        let _ = sender.send(());
    });
    receiver
}
