//! Requests with a key are carried out once: who asks again gets the answer that was given.
//!
//! The header `Idempotency-Key` names a request to change something. While the first with a key runs,
//! others wait for its outcome; if it was given up, because its caller has gone, the next one runs.

mod answers;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use inlay_store::ids::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::api::{ErrorKind, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, REQUEST_LEN_MAX};
use super::error::DaemonError;
use super::routes::ApiError;
use crate::inject::{self, Step};
use answers::{Answers, BODY_LEN_MAX, Found};

/// The longest key, in bytes.
const KEY_LEN_MAX: usize = 128;
const JSON: &str = "application/json";

/// Requests with keys, those under way and those that were answered. Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Once {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// By the digests of their keys; with each, the request's digest, and who waits for its end.
    running: Mutex<HashMap<Digest, (Digest, watch::Receiver<()>)>>,
    answers: Mutex<Answers>,
}

/// The key of a request, for those who carry it out: a digest, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestKey(pub(super) String);

/// The only request with its key. Others go on when this is dropped.
struct Turn {
    once: Once,
    key: Digest,
    request: Digest,
    _done: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.once.inner.running.lock().remove(&self.key);
    }
}

/// What a request with a key has to do.
enum Begin {
    Run(Turn),
    Wait(watch::Receiver<()>),
    Answered(Response),
}

impl Once {
    /// For the daemon of `state`. Blocks.
    pub(super) fn open(state: &Path) -> Result<Self, DaemonError> {
        let answers = Answers::open(state).map_err(DaemonError::io("read answers in", state))?;
        let inner = Inner { running: Mutex::default(), answers: Mutex::new(answers) };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn begin(&self, key: Digest, request: Digest) -> Begin {
        let mut running = self.inner.running.lock();
        if let Some((other, done)) = running.get(&key) {
            return if *other == request {
                Begin::Wait(done.clone())
            } else {
                Begin::Answered(reused())
            };
        }
        // Not looked for before: the one that ran may have ended in between.
        match self.inner.answers.lock().find(&key, &request) {
            Found::Answer(given) => {
                let status = StatusCode::from_u16(given.status).unwrap_or_default();
                let replayed = HeaderValue::from_static("true");
                let json = HeaderValue::from_static(JSON);
                let headers = [
                    (CONTENT_TYPE, json),
                    (HeaderName::from_static(IDEMPOTENCY_REPLAYED), replayed),
                ];
                Begin::Answered((status, headers, given.body).into_response())
            }
            Found::Other => Begin::Answered(reused()),
            Found::Nothing => {
                let (sender, done) = watch::channel(());
                running.insert(key, (request, done));
                Begin::Run(Turn { once: self.clone(), key, request, _done: sender })
            }
        }
    }
}

/// The middleware.
pub(super) async fn once(State(once): State<Once>, request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::POST | Method::PUT | Method::DELETE) {
        return next.run(request).await;
    }
    let Some(key) = request.headers().get(IDEMPOTENCY_KEY) else { return next.run(request).await };
    if !is_key(key) {
        let text = format!(
            "the {IDEMPOTENCY_KEY} is no key; it must have 1 to {KEY_LEN_MAX} visible ASCII characters"
        );
        return refuse(StatusCode::BAD_REQUEST, ErrorKind::Request, &text);
    }
    let key = Digest::of(key.as_bytes());
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, REQUEST_LEN_MAX).await else {
        let text = format!("a request with an {IDEMPOTENCY_KEY} may have {REQUEST_LEN_MAX} bytes");
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::Request, &text);
    };
    let digest = digest(&parts.method, &parts.uri.to_string(), &body);
    let turn = loop {
        match once.begin(key, digest) {
            Begin::Run(turn) => break turn,
            Begin::Answered(answer) => return answer,
            // It only ever ends: with the turn of the one that runs.
            Begin::Wait(mut done) => while done.changed().await.is_ok() {},
        }
    };
    parts.extensions.insert(RequestKey(key.to_hex()));
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    if is_decided(&answer) { remember(turn, answer).await } else { answer }
}

/// Keeps an answer before it is given.
async fn remember(turn: Turn, answer: Response) -> Response {
    let (parts, body) = answer.into_parts();
    let Ok(body) = to_bytes(body, super::api::ANSWER_LEN_MAX).await else {
        let text = "the answer is too long";
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Failed, text);
    };
    let (status, kept) = (parts.status, body.clone());
    let keep = spawn_blocking(move || keep(&turn, status, &kept));
    if let Ok(Err(error)) = keep.await {
        // The work is done all the same.
        tracing::warn!(%error, "an answer is not remembered");
    }
    Response::from_parts(parts, Body::from(body))
}

fn keep(turn: &Turn, status: StatusCode, body: &Bytes) -> std::io::Result<()> {
    if body.len() > BODY_LEN_MAX {
        return Ok(());
    }
    let text = std::str::from_utf8(body).map_err(std::io::Error::other)?;
    turn.once.inner.answers.lock().keep(turn.key, turn.request, status, text)?;
    inject::point(Step::AnswerKept)
}

/// Whether the same request can have no other outcome, and the answer is one that can be kept.
fn is_decided(answer: &Response) -> bool {
    let status = answer.status();
    let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    let decided = status.is_success() || (status.is_client_error() && !passing.contains(&status));
    decided && answer.headers().get(CONTENT_TYPE).is_some_and(|found| found == JSON)
}

fn is_key(key: &HeaderValue) -> bool {
    let bytes = key.as_bytes();
    (1..=KEY_LEN_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn digest(method: &Method, uri: &str, body: &Bytes) -> Digest {
    let mut bytes = Vec::with_capacity(body.len() + uri.len() + 16);
    for text in [method.as_str(), uri] {
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
    }
    bytes.extend_from_slice(body);
    Digest::of(&bytes)
}

fn reused() -> Response {
    let text = format!(
        "this {IDEMPOTENCY_KEY} was used for another request; take a new key for each request"
    );
    refuse(StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::KeyReused, &text)
}

fn refuse(status: StatusCode, kind: ErrorKind, text: &str) -> Response {
    ApiError::new(status, kind, text).into_response()
}

#[cfg(test)]
mod tests;
