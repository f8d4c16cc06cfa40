//! Endpoints of mounts: list, create, delete, wait until gone.

use std::time::Duration;

use axum::Extension;
use axum::extract::{ConnectInfo, State};

use utoipa_axum::routes;

use super::{ApiError, DEADLINE_MAX, Endpoints, Json, Peer};
use crate::daemon::api::{
    GONE, GoneAnswer, GoneRequest, MOUNTS, MountInfo, MountRequest, UmountAnswer, UmountRequest,
};
use crate::daemon::idempotency::RequestKey;
use crate::daemon::service::Service;

/// Maximum duration of a wait for a mount; callers poll again.
const WAIT_MAX: Duration = Duration::from_mins(1);

pub(super) fn routes() -> Endpoints {
    Endpoints::new().routes(routes!(list, mount, umount)).routes(routes!(gone))
}

/// List the mounts
#[utoipa::path(
    get, path = MOUNTS, tag = "mounts",
    responses((status = 200, description = "The mounts, oldest first", body = Vec<MountInfo>))
)]
async fn list(State(service): State<Service>) -> Result<axum::Json<Vec<MountInfo>>, ApiError> {
    Ok(axum::Json(service.mounts().await?))
}

/// Mount a snapshot
///
/// The mount point is resolved in the mount namespace of the calling process. If the caller
/// disconnects before the answer, the mount is undone.
#[utoipa::path(
    post, path = MOUNTS, tag = "mounts",
    request_body(content = MountRequest, example = json!({
        "snapshot": "base", "store": { "url": null, "plain_http": false }, "cache": "kept",
        "mountpoint": "/mnt/work", "view": { "writable": "beside" }, "deadline_ms": 60000
    })),
    responses((status = 200, description = "The snapshot is mounted", body = MountInfo))
)]
async fn mount(
    State(service): State<Service>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    key: Option<Extension<RequestKey>>,
    Json(request): Json<MountRequest>,
) -> Result<axum::Json<MountInfo>, ApiError> {
    let limit = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    Ok(axum::Json(
        service.mount(peer.process()?, request, key.map(|Extension(key)| key), limit).await?,
    ))
}

/// Unmount a directory
#[utoipa::path(
    delete, path = MOUNTS, tag = "mounts",
    request_body(content = UmountRequest, example = json!({
        "mountpoint": "/mnt/work", "how": "if-free", "changes": "stay"
    })),
    responses((status = 200, description = "The directory is unmounted", body = UmountAnswer))
)]
async fn umount(
    State(service): State<Service>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<UmountRequest>,
) -> Result<axum::Json<UmountAnswer>, ApiError> {
    Ok(axum::Json(service.umount(peer.process()?, request).await?))
}

/// Wait until a mount is gone
#[utoipa::path(
    post, path = GONE, tag = "mounts", request_body = GoneRequest,
    responses((status = 200, description = "Whether the mount is gone", body = GoneAnswer))
)]
async fn gone(
    State(service): State<Service>,
    Json(request): Json<GoneRequest>,
) -> axum::Json<GoneAnswer> {
    let limit = Duration::from_millis(request.deadline_ms).min(WAIT_MAX);
    axum::Json(GoneAnswer { gone: service.gone(request.mount, limit).await })
}
