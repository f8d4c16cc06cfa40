//! Accepts a bounded number of connections and closes idle ones.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use inlay_mounts::Process;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::limits::Limits;
use super::routes::Peer;

/// Deadline for the head of a request, and idle timeout of a connection.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Pause after accept(2) fails, mostly because of too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon's socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    turns: Arc<Semaphore>,
}

impl Listener {
    /// Creates a listener on `socket`. Must be called within a runtime.
    pub(super) fn new(
        socket: std::os::unix::net::UnixListener,
        limits: &Limits,
    ) -> io::Result<Self> {
        let turns = Arc::new(Semaphore::new(limits.connections));
        Ok(Self { socket: UnixListener::from_std(socket)?, turns })
    }

    /// Serves `app` until `enough` is cancelled. Then accepts no more connections and drains
    /// requests in flight.
    pub(super) async fn serve(self, app: Router, enough: CancellationToken) {
        let connections = TaskTracker::new();
        while let Some((connection, pid)) = enough.run_until_cancelled(self.accept()).await {
            connections.spawn(talk(connection, Peer::new(pid), app.clone(), enough.clone()));
        }
        // Closes the socket, so that new clients don't wait for this daemon.
        drop(self);
        connections.close();
        connections.wait().await;
    }

    /// Accepts the next connection; returns it with the process that connected.
    async fn accept(&self) -> (Connection, Option<Process>) {
        loop {
            let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    let peer = Process::peer(stream.as_fd()).unwrap_or_else(|error| {
                        tracing::warn!(%error, "can't identify the connected process");
                        None
                    });
                    return (Connection { stream, _turn: turn }, peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Serves one connection until its client closes it, it is idle for too long, or `enough` is
/// cancelled.
async fn talk(connection: Connection, peer: Peer, app: Router, enough: CancellationToken) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let mut app = app.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        async move {
            let answer: Result<Response<Body>, Infallible> = app.call(request).await;
            answer
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    let mut served =
        pin!(server.serve_connection(TokioIo::new(connection), answer).with_upgrades());
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = enough.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection broke");
    }
}

/// A connection and its permit.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    _turn: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
