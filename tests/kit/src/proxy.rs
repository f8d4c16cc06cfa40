//! An HTTP proxy in front of a server on loopback: counts what passes, delays it as a link does,
//! and breaks it on request.

mod body;
mod seen;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderMap, HeaderName, RANGE, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

pub use seen::{Seen, Summary};

use seen::{Entry, UntilEnd};

use crate::faults::{Fault, Rule};
use crate::link::{Direction, Link, LinkProfile, Paced};

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Arc<Entry>>,
}

type Shared = Arc<Mutex<State>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = BoxBody<Bytes, Failure>;

/// A running proxy. Dropping it closes its connections.
pub struct Proxy {
    address: SocketAddr,
    state: Shared,
    link: Arc<Link>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of the server at `upstream`.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        Self::start_on(Arc::new(Link::new()), upstream)
    }

    /// Starts another proxy, in front of another server, on the same link: they share its
    /// bandwidth and its sequence of latencies, and [`Proxy::shape`] of either shapes both. Each
    /// has its own rules and counts; times are counted from the same moment.
    pub fn start_beside(&self, upstream: SocketAddr) -> io::Result<Self> {
        Self::start_on(Arc::clone(&self.link), upstream)
    }

    fn start_on(link: Arc<Link>, upstream: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let state = Shared::default();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let upstream = Upstream {
            address: upstream,
            client: Client::builder(TokioExecutor::new()).build(connector),
            state: Arc::clone(&state),
            link: Arc::clone(&link),
        };
        // The runtime is the owner: it ends with the proxy, and this task with it.
        runtime.spawn(accept(listener, Arc::new(upstream)));
        Ok(Self { address, state, link, runtime: Some(runtime) })
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a rule. Of several that fit a request, the first one happens.
    pub fn inject(&self, rule: Rule) {
        self.state.lock().rules.push(rule);
    }

    /// Removes all rules.
    pub fn heal(&self) {
        self.state.lock().rules.clear();
    }

    /// Delays from now on what passes as this link does; at first, nothing is delayed. Requests
    /// that are waiting for their answer keep the latency with which they came.
    pub fn shape(&self, profile: LinkProfile) {
        self.link.shape(profile);
    }

    /// What the link is like.
    pub fn link(&self) -> LinkProfile {
        self.link.profile()
    }

    /// All requests since the start, or since [`Proxy::forget`], in the order of their arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.iter().map(|entry| entry.seen()).collect()
    }

    /// Sums over these requests.
    pub fn summary(&self) -> Summary {
        Summary::of(&self.seen())
    }

    /// The requests of this method whose path contains `part`.
    pub fn requests(&self, method: &str, part: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|request| request.method == method && request.path.contains(part));
        seen
    }

    /// Bytes of bodies that came from the server.
    pub fn bytes_down(&self) -> u64 {
        self.summary().bytes_down
    }

    /// Bytes of bodies that went to the server.
    pub fn bytes_up(&self) -> u64 {
        self.summary().bytes_up
    }

    /// Starts counting anew. Bodies that are still passing are no longer counted.
    pub fn forget(&self) {
        self.state.lock().seen.clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Upstream {
    address: SocketAddr,
    client: Client<HttpConnector, AnyBody>,
    state: Shared,
    link: Arc<Link>,
}

/// A request that has arrived, and what is to become of it.
struct Arrived {
    until_end: UntilEnd,
    latency: Duration,
    fault: Option<Fault>,
}

async fn accept(listener: TcpListener, upstream: Arc<Upstream>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, or a peer that left: the test sees it as a failed request.
                let Ok((stream, _)) = accepted else { continue };
                // A small answer is not to wait for the one before it to be confirmed.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, Arc::clone(&upstream)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, upstream: Arc<Upstream>) {
    let service = service_fn(|request| {
        let upstream = Arc::clone(&upstream);
        async move { Ok::<_, Infallible>(upstream.answer(request).await) }
    });
    // An error here is a client that left, or a body that was cut on purpose.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Upstream {
    async fn answer(&self, request: Request<Incoming>) -> Response<AnyBody> {
        let Arrived { until_end, latency, fault } = self.note(&request);
        let entry = &until_end.0;
        let answer = match fault {
            Some(Fault::Status(status)) => Err(refusal(status, String::new())),
            Some(Fault::Missing) => Err(refusal(404, no_such_key())),
            Some(Fault::Stall) => std::future::pending().await,
            _ => self.forward(request, entry).await.map_err(|e| refusal(502, e.to_string())),
        };
        let waited = self.link.wait_until(entry.complete().saturating_add(latency)).await;
        match waited.map_err(|error| refusal(502, error.to_string())).and(answer) {
            Ok(answer) => {
                entry.begin_answer(answer.status().as_u16());
                answer.map(|inner| body::down(inner, fault, until_end))
            }
            Err(refusal) => {
                entry.begin_answer(refusal.status().as_u16());
                refusal
            }
        }
    }

    /// Writes the request down and finds out what is to happen to it.
    fn note(&self, request: &Request<Incoming>) -> Arrived {
        let method = request.method().to_string();
        let path = request.uri().to_string();
        let range = request.headers().get(RANGE).map(|r| String::from_utf8_lossy(r.as_bytes()));
        let range = range.map(std::borrow::Cow::into_owned);
        // The order, the times and the numbers of requests are the same: all within the lock.
        let mut state = self.state.lock();
        let fault = state.rules.iter_mut().find_map(|rule| rule.apply(&method, &path));
        let at = self.link.now();
        let (status, first_byte, end) = (None, None, None);
        let seen = Seen { method, path, range, status, up: 0, down: 0, at, first_byte, end };
        let entry = Arc::new(Entry::new(&self.link, seen));
        state.seen.push(Arc::clone(&entry));
        Arrived { until_end: UntilEnd(entry), latency: self.link.next_latency(), fault }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        entry: &Arc<Entry>,
    ) -> Result<Response<Paced<Incoming>>, Failure> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = Uri::builder()
            .scheme("http")
            .authority(self.address.to_string())
            .path_and_query(path)
            .build()?;
        remove_connection_headers(&mut head.headers);
        let body = Paced::new(body, Arc::clone(&self.link), Direction::Up);
        let request = Request::from_parts(head, body::up(body, entry));
        let mut answer = self.client.request(request).await?;
        remove_connection_headers(answer.headers_mut());
        Ok(answer.map(|body| Paced::new(body, Arc::clone(&self.link), Direction::Down)))
    }
}

/// The headers that are about one connection, not about the request.
fn remove_connection_headers(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    for name in [CONNECTION, TRANSFER_ENCODING, KEEP_ALIVE] {
        headers.remove(name);
    }
}

fn refusal(status: u16, body: String) -> Response<AnyBody> {
    let body = Full::from(body).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    answer
}

fn no_such_key() -> String {
    "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>"
        .into()
}
