//! HTTP routes of the API: one file per kind of endpoint.

mod admission;
mod body;
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

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use endpoints::Endpoints;
use inlay_mounts::Process;
use utoipa::OpenApi;

use super::api::{ErrorAnswer, ErrorKind, TraceBegun};
use super::error::DaemonError;
use super::idempotency::{Once, once};
use super::limits::Limits;
use super::metrics::Metrics;
use super::service::Service;

/// Upper bound of every request's deadline.
const DEADLINE_MAX: Duration = Duration::from_mins(10);

/// Builds the router of all endpoints.
pub(super) fn router(
    service: Service,
    metrics: Metrics,
    requests: Once,
    limits: &Limits,
) -> Router {
    let admission = admission::Admission::new(limits);
    let (routes, _) = endpoints().split_for_parts();
    routes
        .layer(Extension(metrics))
        .fallback(|| async {
            ApiError::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "there is no such endpoint")
        })
        .layer(middleware::from_fn_with_state(requests, once))
        .layer(middleware::from_fn(body::whole))
        .layer(middleware::from_fn(deadline::deadline))
        .layer(middleware::from_fn_with_state(admission, admission::admitted))
        .layer(middleware::from_fn_with_state(service.clone(), counted::counted))
        // Bodies read as a whole have their own limits.
        .layer(DefaultBodyLimit::disable())
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

/// Schemas shared by all endpoints.
#[derive(OpenApi)]
#[openapi(components(schemas(ErrorAnswer, TraceBegun)))]
struct Described;

fn document() -> utoipa::openapi::OpenApi {
    endpoints::finish(endpoints().into_openapi())
}

/// Returns the OpenAPI document of all endpoints.
pub fn openapi() -> Result<String, DaemonError> {
    let json = document().to_pretty_json();
    json.map(|json| json + "\n").map_err(|error| DaemonError::Request(error.to_string()))
}

/// The process that connected; `None` if it can't be determined.
#[derive(Debug, Clone)]
pub(super) struct Peer(Option<Process>);

impl Peer {
    pub(super) fn new(process: Option<Process>) -> Self {
        Self(process)
    }

    fn process(self) -> Result<Process, ApiError> {
        self.0.ok_or_else(|| {
            let text =
                "the caller has ended, or is in a process namespace that the daemon can't see";
            ApiError::new(StatusCode::FORBIDDEN, ErrorKind::Failed, text)
        })
    }
}

/// Extracts a JSON body; unlike axum's, rejects with a JSON error.
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

/// An error answer.
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
