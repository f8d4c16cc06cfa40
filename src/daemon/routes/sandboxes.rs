//! Endpoints of sandboxes: lifecycle, live mounts and snapshots.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use tokio::task::spawn_blocking;

use utoipa_axum::routes;

use super::{ApiError, DEADLINE_MAX, Endpoints, Json};
use crate::daemon::api::{
    ConflictingNames, CreateSandbox, EndAnswer, MountInto, MountedIn, RemoveSandbox, SNAPSHOTS,
    SYNC, SandboxInfo, SnapshotTaken, StopSandbox, StoppedSandbox, SyncAnswer, SyncRequest,
    TakeSnapshot, UmountFrom, UmountedFrom, WaitForEnd,
};
use crate::daemon::error::DaemonError;
use crate::daemon::idempotency::RequestKey;
use crate::daemon::service::Service;

/// Maximum duration of a wait for a sandbox; callers poll again.
const WAIT_MAX: Duration = Duration::from_mins(1);

type SandboxAnswer<T> = Result<axum::Json<T>, ApiError>;
type IdempotencyKey = Option<Extension<RequestKey>>;

pub(super) fn routes() -> Endpoints {
    Endpoints::new()
        .routes(routes!(list, create))
        .routes(routes!(inspect, remove))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(wait))
        .routes(routes!(mounts, mount, umount))
        .routes(routes!(snapshot))
        .routes(routes!(sync))
}

/// List sandboxes
#[utoipa::path(
    get, path = "/v1/sandboxes", tag = "sandboxes",
    responses((status = 200, description = "The sandboxes, oldest first", body = Vec<SandboxInfo>))
)]
async fn list(State(service): State<Service>) -> SandboxAnswer<Vec<SandboxInfo>> {
    Ok(axum::Json(service.sandbox_list().await?))
}

/// Create a sandbox
///
/// If the caller disconnects before the answer, the sandbox is removed.
#[utoipa::path(
    post, path = "/v1/sandboxes", tag = "sandboxes",
    request_body(content = CreateSandbox, example = json!({
        "snapshot": "base", "store": { "url": null, "plain_http": false }, "cache": "kept",
        "name": "a", "deadline_ms": 60000
    })),
    responses((status = 200, description = "Created and started", body = SandboxInfo))
)]
async fn create(
    State(service): State<Service>,
    key: IdempotencyKey,
    Json(request): Json<CreateSandbox>,
) -> SandboxAnswer<SandboxInfo> {
    let limit = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    let key = key.map(|Extension(key)| key);
    Ok(axum::Json(service.create_sandbox(request, key, limit).await?))
}

/// Inspect a sandbox
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    responses((status = 200, description = "The sandbox", body = SandboxInfo))
)]
async fn inspect(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
) -> SandboxAnswer<SandboxInfo> {
    Ok(axum::Json(service.sandbox(&sandbox).await?))
}

/// Remove a sandbox
///
/// Its changes are removed with it.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{sandbox}", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    request_body(content = RemoveSandbox),
    responses((status = 200, description = "The sandbox before its removal", body = SandboxInfo))
)]
async fn remove(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<RemoveSandbox>,
) -> SandboxAnswer<SandboxInfo> {
    Ok(axum::Json(service.remove_sandbox(&sandbox, request.if_running).await?))
}

/// Start the first program of a sandbox created with `start: later`
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/start", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    responses((status = 200, description = "Started", body = SandboxInfo))
)]
async fn start(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
) -> SandboxAnswer<SandboxInfo> {
    service.start_sandbox(&sandbox).await?;
    Ok(axum::Json(service.sandbox(&sandbox).await?))
}

/// Stop a sandbox's processes
///
/// First takes a snapshot, if one is requested; if that fails, the sandbox keeps running.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/stop", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    request_body(content = StopSandbox),
    responses((status = 200, description = "The processes have exited", body = StoppedSandbox))
)]
async fn stop(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<StopSandbox>,
) -> SandboxAnswer<StoppedSandbox> {
    Ok(axum::Json(service.stop_sandbox(&sandbox, request).await?))
}

