//! Daemon lifecycle: prepares, takes over from the keeper, serves, and exits in one of several
//! ways.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use inlay_base::boot::{self, LastServed};
use inlay_base::trash::Emptier;
use inlay_base::{descriptors, signals};
use inlay_fusefs::keeper::{Claim, KeeperError, Kept, Stored};
use inlay_fusefs::{HostServer, ServeOptions};
use inlay_mounts::features::disabled_fuse_features;
use inlay_mounts::{Hold, Mounts, ProcessId, make_private_dirs};
use inlay_snapshots::state::State;
use inlay_store::cache::{Cache, CacheOptions};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot};

use super::attached_records::AttachedFiles;
use super::environment;
use super::error::DaemonError;
use super::keeper_client;
use super::limits::Limits;
use super::sandboxes::Sandboxes;
use super::server::Server;
use super::service::{DaemonInfo, Service};
use super::snapshots::{Snapshots, Use, Uses};
use super::socket::Access;
use super::stores::Stores;
use crate::doctor::{Health, examine_host};
use inlay_api::Client;
use inlay_api::Paths;

/// Attempts to find a keeper when one ends during the claim.
const KEEPERS: u32 = 5;
/// Interval between checks for another daemon.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Options of a daemon.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// The state directory.
    pub state: PathBuf,
    /// Whether a serving daemon is replaced.
    pub claim: Claim,
    /// Who may connect to it.
    pub access: Access,
    /// Options of the host's cache.
    pub cache: CacheOptions,
    /// Exit after this long without mounts; `None`: never.
    pub idle_exit: Option<Duration>,
    /// TCP address that serves metrics, if any.
    pub metrics_listen: Option<SocketAddr>,
    /// Threads per FUSE connection.
    pub threads: Option<NonZeroUsize>,
    /// Arguments that run this program as the keeper.
    pub keeper: Vec<OsString>,
    /// Arguments that run this program as a sandbox's monitor, without the sandbox's id.
    pub monitor: Vec<OsString>,
}

/// Why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A signal was received.
    Signal,
    /// A client stopped it.
    Stop,
    /// Nothing is mounted.
    Idle,
    /// Another daemon takes over.
    Leave,
    /// The FUSE connections have ended.
    Lost,
}

