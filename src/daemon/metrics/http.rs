//! Metrics on TCP, for who scrapes from outside: this one page, for a bounded number of clients.

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

/// How many may be connected at once; more wait until somebody leaves.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take for its request, or stay without one.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// After so long a connection is closed; a client makes another one.
const CONNECTION_MAX: Duration = Duration::from_mins(2);
/// The longest request head, in bytes.
const HEAD_LEN_MAX: usize = 16 << 10;
/// The pause between two tries to listen: mostly the daemon before this one has the address still.
const AGAIN: Duration = Duration::from_secs(1);
/// The pause after a failure to accept: mostly too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// The server, until it is ended or dropped.
pub(in crate::daemon) struct Scrapes {
    enough: CancellationToken,
    task: JoinHandle<()>,
}

impl Scrapes {
    /// Serves at `address`. Should the address be taken, that is logged, and tried again every
    /// second: what is mounted matters more.
    pub(in crate::daemon) fn start(address: SocketAddr, metrics: Metrics) -> Self {
        let enough = CancellationToken::new();
        let work = enough.clone().run_until_cancelled_owned(serve(address, metrics));
        let task = tokio::spawn(async move {
            // Cancelled, it has nothing to say.
            let _ = work.await;
        });
        Self { enough, task }
    }

    /// Closes all connections, and the address is free.
    pub(in crate::daemon) async fn end(mut self) {
        self.enough.cancel();
        if (&mut self.task).await.is_err() {
            tracing::warn!("the metrics' server has failed after a defect of this program");
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
    // Several scrapes at once see the same: they take turns.
    let one = Arc::new(Mutex::new(metrics));
    let mut connections = JoinSet::new();
    loop {
        let turn = async {
            match Arc::clone(&turns).acquire_owned().await {
                Ok(turn) => (listener.accept().await, turn),
                // Nobody closes it.
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            (accepted, turn) = turn => match accepted {
                Ok((stream, _)) => {
                    let metrics = Arc::clone(&one);
                    connections.spawn(async move {
                        // Too slow: the client is gone, or up to no good.
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
                tracing::info!(%address, "metrics are served");
                return listener;
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%address, %error, "metrics can't be served yet; tried every second");
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
        tracing::debug!(%error, "a client of the metrics has left");
    }
}

async fn answer(request: &Request<Incoming>, metrics: &Mutex<Metrics>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return said(StatusCode::NOT_FOUND, "text/plain", "there is only /metrics\n".into());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut no = said(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::new());
        no.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return no;
    }
    let metrics = metrics.lock().await;
    match metrics.scrape().await {
        Ok(text) => said(StatusCode::OK, CONTENT_TYPE, text.into()),
        Err(error) => {
            tracing::warn!(%error, "a scrape has failed");
            said(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Bytes::new())
        }
    }
}

fn said(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(TYPE, HeaderValue::from_static(kind));
    answer
}
