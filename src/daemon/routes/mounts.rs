//! Mounts: list, make, end, wait for the end.

use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::routing::{get, post};

use super::{ApiError, DEADLINE_MAX, Json, Peer};
use crate::daemon::api::{
    GONE, GoneAnswer, GoneRequest, MOUNTS, MountRequest, MountShown, UmountAnswer, UmountRequest,
};
use crate::daemon::service::Service;

/// The longest wait for the end of a mount: then its caller asks again.
const WAIT_MAX: Duration = Duration::from_mins(1);

pub(super) fn routes() -> Router<Service> {
    Router::new().route(MOUNTS, get(list).post(mount).delete(umount)).route(GONE, post(gone))
}

async fn list(State(service): State<Service>) -> Result<axum::Json<Vec<MountShown>>, ApiError> {
    Ok(axum::Json(service.mounts().await?))
}

async fn mount(
    State(service): State<Service>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<MountRequest>,
) -> Result<axum::Json<MountShown>, ApiError> {
    let limit = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    Ok(axum::Json(service.mount(peer.pid()?, request, limit).await?))
}

async fn umount(
    State(service): State<Service>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(request): Json<UmountRequest>,
) -> Result<axum::Json<UmountAnswer>, ApiError> {
    Ok(axum::Json(service.umount(peer.pid()?, request).await?))
}

async fn gone(
    State(service): State<Service>,
    Json(request): Json<GoneRequest>,
) -> axum::Json<GoneAnswer> {
    let limit = Duration::from_millis(request.deadline_ms).min(WAIT_MAX);
    axum::Json(GoneAnswer { gone: service.gone(request.mount, limit).await })
}
