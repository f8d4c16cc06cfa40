//! Endpoints of traces: begin, end.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use inlay_trace::record::TraceEvents;
use tokio::sync::mpsc;
use utoipa_axum::routes;

use super::{ApiError, Endpoints, Json};
use crate::daemon::api::{BeginTrace, TRACE_END, TRACES};
use crate::daemon::error::DaemonError;
use crate::daemon::service::Service;

pub(super) fn routes() -> Endpoints {
    Endpoints::new().routes(routes!(begin)).routes(routes!(end))
}

/// Begin a trace
///
/// Records reads of snapshots and the fetches for them, in memory, until the trace is ended. The
/// answer is one line of JSON (`TraceBegun`) and stays open: the trace lives as long as the
/// connection, and is discarded if the client disconnects. At most four traces run concurrently.
#[utoipa::path(
    post, path = TRACES, tag = "traces",
    request_body(content = BeginTrace, example = json!({ "snapshots": [], "events": 200_000 })),
    responses((
        status = 200, description = "Recording", content_type = "application/x-ndjson"
    ))
)]
async fn begin(
    State(service): State<Service>,
    Json(request): Json<BeginTrace>,
) -> Result<Response, ApiError> {
    let (begun, ended) = service.begin_trace(&request)?;
    let (sender, mut lines) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let mut line =
        serde_json::to_vec(&begun).map_err(|error| DaemonError::Request(error.to_string()))?;
    line.push(b'\n');
    // The channel has capacity for this line.
    drop(sender.try_send(Ok(line.into())));
    let watching = service.clone();
    service.while_serving(async move {
        tokio::select! {
            () = sender.closed() => watching.drop_trace(&begun.trace),
            () = ended.cancelled() => {}
        }
    });
    let body = Body::from_stream(futures::stream::poll_fn(move |cx| lines.poll_recv(cx)));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// End a trace
///
/// Returns the recorded events and discards the trace.
#[utoipa::path(
    post, path = TRACE_END, tag = "traces",
    params(("trace", description = "The id returned when the trace began")),
    responses((status = 200, description = "The recorded events", body = TraceEvents))
)]
async fn end(
    State(service): State<Service>,
    Path(trace): Path<String>,
) -> Result<axum::Json<TraceEvents>, ApiError> {
    Ok(axum::Json(service.end_trace(&trace).await?))
}
