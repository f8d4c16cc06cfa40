//! Sandboxes: list, make, look at, start, stop, wait for, remove; what is mounted in them; snapshots of
//! them.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::routing::{get, post};

use utoipa::OpenApi;

use super::{ApiError, DEADLINE_MAX, Endpoints, Json};
use crate::daemon::api::{
    CreateSandbox, EndAnswer, MountInto, MountedIn, RemoveSandbox, SANDBOXES, SNAPSHOTS, SYNC,
    SandboxShown, SnapshotTaken, StopSandbox, StoppedSandbox, SyncAnswer, SyncRequest,
    TakeSnapshot, UmountFrom, UmountedFrom, WaitForEnd, word,
};
use crate::daemon::once::RequestKey;
use crate::daemon::service::Service;

/// The longest wait for the end of a sandbox: then its caller asks again.
const WAIT_MAX: Duration = Duration::from_mins(1);

type Answer<T> = Result<axum::Json<T>, ApiError>;
type Key = Option<Extension<RequestKey>>;

#[derive(OpenApi)]
#[openapi(paths(
    list, create, inspect, remove, start, stop, wait, mounts, mount, umount, snapshot, sync
))]
struct Docs;

pub(super) fn routes() -> Endpoints {
    let of = |word| format!("{SANDBOXES}/{{sandbox}}/{word}");
    Endpoints::of::<Docs>()
        .route(SANDBOXES, get(list).post(create))
        .route(&format!("{SANDBOXES}/{{sandbox}}"), get(inspect).delete(remove))
        .route(&of(word::START), post(start))
        .route(&of(word::STOP), post(stop))
        .route(&of(word::WAIT), post(wait))
        .route(&of(word::MOUNTS), get(mounts).post(mount).delete(umount))
        .route(SNAPSHOTS, post(snapshot))
        .route(SYNC, post(sync))
}

/// List the sandboxes
#[utoipa::path(
    get, path = "/v1/sandboxes", tag = "sandboxes",
    responses((status = 200, description = "The oldest first", body = Vec<SandboxShown>))
)]
async fn list(State(service): State<Service>) -> Answer<Vec<SandboxShown>> {
    Ok(axum::Json(service.sandbox_list().await?))
}

/// Make a sandbox
///
/// Should the caller go before the answer, nothing of it stays.
#[utoipa::path(
    post, path = "/v1/sandboxes", tag = "sandboxes",
    request_body(content = CreateSandbox, example = json!({
        "snapshot": "base", "store": { "url": null, "plain_http": false }, "cache": "kept",
        "name": "a", "deadline_ms": 60000
    })),
    responses((status = 200, description = "It is there, and started", body = SandboxShown))
)]
async fn create(
    State(service): State<Service>,
    key: Key,
    Json(request): Json<CreateSandbox>,
) -> Answer<SandboxShown> {
    let limit = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    let key = key.map(|Extension(key)| key);
    Ok(axum::Json(service.create_sandbox(request, key, limit).await?))
}

/// Look at a sandbox
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    responses((status = 200, description = "How it is", body = SandboxShown))
)]
async fn inspect(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
) -> Answer<SandboxShown> {
    Ok(axum::Json(service.sandbox(&sandbox).await?))
}

/// Remove a sandbox
///
/// With all that was changed in it.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    request_body(content = RemoveSandbox),
    responses((status = 200, description = "How it was", body = SandboxShown))
)]
async fn remove(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<RemoveSandbox>,
) -> Answer<SandboxShown> {
    Ok(axum::Json(service.remove_sandbox(&sandbox, request.if_running).await?))
}

/// Start the first program of a sandbox that was made to start later
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/start", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    responses((status = 200, description = "It is started", body = SandboxShown))
)]
async fn start(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
) -> Answer<SandboxShown> {
    service.start_sandbox(&sandbox).await?;
    Ok(axum::Json(service.sandbox(&sandbox).await?))
}

/// End a sandbox's processes
///
/// Before that, a snapshot is taken, if one is wanted; if that fails, the sandbox goes on.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/stop", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    request_body(content = StopSandbox),
    responses((status = 200, description = "They have ended", body = StoppedSandbox))
)]
async fn stop(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<StopSandbox>,
) -> Answer<StoppedSandbox> {
    Ok(axum::Json(service.stop_sandbox(&sandbox, request).await?))
}

/// Wait for the end of a sandbox's first program
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/wait", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    request_body(content = WaitForEnd),
    responses((status = 200, description = "Whether it has ended, and how", body = EndAnswer))
)]
async fn wait(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<WaitForEnd>,
) -> Answer<EndAnswer> {
    let limit = Duration::from_millis(request.deadline_ms).min(WAIT_MAX);
    Ok(axum::Json(EndAnswer { exit: service.wait_for_sandbox(&sandbox, limit).await? }))
}

/// List what is mounted in a sandbox
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}/mounts", tag = "live mounts",
    params(("sandbox", description = "Name or id")),
    responses((status = 200, description = "The oldest first", body = Vec<MountedIn>))
)]
async fn mounts(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
) -> Answer<Vec<MountedIn>> {
    Ok(axum::Json(service.sandbox(&sandbox).await?.mounts))
}

/// Mount a snapshot into a sandbox that runs
///
/// It replaces what is at the path, which is made if it is missing. Should the caller go before the
/// answer, nothing of the mount stays.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/mounts", tag = "live mounts",
    params(("sandbox", description = "Name or id")),
    request_body(content = MountInto, example = json!({
        "snapshot": "project", "store": { "url": null, "plain_http": false }, "cache": "kept",
        "path": "/project", "deadline_ms": 60000
    })),
    responses((status = 200, description = "Programs in the sandbox see it", body = MountedIn))
)]
async fn mount(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    key: Key,
    Json(request): Json<MountInto>,
) -> Answer<MountedIn> {
    let limit = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    let key = key.map(|Extension(key)| key);
    Ok(axum::Json(service.mount_into(&sandbox, request, key, limit).await?))
}

/// Unmount something from a sandbox
///
/// What was there before is seen again.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{sandbox}/mounts", tag = "live mounts",
    params(("sandbox", description = "Name or id")),
    request_body(content = UmountFrom),
    responses((status = 200, description = "It is gone", body = UmountedFrom))
)]
async fn umount(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<UmountFrom>,
) -> Answer<UmountedFrom> {
    Ok(axum::Json(service.umount_from(&sandbox, request).await?))
}

/// Take a snapshot of a sandbox
///
/// Of a directory as it sees it, or of its whole root. It stands still for a moment.
#[utoipa::path(
    post, path = SNAPSHOTS, tag = "snapshots",
    request_body(content = TakeSnapshot),
    responses((status = 200, description = "It is there", body = SnapshotTaken))
)]
async fn snapshot(
    State(service): State<Service>,
    Json(request): Json<TakeSnapshot>,
) -> Answer<SnapshotTaken> {
    Ok(axum::Json(service.take_snapshot(request).await?))
}

/// Wait until sealed snapshots are in their stores
#[utoipa::path(
    post, path = SYNC, tag = "snapshots", request_body = SyncRequest,
    responses((status = 200, description = "How many are not yet", body = SyncAnswer))
)]
async fn sync(
    State(service): State<Service>,
    Json(request): Json<SyncRequest>,
) -> axum::Json<SyncAnswer> {
    let limit = Duration::from_millis(request.deadline_ms).min(WAIT_MAX);
    let outboxes = service.snapshots().stores().outboxes();
    axum::Json(SyncAnswer { waiting: outboxes.drained(limit).await })
}
