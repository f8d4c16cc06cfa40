//! What the daemon does from its first answer to its last.

use std::fs;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;
use super::keep;
use super::listener::Listener;
use super::memory;
use super::metrics::{Metrics, Scrapes};
use super::notify::{Told, tell};
use super::once::Once;
use super::routes::{Peer, router};
use super::run::{Daemon, End};
use super::socket;
use crate::config;
use crate::mount::Watch;

/// How often the daemon looks at its memory.
const LOOK_AT_MEMORY: Duration = Duration::from_secs(5);
/// Changes that come within so long are looked at together.
const TOGETHER: Duration = Duration::from_millis(5);
/// How long a daemon stays that nobody has asked for anything yet.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long requests for bytes may go on when the daemon leaves. The keeper kills it after 5 s.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// How long the end of a daemon that nobody waits for takes for the sake of the cache.
const SETTLE_WITHIN: Duration = Duration::from_secs(20);

impl Daemon {
    /// Answers clients, and clears up after mounts, until something ends that.
    pub(super) async fn serve(&mut self, ready: impl FnOnce()) -> Result<End, DaemonError> {
        let path = self.paths.socket();
        for dir in [self.paths.state(), &self.paths.run()] {
            socket::let_through(dir, self.access)
                .map_err(DaemonError::io("open to the socket's group", dir))?;
        }
        let listener = socket::listen(&path, self.access)
            .and_then(Listener::new)
            .map_err(DaemonError::io("listen at", &path))?;
        let metrics = Metrics::new(self.service.clone(), self.server.clone())?;
        let state = self.paths.state().to_owned();
        let requests = spawn_blocking(move || Once::open(&state));
        let requests = requests.await.map_err(|_| DaemonError::Panicked)??;
        let app = router(self.service.clone(), metrics.clone(), requests)
            .into_make_service_with_connect_info::<Peer>();
        let enough = CancellationToken::new();
        let api =
            axum::serve(listener, app).with_graceful_shutdown(enough.clone().cancelled_owned());
        let api = tokio::spawn(api.into_future());
        let watch = Watch::start(std::sync::Arc::clone(&self.changed))
            .map_err(DaemonError::io("watch the table of mounts for", self.paths.state()))?;
        let scrapes = self.metrics_listen.map(|address| Scrapes::start(address, metrics));
        ready();
        told(Told::Ready);
        let end = self.live().await;
        told(Told::Stopping);
        // Nobody is let in any more; who is inside gets an answer.
        self.service.drop_traces();
        drop(fs::remove_file(&path));
        enough.cancel();
        if let Some(scrapes) = scrapes {
            scrapes.end().await;
        }
        if timeout(LEAVE_WITHIN, api).await.is_err() {
            tracing::warn!("clients are left without an answer");
        }
        drop(watch);
        end
    }

    async fn live(&mut self) -> Result<End, DaemonError> {
        let mut idle_since = Instant::now();
        let mut looked = Instant::now();
        loop {
            let service = self.service.clone();
            let next = spawn_blocking(move || service.look());
            let next = next.await.map_err(|_| DaemonError::Panicked)?;
            let mut grace = Duration::ZERO;
            if !self.service.is_unused() {
                idle_since = Instant::now();
            } else if self.service.is_new() {
                // Whoever has started it will say what for.
                grace = FIRST_REQUEST_WITHIN;
            }
            let idle_left =
                self.idle_exit.map(|limit| limit.max(grace).saturating_sub(idle_since.elapsed()));
            if idle_left == Some(Duration::ZERO) && self.service.close_if_idle() {
                return Ok(End::Idle);
            }
            if looked.elapsed() >= LOOK_AT_MEMORY {
                looked = Instant::now();
                self.service.snapshots().end_runs();
                if memory::file_pages().is_some_and(|bytes| bytes > memory::FILE_PAGES_MAX) {
                    self.service.snapshots().release_pages();
                }
            }
            // A request that is under way, or mounts, keep an idle daemon: then this is no time
            // to wait for.
            let idle_left = idle_left.filter(|left| !left.is_zero());
            let pause = [next, idle_left].into_iter().flatten().fold(LOOK_AT_MEMORY, Duration::min);
            tokio::select! {
                _ = self.signals.0.recv() => return Ok(End::Signal),
                _ = self.signals.1.recv() => return Ok(End::Signal),
                () = self.service.stop_token().cancelled() => return Ok(End::Stop),
                Ok(()) = &mut self.leave => return Ok(End::Leave),
                _ = &mut self.lost => return Ok(End::Lost),
                () = self.changed.notified() => tokio::time::sleep(TOGETHER).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Ends the session, or leaves it to the keeper.
    pub(super) fn finish(
        self,
        end: Result<End, DaemonError>,
        runtime: Runtime,
    ) -> Result<(), DaemonError> {
        let mounted = !self.service.is_unused();
        let hurried = mounted && !matches!(end, Ok(End::Stop));
        let outcome = match end {
            Ok(End::Stop | End::Idle) => self.end_session(),
            Ok(End::Signal) if !mounted => self.end_session(),
            Ok(End::Signal | End::Leave) => {
                self.server.leave();
                tracing::info!(
                    "the daemon ends; what is mounted stays, and programs that use it wait for \
                     the next daemon"
                );
                Ok(())
            }
            Ok(End::Lost) => {
                keep::forget();
                Err(DaemonError::Lost)
            }
            Err(error) => {
                self.server.leave();
                Err(error)
            }
        };
        runtime.block_on(async {
            let shut = self.service.snapshots().shutdown();
            if timeout(LEAVE_WITHIN, shut).await.is_err() {
                tracing::warn!("requests to a store are cut off");
            }
            if !hurried {
                let snapshots = self.service.snapshots().clone();
                let settled = spawn_blocking(move || snapshots.settle());
                if timeout(SETTLE_WITHIN, settled).await.is_err() {
                    tracing::warn!("the cache is left as it is");
                }
            }
        });
        runtime.shutdown_timeout(LEAVE_WITHIN);
        outcome
    }

    fn end_session(&self) -> Result<(), DaemonError> {
        let outcome = self.server.unmount();
        keep::forget();
        self.service.forget_all();
        outcome
    }
}

fn told(told: Told<'_>) {
    if let Err(error) = tell(config::notify_socket().as_deref(), told) {
        tracing::warn!(%error, ?told, "the service manager can't be told");
    }
}
