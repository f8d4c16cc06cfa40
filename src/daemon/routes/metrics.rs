//! Numbers for Prometheus.

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use super::ApiError;
use crate::daemon::metrics::{self, Metrics};
use crate::daemon::service::Service;

pub(super) fn routes(metrics: Metrics) -> Router<Service> {
    Router::new().route(metrics::PATH, get(scrape).with_state(metrics))
}

async fn scrape(State(metrics): State<Metrics>) -> Result<impl IntoResponse, ApiError> {
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.scrape().await?))
}
