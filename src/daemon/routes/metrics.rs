//! Endpoint of metrics.

use axum::Extension;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa_axum::routes;

use super::{ApiError, Endpoints};
use crate::daemon::metrics::{self, Metrics};

pub(super) fn routes() -> Endpoints {
    Endpoints::new().routes(routes!(scrape))
}

/// Get metrics in the Prometheus text format
#[utoipa::path(
    get, path = metrics::PATH, tag = "daemon",
    responses((status = 200, description = "In the text format of Prometheus",
        content_type = "text/plain", body = String))
)]
async fn scrape(Extension(metrics): Extension<Metrics>) -> Result<impl IntoResponse, ApiError> {
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.scrape().await?))
}
