//! What can be looked at: the daemon itself, and what is attached.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};

use crate::daemon::api::{ATTACHED, AttachedShown, PREFETCH, PrefetchAnswer, STATUS, StatusAnswer};
use crate::daemon::service::Service;

pub(super) fn routes() -> Router<Service> {
    Router::new()
        .route(STATUS, get(status))
        .route(ATTACHED, get(attached))
        .route(PREFETCH, get(prefetch))
}

async fn status(State(service): State<Service>) -> Json<StatusAnswer> {
    Json(service.status())
}

async fn attached(State(service): State<Service>) -> Json<Vec<AttachedShown>> {
    Json(service.attached())
}

async fn prefetch(State(service): State<Service>) -> Json<PrefetchAnswer> {
    Json(service.prefetch())
}
