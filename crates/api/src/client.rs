//! Client of the daemon's API: one connection per request.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use inlay_base::dying::is_peer_dying;
use inlay_base::sockets;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::error::ClientError;
use crate::paths::Paths;
use crate::wire::{self, ErrorAnswer, ErrorKind, StatusAnswer};

/// Added to a request's deadline: how much longer than the daemon may take its client waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Path of the metrics, in the Prometheus text format.
pub const METRICS_PATH: &str = "/metrics";

/// Retries and interval of a status request whose connection broke.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Client of the daemon of one state directory.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
    keys: Keys,
}

/// Generates the idempotency keys of one command. A retry of the command generates the same keys.
#[derive(Debug, Clone)]
pub struct Keys {
    seed: String,
    next: Cell<u64>,
}

impl Keys {
    /// Creates keys from a random seed.
    pub fn new() -> Result<Self, ClientError> {
        let mut seed = [0; 16];
        let source = std::path::Path::new("/dev/urandom");
        File::open(source)
            .and_then(|mut file| file.read_exact(&mut seed))
            .map_err(ClientError::io("read", source))?;
        Ok(Self { seed: hex::encode(seed), next: Cell::new(0) })
    }

    fn next(&self) -> String {
        let number = self.next.get();
        self.next.set(number + 1);
        format!("{}-{number}", self.seed)
    }
}

impl Client {
    /// Creates a client of the daemon at `paths`, which need not run.
    pub fn new(paths: &Paths) -> Result<Self, ClientError> {
        let socket = paths.socket();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ClientError::io("start a runtime for", &socket))?;
        Ok(Self { socket, runtime, keys: Keys::new()? })
    }

    /// Uses the keys of a command that is being retried, starting over from the first.
    #[must_use]
    pub fn with_keys(mut self, keys: &Keys) -> Self {
        self.keys = Keys { seed: keys.seed.clone(), next: Cell::new(0) };
        self
    }

    /// Returns the daemon's status; `None` if none runs.
    pub fn status(&self) -> Result<Option<StatusAnswer>, ClientError> {
        let mut tries = TRIES;
        loop {
            match self.get(wire::STATUS) {
                Ok(status) => return Ok(Some(status)),
                Err(ClientError::NotRunning(_)) => return Ok(None),
                // The socket of a daemon that was stopping when the client connected.
                Err(ClientError::Conversation(_)) if tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a GET request.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.wait(self.ask(Method::GET, path, &(), Duration::ZERO))
    }

    /// Sends a POST request with an idempotency key and the deadline `limit`.
    pub fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<A, ClientError> {
        self.wait(self.ask(Method::POST, path, body, limit))
    }

    /// Sends a DELETE request with an idempotency key and the deadline `limit`.
    pub fn delete<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<A, ClientError> {
        self.wait(self.ask(Method::DELETE, path, body, limit))
    }

    /// Fetches the metrics in the Prometheus text format. Await it with [`Client::wait`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let asked = self.answer(Method::GET, METRICS_PATH, Bytes::new(), None);
        let asked = timeout(ANSWER_WITHIN, asked).await;
        let (status, body) = asked.map_err(|_| ClientError::Silent(ANSWER_WITHIN))??;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let text = String::from_utf8(body.into());
        text.map_err(|error| ClientError::Conversation(error.to_string()))
    }

    /// Blocks this thread on `future`.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Sends a request with the deadline `limit`. If the future is dropped before the answer, the
    /// daemon undoes the request. Await it with [`Client::wait`].
    pub async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<A, ClientError> {
        let key = (method != Method::GET).then(|| self.keys.next());
        self.ask_with(method, path, body, key.as_deref(), limit).await
    }

    /// Sends a POST request that only reads, without an idempotency key, so that no answer is
    /// replayed.
    pub async fn query<A: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<A, ClientError> {
        self.ask_with(Method::POST, path, body, None, limit).await
    }

    async fn ask_with<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        key: Option<&str>,
        limit: Duration,
    ) -> Result<A, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(|e| ClientError::Request(e.to_string()))?;
        let limit = limit + ANSWER_WITHIN;
        let asked = timeout(limit, self.exchange(method, path, bytes.into(), key)).await;
        asked.map_err(|_| ClientError::Silent(limit))?
    }

    async fn exchange<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        key: Option<&str>,
    ) -> Result<A, ClientError> {
        let (status, body) = self.answer(method, path, body, key).await?;
        understand(status, &body)
    }

    /// Sends a request and returns the raw answer.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        key: Option<&str>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = self.connect()?;
        let broken = |error: hyper::Error| ClientError::Conversation(error.to_string());
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "inlay")
            .header("content-type", "application/json");
        let request = match key {
            Some(key) => request.header(wire::IDEMPOTENCY_KEY, key),
            None => request,
        };
        let request = request
            .body(Full::new(body))
            .map_err(|error| ClientError::Conversation(error.to_string()))?;
        let talk = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), wire::ANSWER_LEN_MAX).collect().await;
            let body = body.map_err(|error| ClientError::Conversation(error.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            answer = &mut talk => answer,
            // The connection may end with the last byte of the answer.
            _ = connection => talk.await,
        }
    }

    /// Connects to the daemon. Must be called within [`Client::wait`].
    pub(crate) fn connect(&self) -> Result<UnixStream, ClientError> {
        let stream = sockets::connect(&self.socket).and_then(|stream| {
            // The kernel accepts connections for a killed daemon until it has exited.
            if is_peer_dying(&stream)? {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        });
        stream.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.state())
            }
            _ => ClientError::io("connect to", &self.socket)(error),
        })
    }

    fn state(&self) -> PathBuf {
        self.socket.ancestors().nth(2).unwrap_or(&self.socket).to_owned()
    }
}

fn understand<A: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<A, ClientError> {
    if status.is_success() {
        return serde_json::from_slice(body)
            .map_err(|error| ClientError::Conversation(error.to_string()));
    }
    Err(refusal(status, body))
}

/// Converts an error answer to an error.
pub(crate) fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let answer = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        ErrorAnswer::new(ErrorKind::Unknown, &format!("the daemon answers {status} {text}"))
    });
    ClientError::Refused(answer)
}
