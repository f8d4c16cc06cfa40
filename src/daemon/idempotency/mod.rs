//! Makes mutating requests idempotent by key: a repeated request is answered from its first
//! execution.
//!
//! The header `Idempotency-Key` names a mutating request. While the first request with a key runs,
//! others wait for its outcome; if its caller gives up, the next one runs. Only answers of requests
//! that took effect are kept: a refused request changed nothing and may succeed later.

mod answers;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use answers::{Answers, BODY_LEN_MAX, Done, Found, Lasts, UNWRITTEN_MAX, Unwritten};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use inlay_base::inject::{self, Step};
use inlay_store::ids::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::api::{
    COMMAND_REQUEST_LEN_MAX, ErrorKind, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, MOUNTS, word,
};
use super::error::DaemonError;
use super::routes::ApiError;
use super::timestamp::Moment;

/// Maximum length of a key, in bytes.
const KEY_LEN_MAX: usize = 128;
const JSON: &str = "application/json";
/// How long a request waits for a concurrent one with its key. Shorter than the limit of any
/// request.
const WAIT_MAX: Duration = Duration::from_mins(5);

/// Requests with keys: in flight, and answered. Clones share state.
#[derive(Debug, Clone)]
pub(super) struct Once {
    inner: Arc<RequestTable>,
}

#[derive(Debug)]
struct RequestTable {
    /// In flight, by digest of the key: the request's digest, and a receiver that closes when it
    /// ends.
    running: Mutex<HashMap<Digest, (Digest, watch::Receiver<()>)>>,
    answers: Mutex<Answers>,
    wait_max: Duration,
}

/// Key of a request for its handler: a digest in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestKey(pub(super) String);

/// Exclusive right to run the request with its key. Dropping it wakes the waiters.
struct Turn {
    once: Once,
    key: Digest,
    request: Digest,
    twice: Twice,
    _done: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.once.inner.running.lock().remove(&self.key);
    }
}

/// Effect of running a request a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twice {
    /// It takes effect again, e.g. creates a second sandbox.
    Again,
    /// It changes nothing: it removes, unmounts or stops what it names.
    NoChange,
}

impl Twice {
    fn of(method: &Method, path: &str) -> Self {
        let ends = *method == Method::DELETE || path.rsplit('/').next() == Some(word::STOP);
        if ends { Self::NoChange } else { Self::Again }
    }
}

/// Next step of a request with a key.
enum Begin {
    Run(Turn),
    Wait(watch::Receiver<()>),
    /// The key is in use for a different request.
    Reused,
}

impl Once {
    /// Opens the answers in `state`. Blocks.
    pub(super) fn open(state: &Path) -> Result<Self, DaemonError> {
        Self::waiting_at_most(WAIT_MAX, state)
    }

    fn waiting_at_most(wait_max: Duration, state: &Path) -> Result<Self, DaemonError> {
        let answers = Answers::open(state, &Moment::now());
        let answers = answers.map_err(DaemonError::io("read answers in", state))?;
        let inner =
            RequestTable { running: Mutex::default(), answers: Mutex::new(answers), wait_max };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Waits until the request may run. An `Err` is the answer to return instead.
    async fn turn(
        &self,
        key: Digest,
        request: Digest,
        twice: Twice,
    ) -> Result<Turn, Box<Response>> {
        loop {
            match self.begin(key, request, twice) {
                Begin::Run(turn) => return turn.unless_answered().await,
                Begin::Reused => return Err(Box::new(reused())),
                // Never sent to: the channel closes when the running request drops its turn.
                Begin::Wait(mut done) => while done.changed().await.is_ok() {},
            }
        }
    }

    fn begin(&self, key: Digest, request: Digest, twice: Twice) -> Begin {
        let mut running = self.inner.running.lock();
        if let Some((other, done)) = running.get(&key) {
            return if *other == request { Begin::Wait(done.clone()) } else { Begin::Reused };
        }
        let (sender, done) = watch::channel(());
        running.insert(key, (request, done));
        Begin::Run(Turn { once: self.clone(), key, request, twice, _done: sender })
    }
}

impl Turn {
    /// Returns the turn unless the request was executed before. The previous holder of the turn has
    /// stored its answer by now, because it does so before dropping the turn.
    async fn unless_answered(self) -> Result<Self, Box<Response>> {
        let found = spawn_blocking(move || {
            let mut answers = self.once.inner.answers.lock();
            let found = answers.find(&self.key, &self.request, &Moment::now());
            drop(answers);
            (self, found)
        });
        let Ok((turn, found)) = found.await else {
            let error = ApiError::from(DaemonError::Panicked);
            return Err(Box::new(error.into_response()));
        };
        Err(Box::new(match found {
            Found::Nothing => return Ok(turn),
            // Only what ends something can make room on the disk.
            Found::NoRoom if turn.twice == Twice::NoChange => return Ok(turn),
            Found::NoRoom => no_room(),
            Found::Answer(given) if given.cut => cut(),
            Found::Answer(given) => {
                let status = StatusCode::from_u16(given.status).unwrap_or_default();
                let replayed = HeaderValue::from_static("true");
                let json = HeaderValue::from_static(JSON);
                let headers = [
                    (CONTENT_TYPE, json),
                    (HeaderName::from_static(IDEMPOTENCY_REPLAYED), replayed),
                ];
                (status, headers, given.body).into_response()
            }
            Found::Other => reused(),
            Found::Damaged(why) => damaged(&why),
        }))
    }
}

/// Middleware that applies idempotency keys.
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
    let Ok(body) = to_bytes(body, COMMAND_REQUEST_LEN_MAX).await else {
        let text =
            format!("a request with an {IDEMPOTENCY_KEY} may have {COMMAND_REQUEST_LEN_MAX} bytes");
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::Request, &text);
    };
    let digest = digest(&parts.method, &parts.uri.to_string(), &body);
    let lasts = lasts(&parts.method, parts.uri.path());
    let wait_max = once.inner.wait_max;
    let twice = Twice::of(&parts.method, parts.uri.path());
    let turn = match timeout(wait_max, once.turn(key, digest, twice)).await {
        Ok(Ok(turn)) => turn,
        Ok(Err(answer)) => return *answer,
        Err(_) => {
            let text = format!(
                "a request with this {IDEMPOTENCY_KEY} is still under way after {wait_max:?}; ask \
                 again with the same key"
            );
            return refuse(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, &text);
        }
    };
    parts.extensions.insert(RequestKey(key.to_hex()));
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    if took_effect(&answer) { remember(turn, lasts, answer).await } else { answer }
}

