//! The daemon's main loop, from the first answer to the last, and its exit.

use std::fs;
use std::time::{Duration, Instant};

use inlay_mounts::Watch;
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;
use super::idempotency::Once;
use super::keeper_client;
use super::listener::Listener;
use super::memory::{self, HeapTrimmer};
use super::metrics::{Metrics, Scrapes};
use super::notify::{Notification, notify};
use super::routes::router;
use super::run::{Daemon, End};
use super::socket;
use crate::config;

/// Interval of checks of the daemon's memory.
const LOOK_AT_MEMORY: Duration = Duration::from_secs(5);
/// Debounce: changes within this time are handled together.
const TOGETHER: Duration = Duration::from_millis(5);
/// Minimum lifetime of a daemon that has not served any request.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Deadline for requests in flight when the daemon leaves. The keeper kills it after 5 s.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Deadline for settling the cache when no successor waits for this daemon.
const SETTLE_WITHIN: Duration = Duration::from_secs(20);

impl Daemon {
    /// Serves clients and cleans up after mounts until the daemon has to end.
    pub(super) async fn serve(&mut self, ready: impl FnOnce()) -> Result<End, DaemonError> {
        let path = self.paths.socket();
        let (state, run) = (self.paths.state(), self.paths.run());
        socket::let_through(state, &run, self.access)
            .map_err(DaemonError::io("set who may reach the socket in", state))?;
        let listener = socket::listen(&path, self.access)
            .and_then(|socket| Listener::new(socket, &self.limits))
            .map_err(DaemonError::io("listen at", &path))?;
        let metrics = Metrics::new(self.service.clone(), self.server.clone())?;
        let state = self.paths.state().to_owned();
        let requests = spawn_blocking(move || Once::open(&state));
        let requests = requests.await.map_err(|_| DaemonError::Panicked)??;
        let app = router(self.service.clone(), metrics.clone(), requests, &self.limits);
        let enough = CancellationToken::new();
        let api = tokio::spawn(listener.serve(app, enough.clone()));
        let watch = Watch::start(std::sync::Arc::clone(&self.changed))
            .map_err(DaemonError::io("watch the table of mounts for", self.paths.state()))?;
        let scrapes = self.metrics_listen.map(|address| Scrapes::start(address, metrics));
        ready();
        notify_manager(Notification::Ready);
        let end = self.live().await;
        notify_manager(Notification::Stopping);
        // No more connections are accepted; requests in flight are answered.
        self.service.drop_traces();
        drop(fs::remove_file(&path));
        enough.cancel();
        if let Some(scrapes) = scrapes {
            scrapes.end().await;
        }
        if timeout(LEAVE_WITHIN, api).await.is_err() {
            tracing::warn!("closing connections without an answer");
        }
        drop(watch);
        end
    }

    async fn live(&mut self) -> Result<End, DaemonError> {
        let mut idle_since = Instant::now();
        let mut looked = Instant::now();
        let mut heap = HeapTrimmer::new();
        loop {
            let service = self.service.clone();
            let next = spawn_blocking(move || service.sweep());
            let next = next.await.map_err(|_| DaemonError::Panicked)?;
            let mut grace = Duration::ZERO;
            if !self.service.is_unused() {
                idle_since = Instant::now();
            } else if self.service.lifecycle().is_new() {
                // The process that started it is about to send a request.
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
                let trimmed = spawn_blocking(move || {
                    heap.trim();
                    heap
                });
                heap = trimmed.await.map_err(|_| DaemonError::Panicked)?;
            }
            // A request in flight or a mount keeps an idle daemon alive; then there is no idle
            // deadline to wait for.
            let idle_left = idle_left.filter(|left| !left.is_zero());
            let pause = [next, idle_left].into_iter().flatten().fold(LOOK_AT_MEMORY, Duration::min);
            tokio::select! {
                _ = self.signals.0.recv() => return Ok(End::Signal),
                _ = self.signals.1.recv() => return Ok(End::Signal),
                () = self.service.lifecycle().stop_token().cancelled() => return Ok(End::Stop),
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
                keeper_client::forget();
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
                tracing::warn!("cancelling requests to a store");
            }
            if !hurried {
                let snapshots = self.service.snapshots().clone();
                let settled = spawn_blocking(move || snapshots.settle());
                if timeout(SETTLE_WITHIN, settled).await.is_err() {
                    tracing::warn!("leaving the cache unchanged");
                }
            }
        });
        runtime.shutdown_timeout(LEAVE_WITHIN);
        outcome
    }

    fn end_session(&self) -> Result<(), DaemonError> {
        let outcome = self.server.unmount();
        keeper_client::forget();
        self.service.forget_all();
        outcome
    }
}

fn notify_manager(notification: Notification<'_>) {
    if let Err(error) = notify(config::notify_socket().as_deref(), notification) {
        tracing::warn!(%error, ?notification, "can't notify the service manager");
    }
}