/// Serves the mounts of a state directory until stopped. `stored` holds the session's descriptors
/// that the service manager kept. Calls `ready` once clients can connect. The process must exit
/// afterwards.
pub fn run(
    options: &DaemonOptions,
    stored: Stored,
    ready: impl FnOnce(),
) -> Result<(), DaemonError> {
    // The children it waits for need SIGCHLD, and SIGTERM must end it. Other ignored signals stay
    // ignored: nohup(1) relies on that.
    signals::unblock_all();
    signals::unignore_child();
    let state = State::open(&options.state)?;
    let paths = Paths::of(state.root());
    for dir in [paths.run(), paths.fuse()] {
        make_private_dirs(&dir)?;
    }
    if options.claim == Claim::WhenFree {
        check_no_daemon_running(&paths)?;
    }
    let limits = Limits::for_open_files(descriptors::raise_limit());
    let runtime = Builder::new_multi_thread()
        .thread_name("inlay-io")
        .max_blocking_threads(limits.blocking_threads())
        .enable_all()
        .build()
        .map_err(DaemonError::io("start a runtime for", paths.state()))?;
    // Everything slow comes before the claim: until then another daemon serves, or programs wait.
    let cache = Cache::open(&state.cache(), options.cache)?;
    let about = DaemonInfo {
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
    let mut daemon = Daemon::start(state, paths, about, cache, kept, options, (limits, &runtime))?;
    let trash = Emptier::start(daemon.paths.state())
        .map_err(DaemonError::io("start a thread for", daemon.paths.state()))?;
    let end = runtime.block_on(daemon.serve(ready));
    drop(trash);
    daemon.finish(end, runtime)
}

fn check_no_daemon_running(paths: &Paths) -> Result<(), DaemonError> {
    match Client::new(paths)?.status()? {
        Some(status) => {
            Err(DaemonError::Running { pid: status.server.pid, state: paths.state().to_owned() })
        }
        None => Ok(()),
    }
}

/// Blocks until the keeper hands the session to this process. Fails with [`DaemonError::Running`]
/// if another daemon gets it. Drops `stored` afterwards: the server must hold the only descriptor
/// of the ledger.
fn claim(paths: &Paths, options: &DaemonOptions, stored: Stored) -> Result<Kept, DaemonError> {
    for _ in 0..KEEPERS {
        let keeper = keeper_client::find_or_start(paths, &options.keeper, &stored)?;
        let (sender, turn) = mpsc::sync_channel(1);
        let how = options.claim;
        // Not joined: if the claim never completes, the thread ends with the process.
        thread::Builder::new()
            .name("inlay-claim".into())
            .spawn(move || {
                // If the receiver is gone, dropping the answer returns the claim.
                let _ = sender.send(keeper.claim(how));
            })
            .map_err(DaemonError::io("start a thread for", paths.state()))?;
        loop {
            match turn.recv_timeout(LOOK_AGAIN) {
                Ok(Ok(mut kept)) => {
                    keeper_client::store(&mut kept, &stored);
                    drop(stored);
                    return Ok(kept);
                }
                // The keeper of a daemon that was just stopping.
                Ok(Err(KeeperError::Ended | KeeperError::Socket(_))) => break,
                Ok(Err(error)) => return Err(error.into()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(DaemonError::Panicked),
                Err(mpsc::RecvTimeoutError::Timeout) if how == Claim::WhenFree => {
                    check_no_daemon_running(paths)?;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
        thread::sleep(LOOK_AGAIN);
    }
    Err(KeeperError::Ended.into())
}

/// A daemon that holds the session.
pub(super) struct Daemon {
    pub(super) paths: Paths,
    pub(super) server: Server,
    pub(super) service: Service,
    pub(super) access: Access,
    pub(super) limits: Limits,
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
        about: DaemonInfo,
        cache: Cache,
        kept: Kept,
        options: &DaemonOptions,
        (limits, runtime): (Limits, &Runtime),
    ) -> Result<Self, DaemonError> {
        let _guard = runtime.enter();
        let caught =
            |kind| signal(kind).map_err(DaemonError::io("catch signals of", paths.state()));
        let signals = (caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?);
        let session = kept.session().to_string();
        let changed = Arc::new(Notify::new());
        let server = Server::new();
        let stores = Stores::new(state.clone(), cache, runtime.handle().clone());
        let files = AttachedFiles::open(&paths, &session)?;
        let handle = runtime.handle().clone();
        let snapshots =
            Snapshots::new(server.clone(), stores, state, files, handle, Arc::clone(&changed));
        let last = boot::last_served(&paths.boot_record());
        let (restored, uses) = snapshots.restore(&kept.slots(), last)?;
        let mut serve =
            ServeOptions { without: disabled_fuse_features(), ..ServeOptions::default() };
        if let Some(threads) = options.threads {
            serve.threads = threads;
        }
        let adopted = restored.len();
        let host = HostServer::start(kept, restored, &serve)?;
        let (leave, lost) = (when(host.asked_to_leave()), when(host.ended()));
        server.set(host);
        let mounts = found_again(&paths, &session, last, &uses)?;
        if let Err(error) = boot::note(&paths.boot_record()) {
            tracing::warn!(%error, "can't note the boot id; the next boot will not set torn records aside");
        }
        // Detaches slots that no mount uses.
        mounts.hold_unclaimed(Box::new(uses));
        snapshots.resume()?;
        snapshots.stores().outboxes().start(runtime.handle());
        tracing::info!(session, adopted, mounts = mounts.list().len(), "the daemon is ready");
        log_checks(paths.state());
        let keeper = inlay_fusefs::keeper::Keeper::connect(&paths.keeper_socket())
            .and_then(|keeper| keeper.status())
            .map(|status| status.pid);
        let about = DaemonInfo { session, keeper: keeper.ok(), ..about };
        let sandboxes = Sandboxes::new(paths.state(), options.monitor.clone());
        let changes = Arc::clone(&changed);
        let service = Service::new(about, snapshots, mounts, sandboxes, changes, adopted);
        service.find_sandboxes()?;
        Ok(Self {
            paths,
            server,
            service,
            access: options.access,
            limits,
            idle_exit: options.idle_exit,
            metrics_listen: options.metrics_listen,
            changed,
            signals,
            leave,
            lost,
        })
    }
}

/// Opens the mount table with the mounts of earlier daemons that are still served.
fn found_again(
    paths: &Paths,
    session: &str,
    last: LastServed,
    uses: &Uses,
) -> Result<Mounts, DaemonError> {
    let hold = |slot| -> Option<Hold> {
        let hold: Arc<Use> = Arc::clone(uses.get(&slot)?);
        Some(Box::new(hold))
    };
    Ok(Mounts::open(paths.state(), session, last, hold)?)
}

fn when(ended: &inlay_fusefs::Ended) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    ended.then(move || {
        // The receiver may be gone.
        let _ = sender.send(());
    });
    receiver
}

/// Logs what this host lacks, and the fallbacks in use.
fn log_checks(state: &Path) {
    for check in examine_host(state).checks {
        let (name, found, fix) = (check.name, check.found, check.fix);
        match check.health {
            Health::Ok => {}
            Health::Degraded => tracing::info!(name, found, fix, "a check of this host: degraded"),
            Health::Missing => tracing::warn!(name, found, fix, "a check of this host: missing"),
        }
    }
}
