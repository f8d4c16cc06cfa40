//! Endpoint that stops the daemon.

use axum::extract::State;
use utoipa_axum::routes;

use super::{ApiError, Endpoints, Json};
use crate::daemon::api::{STOP, StopAnswer, StopRequest};
use crate::daemon::service::Service;

pub(super) fn routes() -> Endpoints {
    Endpoints::new().routes(routes!(stop))
}

/// Stop the daemon
///
/// The keeper and the FUSE mounts end as well. The daemon exits after this answer.
#[utoipa::path(
    post, path = STOP, tag = "daemon", request_body = StopRequest,
    responses((status = 200, description = "The daemon stops", body = StopAnswer))
)]

async fn stop(
    State(service): State<Service>,
    Json(request): Json<StopRequest>,
) -> Result<axum::Json<StopAnswer>, ApiError> {
    let unmounted = service.stop(request.if_mounted).await?;
    let unmounted = unmounted.into_iter().map(|record| record.mountpoint).collect();
    Ok(axum::Json(StopAnswer { server: service.about().process, unmounted }))
}