/// Wait for the end of a sandbox's first program
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/wait", tag = "sandboxes",
    params(("sandbox", description = "Name or id")),
    request_body(content = WaitForEnd),
    responses((status = 200, description = "Whether the program has exited, and its exit code", body = EndAnswer))
)]
async fn wait(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<WaitForEnd>,
) -> SandboxAnswer<EndAnswer> {
    let limit = Duration::from_millis(request.deadline_ms).min(WAIT_MAX);
    Ok(axum::Json(EndAnswer { exit: service.wait_for_sandbox(&sandbox, limit).await? }))
}

/// List the mounts in a sandbox
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}/mounts", tag = "live mounts",
    params(("sandbox", description = "Name or id")),
    responses((status = 200, description = "The mounts, oldest first", body = Vec<MountedIn>))
)]
async fn mounts(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
) -> SandboxAnswer<Vec<MountedIn>> {
    Ok(axum::Json(service.sandbox(&sandbox).await?.mounts))
}

/// Mount a snapshot into a running sandbox
///
/// The mount covers the path, which is created if it is missing. If the caller disconnects before
/// the answer, the mount is undone.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/mounts", tag = "live mounts",
    params(("sandbox", description = "Name or id")),
    request_body(content = MountInto, example = json!({
        "snapshot": "project", "store": { "url": null, "plain_http": false }, "cache": "kept",
        "path": "/project", "deadline_ms": 60000
    })),
    responses((status = 200, description = "The snapshot is mounted", body = MountedIn))
)]
async fn mount(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    key: IdempotencyKey,
    Json(request): Json<MountInto>,
) -> SandboxAnswer<MountedIn> {
    let limit = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    let key = key.map(|Extension(key)| key);
    Ok(axum::Json(service.mount_into(&sandbox, request, key, limit).await?))
}

/// Unmount a snapshot from a sandbox
///
/// Reveals again what the mount covered.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{sandbox}/mounts", tag = "live mounts",
    params(("sandbox", description = "Name or id")),
    request_body(content = UmountFrom),
    responses((status = 200, description = "The snapshot is unmounted", body = UmountedFrom))
)]
async fn umount(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    Json(request): Json<UmountFrom>,
) -> SandboxAnswer<UmountedFrom> {
    Ok(axum::Json(service.umount_from(&sandbox, request).await?))
}

/// Take a snapshot of a sandbox
///
/// Captures a directory as the sandbox sees it, or the whole root. The sandbox is frozen for a
/// moment.
#[utoipa::path(
    post, path = SNAPSHOTS, tag = "snapshots",
    request_body(content = TakeSnapshot),
    responses((status = 200, description = "The snapshot is taken", body = SnapshotTaken))
)]
async fn snapshot(
    State(service): State<Service>,
    Json(request): Json<TakeSnapshot>,
) -> SandboxAnswer<SnapshotTaken> {
    Ok(axum::Json(service.take_snapshot(request).await?))
}

/// Wait until sealed snapshots are in their stores
#[utoipa::path(
    post, path = SYNC, tag = "snapshots", request_body = SyncRequest,
    responses((status = 200, description = "The snapshots not yet stored, with reasons", body = SyncAnswer))
)]
async fn sync(
    State(service): State<Service>,
    Json(request): Json<SyncRequest>,
) -> SandboxAnswer<SyncAnswer> {
    let limit = Duration::from_millis(request.deadline_ms).min(WAIT_MAX);
    let outboxes = service.snapshots().stores().outboxes().clone();
    let marked = outboxes.drained(limit).await;
    let report = spawn_blocking(move || {
        if request.names == ConflictingNames::Leave {
            let dir = std::path::Path::new("outbox");
            outboxes.leave_names().map_err(DaemonError::io("forget name conflicts in", dir))?;
        }
        Ok::<_, DaemonError>(outboxes.report_before(marked))
    });
    Ok(axum::Json(report.await.map_err(|_| DaemonError::Panicked)??))
}
