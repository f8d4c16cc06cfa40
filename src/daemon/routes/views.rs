//! What can be looked at: the daemon itself, and what is attached.

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use utoipa::OpenApi;

use super::Endpoints;
use crate::daemon::api::{ATTACHED, AttachedShown, PREFETCH, PrefetchAnswer, STATUS, StatusAnswer};
use crate::daemon::service::Service;

#[derive(OpenApi)]
#[openapi(paths(status, attached, prefetch))]
struct Docs;

pub(super) fn routes() -> Endpoints {
    Endpoints::of::<Docs>()
        .route(STATUS, get(status))
        .route(ATTACHED, get(attached))
        .route(PREFETCH, get(prefetch))
}

/// How the daemon is
#[utoipa::path(
    get, path = STATUS, tag = "daemon",
    responses((status = 200, description = "How it is", body = StatusAnswer))
)]
async fn status(State(service): State<Service>) -> Json<StatusAnswer> {
    Json(service.status())
}

/// What is attached
///
/// Each snapshot that somebody sees something of, with its slot below the host's FUSE mounts.
#[utoipa::path(
    get, path = ATTACHED, tag = "snapshots",
    responses((status = 200, description = "By slot", body = Vec<AttachedShown>))
)]
async fn attached(State(service): State<Service>) -> Json<Vec<AttachedShown>> {
    Json(service.attached())
}

/// What is loaded ahead of readers
#[utoipa::path(
    get, path = PREFETCH, tag = "snapshots",
    responses((status = 200, description = "By store and by snapshot", body = PrefetchAnswer))
)]
async fn prefetch(State(service): State<Service>) -> Json<PrefetchAnswer> {
    Json(service.prefetch())
}
