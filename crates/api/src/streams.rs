//! Client side of streaming requests: long bodies in both directions, and upgraded connections.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::{Client, refusal};
use crate::error::ClientError;
use crate::wire;

/// Protocol of upgraded connections: [`inlay_sandbox::Frame`]s.
pub const UPGRADE: &str = "inlay-stream";

/// Deadline for the head of the daemon's answer.
const BEGIN_WITHIN: Duration = Duration::from_mins(1);

/// An answer that arrives in pieces.
pub struct Pieces {
    body: Incoming,
    connection: JoinHandle<()>,
}

impl Pieces {
    /// Returns the next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| ClientError::Conversation(error.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A connection upgraded to a stream of frames.
pub struct Joined {
    /// The stream.
    pub stream: TokioIo<Upgraded>,
    /// How many bytes of stdin may be in flight, each frame counting as [`Frame::stdin_cost`].
    /// `None`: the monitor is of an earlier version, which does not acknowledge stdin.
    ///
    /// [`Frame::stdin_cost`]: inlay_sandbox::Frame
    pub stdin_window: Option<usize>,
}

/// Sends the pieces of a request body. Dropping it ends the body.
pub type PieceSender = mpsc::Sender<inlay_sandbox::copy::Piece>;

impl Client {
    /// Sends a GET request with a long answer.
    pub async fn read(&self, path: &str) -> Result<Pieces, ClientError> {
        let request = request(Method::GET, path).body(Full::<Bytes>::default());
        let (answer, connection) = self.begin(built(request)?, Some(BEGIN_WITHIN)).await?;
        Ok(Pieces { body: answer.into_body(), connection })
    }

    /// Sends a POST request whose answer lasts as long as it is read.
    pub async fn follow(&self, path: &str, body: &impl Serialize) -> Result<Pieces, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(|e| ClientError::Request(e.to_string()))?;
        let request = request(Method::POST, path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)));
        let (answer, connection) = self.begin(built(request)?, Some(BEGIN_WITHIN)).await?;
        Ok(Pieces { body: answer.into_body(), connection })
    }

    /// Sends a PUT request with a long body, which `fill` feeds into the given sender. Returns the
    /// answer.
    pub async fn send(
        &self,
        path: &str,
        fill: impl FnOnce(PieceSender),
    ) -> Result<Bytes, ClientError> {
        let (sender, mut receiver) = mpsc::channel(inlay_sandbox::copy::PIECES);
        fill(sender);
        let pieces = futures::stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
        });
        let request = request(Method::PUT, path).body(StreamBody::new(pieces));
        let (answer, connection) = self.begin(built(request)?, None).await?;
        let body = Limited::new(answer.into_body(), wire::ANSWER_LEN_MAX).collect().await;
        connection.abort();
        let body = body.map_err(|error| ClientError::Conversation(error.to_string()))?;
        Ok(body.to_bytes())
    }

    /// Sends a POST request that upgrades its connection to a stream of frames.
    pub async fn upgrade(&self, path: &str, body: &impl Serialize) -> Result<Joined, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(|e| ClientError::Request(e.to_string()))?;
        let request = request(Method::POST, path)
            .header("content-type", "application/json")
            .header("connection", "upgrade")
            .header("upgrade", UPGRADE)
            .header(wire::STDIN_WINDOW, "1")
            .body(Full::new(Bytes::from(bytes)));
        let (answer, _connection) = self.begin(built(request)?, Some(BEGIN_WITHIN)).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let text = "it does not give the connection away";
            return Err(ClientError::Conversation(text.to_owned()));
        }
        let window = answer.headers().get(wire::STDIN_WINDOW);
        let stdin_window = window.and_then(|window| window.to_str().ok()?.parse().ok());
        let upgraded = hyper::upgrade::on(answer).await;
        let upgraded = upgraded.map_err(|error| ClientError::Conversation(error.to_string()))?;
        Ok(Joined { stream: TokioIo::new(upgraded), stdin_window })
    }

    /// Sends `request` and waits for the head of the answer. An error status becomes an error.
    async fn begin<B>(
        &self,
        request: Request<B>,
        limit: Option<Duration>,
    ) -> Result<(Response<Incoming>, JoinHandle<()>), ClientError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let broken = |error: hyper::Error| ClientError::Conversation(error.to_string());
        let stream = self.connect()?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // The task ends with the answer, or the holder of its handle aborts it.
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "the connection to the daemon broke");
            }
        });
        let talk = sender.send_request(request);
        let answer = match limit {
            Some(limit) => {
                let asked = timeout(limit, talk).await;
                asked.map_err(|_| ClientError::Silent(limit))?
            }
            None => talk.await,
        };
        let answer = answer.map_err(broken)?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((answer, connection));
        }
        let body = Limited::new(answer.into_body(), wire::ANSWER_LEN_MAX).collect().await;
        connection.abort();
        let body = body.map_err(|error| ClientError::Conversation(error.to_string()))?;
        Err(refusal(status, &body.to_bytes()))
    }
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "inlay")
}

fn built<B>(request: hyper::http::Result<Request<B>>) -> Result<Request<B>, ClientError> {
    request.map_err(|error| ClientError::Conversation(error.to_string()))
}
