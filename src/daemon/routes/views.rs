//! Read-only endpoints: status, attached snapshots, prefetching.

use axum::Json;
use axum::extract::State;
use utoipa_axum::routes;

use super::{ApiError, Endpoints};
use crate::daemon::api::{
    ATTACHED, AttachedSnapshot, PREFETCH, PrefetchAnswer, STATUS, StatusAnswer,
};
use crate::daemon::service::Service;

pub(super) fn routes() -> Endpoints {
    Endpoints::new().routes(routes!(status)).routes(routes!(attached)).routes(routes!(prefetch))
}

/// Get the daemon's status
#[utoipa::path(
    get, path = STATUS, tag = "daemon",
    responses((status = 200, description = "The status", body = StatusAnswer))
)]
async fn status(State(service): State<Service>) -> Result<Json<StatusAnswer>, ApiError> {
    Ok(Json(service.status().await?))
}

/// List attached snapshots
///
/// Each snapshot that is mounted or still in use, with its slot below the host's FUSE mounts.
#[utoipa::path(
    get, path = ATTACHED, tag = "snapshots",
    responses((status = 200, description = "The snapshots, by slot", body = Vec<AttachedSnapshot>))
)]
async fn attached(State(service): State<Service>) -> Json<Vec<AttachedSnapshot>> {
    Json(service.attached())
}

/// Get the progress of prefetching
#[utoipa::path(
    get, path = PREFETCH, tag = "snapshots",
    responses((status = 200, description = "Progress by store and by snapshot", body = PrefetchAnswer))
)]
async fn prefetch(State(service): State<Service>) -> Json<PrefetchAnswer> {
    Json(service.prefetch())
}
