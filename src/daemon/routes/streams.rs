//! What goes on as long as it does: programs in sandboxes with their input and output, logs, files.

use std::io;
use std::path::PathBuf;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;
use tokio::io::copy_bidirectional;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use utoipa::OpenApi;

use super::{ApiError, Endpoints, Json};
use crate::copy::Owners;
use crate::daemon::api::{AttachTo, CopiedInto, ErrorKind, SANDBOXES, word};
use crate::daemon::error::DaemonError;
use crate::daemon::sandboxes::{LogWanted, Pieces};
use crate::daemon::service::Service;
use crate::daemon::streams::UPGRADE as PROTOCOL;
use crate::mount::Owner;
use crate::sandbox::{ExecOptions, Output, Stream};

#[derive(OpenApi)]
#[openapi(paths(exec, attach, logs, files, put_files))]
struct Docs;

pub(super) fn routes() -> Endpoints {
    let of = |word| format!("{SANDBOXES}/{{sandbox}}/{word}");
    let files = get(files).put(put_files).layer(DefaultBodyLimit::disable());
    Endpoints::of::<Docs>()
        .route(&of(word::EXEC), post(exec))
        .route(&of(word::ATTACH), post(attach))
        .route(&of(word::LOGS), get(logs))
        .route(&of(word::FILES), files)
}

/// Run a program in a sandbox
///
/// The connection becomes a stream: send `Upgrade: inlay-stream`.
/// Frames follow both ways: one byte, which kind (0 what it reads, 1 what it prints, 2 what it says
/// besides, 3 the end of what it reads, 4 the size of its terminal, 5 a signal, 6 its exit code, 7 what
/// went wrong), the length in four bytes, the lowest first, and the bytes.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/exec", tag = "streams",
    params(("sandbox", description = "Name or id")),
    request_body(content = ExecOptions, example = json!({ "command": ["ls", "/"] })),
    responses(
        (status = 101, description = "It runs"),
        (status = 200, description = "It runs, and its output goes nowhere, as was wanted")
    )
)]
async fn exec(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (upgrade, options): (_, ExecOptions) = upgrading(request).await?;
    if options.output == Output::Discard {
        service.exec_in(&sandbox, options).await?;
        return Ok(axum::Json(serde_json::json!({ "started": true })).into_response());
    }
    let upgrade = upgrade.ok_or_else(not_upgraded)?;
    let stream = service.exec_in(&sandbox, options).await?;
    joined(&service, upgrade, stream)
}

/// Join a sandbox's first program
///
/// As with a program that is run in it.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/attach", tag = "streams",
    params(("sandbox", description = "Name or id")),
    request_body = AttachTo,
    responses((status = 101, description = "What it prints follows: from now on, or after what was shown"))
)]
async fn attach(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (upgrade, wanted): (_, AttachTo) = upgrading(request).await?;
    let upgrade = upgrade.ok_or_else(not_upgraded)?;
    let stream = service.attach_to(&sandbox, wanted).await?;
    joined(&service, upgrade, stream)
}

/// The connection that may become something else, and what was asked for.
async fn upgrading<T>(mut request: Request) -> Result<(Option<OnUpgrade>, T), ApiError>
where
    T: DeserializeOwned + 'static,
{
    let wanted = request.headers().get(UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| wanted);
    let Json(asked) =
        <Json<T> as axum::extract::FromRequest<()>>::from_request(request, &()).await?;
    Ok((upgrade, asked))
}

fn not_upgraded() -> ApiError {
    let text =
        format!("the connection must become a stream; send the header 'Upgrade: {PROTOCOL}'");
    ApiError::new(StatusCode::UPGRADE_REQUIRED, ErrorKind::Request, &text)
}