/// Stores an answer before it is returned.
async fn remember(turn: Turn, lasts: Lasts, answer: Response) -> Response {
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, super::api::ANSWER_LEN_MAX).await.ok();
    let (status, kept) = (parts.status, body.clone());
    let keep = spawn_blocking(move || keep(&turn, lasts, status, kept.as_ref()));
    if let Ok(Err(error)) = keep.await {
        // The request took effect nonetheless. This daemon knows the answer.
        tracing::warn!(%error, "can't store an answer; the next daemon will not know it");
    }
    body.map_or_else(cut, |body| Response::from_parts(parts, Body::from(body)))
}

fn keep(
    turn: &Turn,
    lasts: Lasts,
    status: StatusCode,
    body: Option<&Bytes>,
) -> std::io::Result<()> {
    let text = body.map(|body| std::str::from_utf8(body)).transpose();
    let body = text.map_err(std::io::Error::other)?.filter(|text| text.len() <= BODY_LEN_MAX);
    let unwritten = match turn.twice {
        Twice::Again => Unwritten::Kept,
        Twice::NoChange => Unwritten::KeptWithRoom,
    };
    let done = Done { key: turn.key, request: turn.request, status, body, lasts, unwritten };
    turn.once.inner.answers.lock().keep(done, &Moment::now())?;
    inject::point(Step::AnswerKept)
}

/// Whether the request changed state, so that it must not run again. Any other answer is a refusal
/// or a failure, and partial work was undone. An answer that is not JSON is a stream.
fn took_effect(answer: &Response) -> bool {
    answer.status().is_success()
        && answer.headers().get(CONTENT_TYPE).is_some_and(|found| found == JSON)
}

/// Host mounts and sandbox processes end with the boot, and a repetition after it wants them again.
/// The effects of all other requests are on disk.
fn lasts(method: &Method, path: &str) -> Lasts {
    let last = path.rsplit('/').next();
    let until_boot = *method == Method::POST && (path == MOUNTS || last == Some(word::START));
    if until_boot { Lasts::UntilBoot } else { Lasts::Forever }
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

fn cut() -> Response {
    let text = format!(
        "the request with this {IDEMPOTENCY_KEY} was carried out, and its answer was too long to be \
         kept; look at what it has done"
    );
    refuse(StatusCode::CONFLICT, ErrorKind::Conflict, &text)
}

fn damaged(why: &str) -> Response {
    let text = format!(
        "a request with this {IDEMPOTENCY_KEY} may have been carried out, but its answer can't be read \
         ({why}); look at what it has done, then use a new key"
    );
    refuse(StatusCode::CONFLICT, ErrorKind::Conflict, &text)
}

fn no_room() -> Response {
    let text = format!(
        "{UNWRITTEN_MAX} answers could not be written to the state directory, so a repeated request could run \
         twice; make room on its disk, e.g. remove a sandbox, then retry"
    );
    refuse(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, &text)
}

fn refuse(status: StatusCode, kind: ErrorKind, text: &str) -> Response {
    ApiError::new(status, kind, text).into_response()
}

#[cfg(test)]
mod tests;
