//! The API: which path leads to what. Each file has the endpoints of one sort of thing.

mod counted;
mod deadline;
mod document;
mod endpoints;
mod metrics;
mod mounts;
mod sandboxes;
mod stop;
mod streams;
mod traces;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use axum::{Extension, Router};
use rustix::process::Pid;
use tokio::sync::Semaphore;
use utoipa::OpenApi;

use super::api::{ErrorAnswer, ErrorKind, REQUEST_LEN_MAX};
use super::error::DaemonError;
use super::listener::Listener;
use super::metrics::Metrics;
use super::once::{Once, once};
use super::service::Service;
use endpoints::Endpoints;

/// How many requests may be under way at once.
const REQUESTS_MAX: usize = 128;
/// No request takes longer, whatever its caller says.
const DEADLINE_MAX: Duration = Duration::from_mins(10);

/// All endpoints.
pub(super) fn router(service: Service, metrics: Metrics, requests: Once) -> Router {
    let turns = Arc::new(Semaphore::new(REQUESTS_MAX));
    endpoints()
        .router
        .layer(Extension(metrics))
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "there is no such endpoint")
        })
        .layer(middleware::from_fn_with_state(requests, once))
        .layer(middleware::from_fn(deadline::deadline))
        .layer(middleware::from_fn_with_state(turns, bounded))
        .layer(middleware::from_fn_with_state(service.clone(), counted::counted))
        .layer(DefaultBodyLimit::max(REQUEST_LEN_MAX))
        .with_state(service)
}

fn endpoints() -> Endpoints {
    views::routes()
        .merge(mounts::routes())
        .merge(sandboxes::routes())
        .merge(streams::routes())
        .merge(traces::routes())
        .merge(stop::routes())
        .merge(metrics::routes())
        .merge(document::routes())
}

/// Types that every endpoint has.
#[derive(OpenApi)]
#[openapi(components(schemas(ErrorAnswer)))]
struct Described;

fn document() -> utoipa::openapi::OpenApi {
    endpoints::finish(endpoints().document)
}

/// The description of all endpoints: an OpenAPI document.
pub fn openapi() -> Result<String, DaemonError> {
    let json = document().to_pretty_json();
    json.map(|json| json + "\n").map_err(|error| DaemonError::Request(error.to_string()))
}

async fn bounded(State(turns): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_turn) = turns.try_acquire() else {
        let text = "too many requests at once; try again";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, text)
            .into_response();
    };
    next.run(request).await
}

/// The process at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(Option<Pid>);

impl Peer {
    fn pid(self) -> Result<Pid, ApiError> {
        self.0.ok_or_else(|| {
            let text = "the caller is in a process namespace that the daemon can't see";
            ApiError::new(StatusCode::FORBIDDEN, ErrorKind::Failed, text)
        })
    }
}

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// A body that is JSON; what is wrong with one that is not is said as JSON, too.
struct Json<T>(T);

impl<T, S> FromRequest<S> for Json<T>
where
    axum::Json<T>: FromRequest<S, Rejection = JsonRejection>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(why) => Err(ApiError::new(why.status(), ErrorKind::Request, &why.body_text())),
        }
    }
}

/// An error as it is answered.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    answer: ErrorAnswer,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: ErrorKind, text: &str) -> Self {
        Self { status, answer: ErrorAnswer::new(kind, text) }
    }
}

impl From<DaemonError> for ApiError {
    fn from(error: DaemonError) -> Self {
        let kind = error.kind();
        let status = match kind {
            ErrorKind::Request => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound | ErrorKind::NotMounted => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Deadline => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Ending | ErrorKind::Busy => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Failed | ErrorKind::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut answer = Self::new(status, kind, &error.to_string());
        answer.answer.exit_code = error.exit_code();
        answer
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.answer)).into_response()
    }
}
