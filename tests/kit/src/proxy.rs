//! An HTTP proxy in front of a server on loopback: counts what passes, and breaks it on request.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
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

use crate::faults::{Fault, Rule};

/// A request that passed, or was to pass.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its method, such as `GET`.
    pub method: String,
    /// The path with the query, as sent.
    pub path: String,
    /// The header `Range`, if there was one.
    pub range: Option<String>,
    /// The status of the answer; none while there is no answer.
    pub status: Option<u16>,
    /// Bytes of the request's body that passed.
    pub up: u64,
    /// Bytes of the answer's body that passed.
    pub down: u64,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Arc<Mutex<Seen>>>,
}

type Shared = Arc<Mutex<State>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = BoxBody<Bytes, Failure>;

/// A running proxy. Dropping it closes its connections.
pub struct Proxy {
    address: SocketAddr,
    state: Shared,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Starts a proxy in front of the server at `upstream`.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let state = Shared::default();
        let upstream = Upstream {
            address: upstream,
            client: Client::builder(TokioExecutor::new()).build_http(),
            state: Arc::clone(&state),
        };
        // The runtime is the owner: it ends with the proxy, and this task with it.
        runtime.spawn(accept(listener, Arc::new(upstream)));
        Ok(Self { address, state, runtime: Some(runtime) })
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

    /// All requests since the start, or since [`Proxy::forget`].
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.iter().map(|seen| seen.lock().clone()).collect()
    }

    /// The requests of this method whose path contains `part`.
    pub fn requests(&self, method: &str, part: &str) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|request| request.method == method && request.path.contains(part));
        seen
    }

    /// Bytes of bodies that came from the server.
    pub fn bytes_down(&self) -> u64 {
        self.state.lock().seen.iter().map(|seen| seen.lock().down).sum()
    }

    /// Bytes of bodies that went to the server.
    pub fn bytes_up(&self) -> u64 {
        self.state.lock().seen.iter().map(|seen| seen.lock().up).sum()
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
}

async fn accept(listener: TcpListener, upstream: Arc<Upstream>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Out of descriptors, or a peer that left: the test sees it as a failed request.
                let Ok((stream, _)) = accepted else { continue };
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
        let (seen, fault) = self.note(&request);
        let answer = match fault {
            Some(Fault::Status(status)) => refusal(status, String::new()),
            Some(Fault::Missing) => refusal(404, no_such_key()),
            Some(Fault::Stall) => std::future::pending().await,
            _ => match self.forward(request, &seen, fault).await {
                Ok(answer) => answer,
                Err(error) => refusal(502, error.to_string()),
            },
        };
        seen.lock().status = Some(answer.status().as_u16());
        answer
    }

    /// Writes the request down and finds out what is to happen to it.
    fn note(&self, request: &Request<Incoming>) -> (Arc<Mutex<Seen>>, Option<Fault>) {
        let method = request.method().to_string();
        let path = request.uri().to_string();
        let range = request.headers().get(RANGE).map(|r| String::from_utf8_lossy(r.as_bytes()));
        let range = range.map(std::borrow::Cow::into_owned);
        let mut state = self.state.lock();
        let fault = state.rules.iter_mut().find_map(|rule| rule.apply(&method, &path));
        let seen = Seen { method, path, range, status: None, up: 0, down: 0 };
        let seen = Arc::new(Mutex::new(seen));
        state.seen.push(Arc::clone(&seen));
        (seen, fault)
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        seen: &Arc<Mutex<Seen>>,
        fault: Option<Fault>,
    ) -> Result<Response<AnyBody>, Failure> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = Uri::builder()
            .scheme("http")
            .authority(self.address.to_string())
            .path_and_query(path)
            .build()?;
        remove_connection_headers(&mut head.headers);
        let body = watch(body, seen, Direction::Up, None);
        let answer = self.client.request(Request::from_parts(head, body)).await?;
        let (mut head, body) = answer.into_parts();
        remove_connection_headers(&mut head.headers);
        Ok(Response::from_parts(head, watch(body, seen, Direction::Down, fault)))
    }
}

fn watch(
    inner: Incoming,
    seen: &Arc<Mutex<Seen>>,
    direction: Direction,
    fault: Option<Fault>,
) -> AnyBody {
    WatchedBody { inner, seen: Arc::clone(seen), direction, fault, passed: 0 }.boxed()
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

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// A body on its way: counted, and broken if a fault says so.
struct WatchedBody {
    inner: Incoming,
    seen: Arc<Mutex<Seen>>,
    direction: Direction,
    fault: Option<Fault>,
    passed: u64,
}

impl WatchedBody {
    /// What of these bytes is let through; none when the body has come to its early end.
    fn pass(&mut self, data: &Bytes) -> Bytes {
        let left = |at: u64| usize::try_from(at.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        let data = match self.fault {
            Some(Fault::CutBody(at) | Fault::StallBody(at)) => {
                data.slice(..left(at).min(data.len()))
            }
            Some(Fault::FlipByte(at)) if at >= self.passed => {
                let mut changed = data.to_vec();
                if let Some(byte) = changed.get_mut(left(at)) {
                    *byte ^= 0x10;
                }
                changed.into()
            }
            _ => data.clone(),
        };
        let passed = data.len() as u64;
        self.passed += passed;
        let mut seen = self.seen.lock();
        match self.direction {
            Direction::Up => seen.up += passed,
            Direction::Down => seen.down += passed,
        }
        drop(seen);
        data
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.fault {
            Some(Fault::CutBody(at)) if self.passed >= at => {
                return Poll::Ready(Some(Err("cut on purpose".into())));
            }
            // Nothing will wake this task: that is the point.
            Some(Fault::StallBody(at)) if self.passed >= at => return Poll::Pending,
            _ => {}
        }
        Pin::new(&mut self.inner).poll_frame(context).map(|frame| {
            let frame = frame?.map_err(Failure::from);
            Some(frame.map(|frame| frame.map_data(|data| self.pass(&data))))
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