/// Joins the caller's connection with the sandbox's.
fn joined(service: &Service, upgrade: OnUpgrade, stream: Stream) -> Result<Response, ApiError> {
    let socket = stream.socket;
    let opened = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
    let mut inside = opened.map_err(DaemonError::io("talk to", "a monitor".as_ref()))?;
    service.while_serving(async move {
        match upgrade.await {
            Ok(outside) => {
                // Whoever leaves first ends it.
                let ended = copy_bidirectional(&mut TokioIo::new(outside), &mut inside).await;
                if let Err(error) = ended {
                    tracing::debug!(%error, "a stream to a sandbox broke");
                }
            }
            Err(error) => tracing::debug!(%error, "a connection did not become a stream"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Read what a sandbox's first program has printed
///
/// A line of JSON for each line.
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}/logs", tag = "streams",
    params(
        ("sandbox", description = "Name or id"),
        ("tail" = Option<u64>, Query, description = "Only so many of the last lines"),
        ("since_ns" = Option<u64>, Query, description = "Only from this moment on, in ns since 1970"),
        ("follow" = Option<u8>, Query, description = "1: until it has ended")
    ),
    responses((status = 200, description = "The lines", content_type = "application/x-ndjson"))
)]
async fn logs(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let number = |name| -> Result<Option<u64>, ApiError> {
        let Some(text) = parameter(&uri, name) else { return Ok(None) };
        let number = String::from_utf8(text).ok().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| bad(&format!("{name} must be a number")))
    };
    let wanted = LogWanted {
        tail: number("tail")?.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX)),
        since_ns: number("since_ns")?.unwrap_or(0),
        follow: number("follow")?.is_some_and(|follow| follow != 0),
    };
    let pieces = service.logs_of(&sandbox, wanted)?;
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body(pieces)).into_response())
}

/// Read a file or a directory of a sandbox
///
/// As a tar archive, whose first entry has the name of the object.
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}/files", tag = "streams",
    params(
        ("sandbox", description = "Name or id"),
        ("path" = String, Query, description = "An absolute path, percent-encoded")
    ),
    responses((status = 200, description = "The archive", content_type = "application/x-tar"))
)]
async fn files(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let pieces = service.copy_out(&sandbox, path(&uri)?).await?;
    Ok(([(CONTENT_TYPE, "application/x-tar")], body(pieces)).into_response())
}

/// Copy files into a sandbox
///
/// Into the path, if that is a directory, else to that name.
#[utoipa::path(
    put, path = "/v1/sandboxes/{sandbox}/files", tag = "streams",
    params(
        ("sandbox", description = "Name or id"),
        ("path" = String, Query, description = "An absolute path, percent-encoded"),
        ("owners" = Option<String>, Query, description = "`kept`: those of the archive, else root")
    ),
    request_body(content_type = "application/x-tar", description = "A tar archive"),
    responses((status = 200, description = "They are there", body = CopiedInto))
)]
async fn put_files(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    uri: Uri,
    body: Body,
) -> Result<axum::Json<CopiedInto>, ApiError> {
    let owners = match parameter(&uri, "owners").as_deref() {
        None => Owners::Given { uid: Owner::ROOT.uid, gid: Owner::ROOT.gid },
        Some(b"kept") => Owners::Kept,
        Some(_) => return Err(bad("owners can only be 'kept'")),
    };
    let (sender, receiver) = mpsc::channel(4);
    let copying = service.copy_in(&sandbox, path(&uri)?, owners, receiver);
    let feeding = async {
        let mut body = body.into_data_stream();
        while let Some(piece) = futures::StreamExt::next(&mut body).await {
            let piece: io::Result<Bytes> = piece.map_err(io::Error::other);
            if sender.send(piece).await.is_err() {
                // What is left is not wanted, and the answer says why.
                break;
            }
        }
        drop(sender);
    };
    let (copied, ()) = tokio::join!(copying, feeding);
    Ok(axum::Json(copied?))
}

fn body(mut pieces: Pieces) -> Body {
    Body::from_stream(futures::stream::poll_fn(move |context| pieces.poll_recv(context)))
}

/// The path in the query: absolute, and any bytes.
fn path(uri: &Uri) -> Result<PathBuf, ApiError> {
    use std::os::unix::ffi::OsStringExt;
    let bytes = parameter(uri, "path").filter(|path| path.starts_with(b"/"));
    let bytes = bytes.ok_or_else(|| bad("a path is needed: ?path=/…, percent-encoded"))?;
    Ok(std::ffi::OsString::from_vec(bytes).into())
}

fn parameter(uri: &Uri, name: &str) -> Option<Vec<u8>> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(key, _)| *key == name)?.1;
    Some(percent_decode(value.as_bytes()).collect())
}

fn bad(text: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, ErrorKind::Request, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_queries_may_be_any_bytes() {
        let of = |text: &str| path(&text.parse().unwrap()).ok();
        assert_eq!(of("/x?path=/a%20b"), Some("/a b".into()));
        assert_eq!(
            of("/x?owners=kept&path=/%ff").unwrap().as_os_str().as_encoded_bytes(),
            b"/\xff"
        );
        assert_eq!(of("/x?path=a"), None);
        assert_eq!(of("/x"), None);
    }
}
