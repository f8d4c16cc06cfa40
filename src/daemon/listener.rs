//! Accepts connections, a bounded number at once, and knows whose they are.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many may be connected at once; more wait until somebody leaves.
const CONNECTIONS_MAX: usize = 256;
/// The pause after a failure to accept: mostly too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The daemon's socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: UnixListener,
    turns: Arc<Semaphore>,
}

impl Listener {
    /// Accepts at `socket`. To be called within a runtime.
    pub(super) fn new(socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(Self { socket: UnixListener::from_std(socket)?, turns })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    /// The process at the other end, as it was when it connected.
    type Addr = Option<Pid>;

    async fn accept(&mut self) -> (Connection, Option<Pid>) {
        loop {
            let turn = Arc::clone(&self.turns).acquire_owned().await.ok();
            match self.socket.accept().await {
                Ok((stream, _)) => {
                    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    let pid = pid.and_then(Pid::from_raw);
                    return (Connection { stream, _turn: turn }, pid);
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Option<Pid>> {
        Ok(None)
    }
}

/// A connection, and its turn.
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
