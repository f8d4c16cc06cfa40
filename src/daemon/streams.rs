//! Conversations with the daemon that are more than one answer: bytes that come or go as long as they
//! do, and connections that become something else.

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

use super::api;
use super::client::{Client, refusal};
use super::error::DaemonError;

/// The protocol that a connection goes over to: [`crate::sandbox::Frame`]s.
pub const UPGRADE: &str = "inlay-stream";

/// How long the daemon may take until it begins to answer.
const BEGIN_WITHIN: Duration = Duration::from_mins(1);

/// An answer that comes in pieces.
pub struct Pieces {
    body: Incoming,
    connection: JoinHandle<()>,
}

impl Pieces {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DaemonError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| DaemonError::Conversation(error.to_string()))?;
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

/// Where the pieces of a body are put. It ends when this is dropped.
pub type PieceSender = mpsc::Sender<crate::copy::Piece>;

impl Client {
    /// Reads something that may be long.
    pub async fn read(&self, path: &str) -> Result<Pieces, DaemonError> {
        let request = request(Method::GET, path).body(Full::<Bytes>::default());
        let (answer, connection) = self.begin(built(request)?, Some(BEGIN_WITHIN)).await?;
        Ok(Pieces { body: answer.into_body(), connection })
    }

    /// Asks for something that goes on as long as its answer is read.
    pub async fn follow(&self, path: &str, body: &impl Serialize) -> Result<Pieces, DaemonError> {
        let bytes = serde_json::to_vec(body).map_err(|e| DaemonError::Request(e.to_string()))?;
        let request = request(Method::POST, path)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)));
        let (answer, connection) = self.begin(built(request)?, Some(BEGIN_WITHIN)).await?;
        Ok(Pieces { body: answer.into_body(), connection })
    }

    /// Sends something that may be long: `fill` puts it into the sender that it gets. Returns the
    /// daemon's answer.
    pub async fn send(
        &self,
        path: &str,
        fill: impl FnOnce(PieceSender),
    ) -> Result<Bytes, DaemonError> {
        let (sender, mut receiver) = mpsc::channel(crate::copy::PIECES);
        fill(sender);
        let pieces = futures::stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
        });
        let request = request(Method::PUT, path).body(StreamBody::new(pieces));
        let (answer, connection) = self.begin(built(request)?, None).await?;
        let body = Limited::new(answer.into_body(), api::ANSWER_LEN_MAX).collect().await;
        connection.abort();
        let body = body.map_err(|error| DaemonError::Conversation(error.to_string()))?;
        Ok(body.to_bytes())
    }

    /// Asks for something whose connection becomes a stream of frames.
    pub async fn upgrade(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<TokioIo<Upgraded>, DaemonError> {
        let bytes = serde_json::to_vec(body).map_err(|e| DaemonError::Request(e.to_string()))?;
        let request = request(Method::POST, path)
            .header("content-type", "application/json")
            .header("connection", "upgrade")
            .header("upgrade", UPGRADE)
            .body(Full::new(Bytes::from(bytes)));
        let (answer, _connection) = self.begin(built(request)?, Some(BEGIN_WITHIN)).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let text = "it does not give the connection away";
            return Err(DaemonError::Conversation(text.to_owned()));
        }
        let upgraded = hyper::upgrade::on(answer).await;
        upgraded.map(TokioIo::new).map_err(|error| DaemonError::Conversation(error.to_string()))
    }

    /// Sends `request` and waits for the head of the answer. An answer that says no is an error.
    async fn begin<B>(
        &self,
        request: Request<B>,
        limit: Option<Duration>,
    ) -> Result<(Response<Incoming>, JoinHandle<()>), DaemonError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let broken = |error: hyper::Error| DaemonError::Conversation(error.to_string());
        let stream = self.connect()?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the answer, or is aborted by whoever holds its handle.
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a conversation with the daemon broke");
            }
        });
        let talk = sender.send_request(request);
        let answer = match limit {
            Some(limit) => {
                let asked = timeout(limit, talk).await;
                asked.map_err(|_| DaemonError::Silent(limit))?
            }
            None => talk.await,
        };
        let answer = answer.map_err(broken)?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok((answer, connection));
        }
        let body = Limited::new(answer.into_body(), api::ANSWER_LEN_MAX).collect().await;
        connection.abort();
        let body = body.map_err(|error| DaemonError::Conversation(error.to_string()))?;
        Err(refusal(status, &body.to_bytes()))
    }
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder().method(method).uri(path).header("host", "inlay")
}

fn built<B>(request: hyper::http::Result<Request<B>>) -> Result<Request<B>, DaemonError> {
    request.map_err(|error| DaemonError::Conversation(error.to_string()))
}
