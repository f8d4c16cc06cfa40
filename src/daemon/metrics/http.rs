//! Serves metrics on TCP for external scrapers: one page, a bounded number of clients.

use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE as TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{CONTENT_TYPE, Metrics, PATH};

/// Maximum number of connections; others wait until one closes.
const CONNECTIONS_MAX: usize = 16;
/// Deadline for the head of a request, and idle timeout.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// Maximum lifetime of a connection; clients reconnect.
const CONNECTION_MAX: Duration = Duration::from_mins(2);
/// Maximum length of a request head, in bytes.
const HEAD_LEN_MAX: usize = 16 << 10;
/// Pause between attempts to listen: usually the previous daemon still holds the address.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause after accept(2) fails, mostly because of too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The metrics server, until ended or dropped.
pub(in crate::daemon) struct Scrapes {
    enough: CancellationToken,
    task: JoinHandle<()>,
}

impl Scrapes {
    /// Serves at `address`. If the address is in use, logs that and retries every second rather
    /// than failing: serving mounts matters more.
    pub(in crate::daemon) fn start(address: SocketAddr, metrics: Metrics) -> Self {
        let enough = CancellationToken::new();
        let work = enough.clone().run_until_cancelled_owned(serve(address, metrics));
        let task = tokio::spawn(async move {
            // `None` if cancelled.
            let _ = work.await;
        });
        Self { enough, task }
    }

    /// Closes all connections and the listening socket.
    pub(in crate::daemon) async fn end(mut self) {
        self.enough.cancel();
        if (&mut self.task).await.is_err() {
            tracing::warn!("the metrics server panicked");
        }
    }
}

impl Drop for Scrapes {
    fn drop(&mut self) {
        self.enough.cancel();
    }
}

async fn serve(address: SocketAddr, metrics: Metrics) {
    let listener = listen(address).await;
    let turns = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Concurrent scrapes are serialized.
    let one = Arc::new(Mutex::new(metrics));
    let mut connections = JoinSet::new();
    loop {
        let turn = async {
            match Arc::clone(&turns).acquire_owned().await {
                Ok(turn) => (listener.accept().await, turn),
                // The semaphore is never closed.
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            (accepted, turn) = turn => match accepted {
                Ok((stream, _)) => {
                    let metrics = Arc::clone(&one);
                    connections.spawn(async move {
                        // A timeout means that the client is gone or stalling.
                        let _ = timeout(CONNECTION_MAX, talk(stream, metrics)).await;
                        drop(turn);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection for metrics");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "serving metrics");
                return listener;
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%address, %error, "can't serve metrics yet; retrying every second");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

async fn talk(stream: TcpStream, metrics: Arc<Mutex<Metrics>>) {
    let service = service_fn(|request| {
        let metrics = Arc::clone(&metrics);
        async move { Ok::<_, Infallible>(answer(&request, &metrics).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_LEN_MAX);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a metrics client disconnected");
    }
}

async fn answer(request: &Request<Incoming>, metrics: &Mutex<Metrics>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return response(StatusCode::NOT_FOUND, "text/plain", "there is only /metrics\n".into());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut no = response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::new());
        no.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return no;
    }
    let metrics = metrics.lock().await;
    match metrics.scrape().await {
        Ok(text) => response(StatusCode::OK, CONTENT_TYPE, text.into()),
        Err(error) => {
            tracing::warn!(%error, "a scrape failed");
            response(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Bytes::new())
        }
    }
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(TYPE, HeaderValue::from_static(kind));
    answer
}
