//! The end of the daemon.

use axum::Router;
use axum::extract::State;
use axum::routing::post;

use super::{ApiError, Json};
use crate::daemon::api::{STOP, StopAnswer, StopRequest};
use crate::daemon::service::Service;

pub(super) fn routes() -> Router<Service> {
    Router::new().route(STOP, post(stop))
}

async fn stop(
    State(service): State<Service>,
    Json(request): Json<StopRequest>,
) -> Result<axum::Json<StopAnswer>, ApiError> {
    let unmounted = service.stop(request.if_mounted).await?;
    let unmounted = unmounted.into_iter().map(|record| record.mountpoint).collect();
    Ok(axum::Json(StopAnswer { server: service.about().process, unmounted }))
}
