//! Serves the OpenAPI document.

use std::sync::OnceLock;

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use utoipa_axum::routes;

use super::{ApiError, Endpoints};
use crate::daemon::api::OPENAPI;

pub(super) fn routes() -> Endpoints {
    Endpoints::new().routes(routes!(describe))
}

/// This document
#[utoipa::path(
    get, path = OPENAPI, tag = "daemon",
    responses((status = 200, description = "An OpenAPI document", content_type = "application/json"))
)]
async fn describe() -> Result<impl IntoResponse, ApiError> {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let make = || super::openapi().map(|made| DOCUMENT.get_or_init(|| made));
    let document = DOCUMENT.get().map_or_else(make, Ok)?;
    Ok(([(CONTENT_TYPE, "application/json")], document.as_str()))
}
