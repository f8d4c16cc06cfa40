//! Endpoints of streams: exec, attach, logs, file copies.

use std::io;
use std::path::PathBuf;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use inlay_mounts::Owner;
use inlay_sandbox::copy::{FilePrivileges, Holes, Keep, Owners};
use inlay_sandbox::{ExecOptions, Output, StdinFlow, Stream};
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, copy, split};
use tokio::net::UnixStream;
use utoipa_axum::router::UtoipaMethodRouterExt;
use utoipa_axum::routes;

use super::admission::Admitted;
use super::{ApiError, Endpoints, Json};
use crate::daemon::api::{AttachTo, CopiedInto, ErrorKind, STDIN_WINDOW};
use crate::daemon::error::DaemonError;
use crate::daemon::sandboxes::{LogWanted, Pieces};
use crate::daemon::service::Service;
use crate::daemon::streams::UPGRADE as PROTOCOL;

pub(super) fn routes() -> Endpoints {
    Endpoints::new()
        .routes(routes!(exec))
        .routes(routes!(attach))
        .routes(routes!(logs))
        .routes(routes!(files, put_files).layer(DefaultBodyLimit::disable()))
}

/// Run a program in a sandbox
///
/// Send `Upgrade: inlay-stream`: the connection becomes a stream of frames in both directions. A
/// frame is its kind (one byte), the length of its payload (four bytes, little-endian), and the
/// payload.
///
/// Kinds: 0 stdin, 1 stdout, 2 stderr, 3 stdin EOF, 4 terminal size, 5 signal, 6 exit code, 7
/// error, 8 stdin acknowledgement (how many bytes of stdin were consumed).
///
/// Flow control of stdin: a client that sends the header `inlay-stdin-window: 1` gets its window in
/// the same header of the answer, i.e. how many bytes of stdin it may have in flight: sent, but not
/// yet acknowledged by a frame of kind 8. Each frame counts as at least 64 bytes. For such a
/// client, signals are always delivered, whether or not the program reads its stdin.
///
/// The stream ends shortly after the program, even if processes that it started still hold its
/// stdout or stderr.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/exec", tag = "streams",
    params(("sandbox", description = "Name or id")),
    request_body(content = ExecOptions, example = json!({ "command": ["ls", "/"] })),
    responses(
        (status = 101, description = "The command runs; the connection is its stream"),
        (status = 200, description = "The command runs detached; its output is discarded")
    )
)]
async fn exec(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Upgrading { upgrade, admitted, flow, asked: options } =
        upgrading::<ExecOptions>(request).await?;
    if options.output == Output::Discard {
        service.exec_in(&sandbox, options, flow).await?;
        return Ok(axum::Json(serde_json::json!({ "started": true })).into_response());
    }
    let upgrade = upgrade.ok_or_else(not_upgraded)?;
    let stream = service.exec_in(&sandbox, options, flow).await?;
    joined(&service, upgrade, admitted, stream)
}

/// Attach to a sandbox's first program
///
/// The connection becomes a stream of frames, as for exec.
#[utoipa::path(
    post, path = "/v1/sandboxes/{sandbox}/attach", tag = "streams",
    params(("sandbox", description = "Name or id")),
    request_body = AttachTo,
    responses((status = 101, description = "The output follows, from now on or from the given position"))
)]
async fn attach(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Upgrading { upgrade, admitted, flow, asked: wanted } =
        upgrading::<AttachTo>(request).await?;
    let upgrade = upgrade.ok_or_else(not_upgraded)?;
    let stream = service.attach_to(&sandbox, wanted, flow).await?;
    joined(&service, upgrade, admitted, stream)
}

/// A request whose connection may be upgraded.
struct Upgrading<T> {
    /// `None`: the client did not request an upgrade.
    upgrade: Option<OnUpgrade>,
    /// The request's permit, which the stream keeps.
    admitted: Option<Admitted>,
    flow: StdinFlow,
    asked: T,
}

async fn upgrading<T>(mut request: Request) -> Result<Upgrading<T>, ApiError>
where
    T: DeserializeOwned + 'static,
{
    let wanted = request.headers().get(UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>().filter(|_| wanted);
    let admitted = request.extensions_mut().remove::<Admitted>();
    let flow = if request.headers().contains_key(STDIN_WINDOW) {
        StdinFlow::Windowed
    } else {
        StdinFlow::Unbounded
    };
    let Json(asked) =
        <Json<T> as axum::extract::FromRequest<()>>::from_request(request, &()).await?;
    Ok(Upgrading { upgrade, admitted, flow, asked })
}

fn not_upgraded() -> ApiError {
    let text =
        format!("the connection must become a stream; send the header 'Upgrade: {PROTOCOL}'");
    ApiError::new(StatusCode::UPGRADE_REQUIRED, ErrorKind::Request, &text)
}

/// Connects the upgraded client connection with the sandbox's monitor.
fn joined(
    service: &Service,
    upgrade: OnUpgrade,
    admitted: Option<Admitted>,
    stream: Stream,
) -> Result<Response, ApiError> {
    let (socket, window) = (stream.socket, stream.started.stdin_window);
    let opened = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
    let inside = opened.map_err(DaemonError::io("talk to", "a monitor".as_ref()))?;
    service.while_serving(async move {
        let _admitted = admitted;
        match upgrade.await {
            Ok(outside) => {
                if let Err(error) = pass(TokioIo::new(outside), inside).await {
                    tracing::debug!(%error, "a stream to a sandbox broke");
                }
            }
            Err(error) => tracing::debug!(%error, "a connection did not become a stream"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)];
    let mut answer = (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
    if let Some(window) = window {
        answer.headers_mut().insert(STDIN_WINDOW, HeaderValue::from(window));
    }
    Ok(answer)
}

/// Copies bytes both ways until the monitor closes its side, i.e. the program has ended or the
/// monitor noticed that the client is gone. A program that no longer reads stdin does not cut that
/// off.
async fn pass(outside: TokioIo<Upgraded>, mut inside: UnixStream) -> io::Result<()> {
    let (mut from_client, mut to_client) = split(outside);
    let (mut from_inside, mut to_inside) = inside.split();
    let inward = async {
        // An error means that the program has ended or the client is gone; the shutdown tells the
        // monitor.
        let _ = copy(&mut from_client, &mut to_inside).await;
        let _ = to_inside.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outward = async {
        copy(&mut from_inside, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::select! {
        ended = outward => ended,
        () = inward => Ok(()),
    }
}

/// Read the output of a sandbox's first program
///
/// One line of JSON per entry.
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}/logs", tag = "streams",
    params(
        ("sandbox", description = "Name or id"),
        ("tail" = Option<u64>, Query, description = "Maximum number of lines, counted from the end"),
        ("since_ns" = Option<u64>, Query, description = "Start time in nanoseconds since 1970"),
        ("follow" = Option<u8>, Query, description = "1: follow the log until the program exits")
    ),
    responses((status = 200, description = "The log entries", content_type = "application/x-ndjson"))
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
/// Returns a tar archive (POSIX `pax`). Its first entry is named after the file, or `.` if the path
/// ends in `/.`. Further names of a file are hard links; timestamps have fractions of seconds;
/// extended attributes are `SCHILY.xattr` records.
#[utoipa::path(
    get, path = "/v1/sandboxes/{sandbox}/files", tag = "streams",
    params(
        ("sandbox", description = "Name or id"),
        ("path" = String, Query, description = "An absolute path, percent-encoded"),
        ("holes" = Option<String>, Query,
            description = "`kept`: sparse files in GNU tar format 1.0; otherwise holes are zeros")
    ),
    responses((status = 200, description = "The archive", content_type = "application/x-tar"))
)]
async fn files(
    State(service): State<Service>,
    Path(sandbox): Path<String>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let holes = match parameter(&uri, "holes").as_deref() {
        None => Holes::Filled,
        Some(b"kept") => Holes::Kept,
        Some(_) => return Err(bad("holes can only be 'kept'")),
    };
    let pieces = service.copy_out(&sandbox, path(&uri)?, holes).await?;
    Ok(([(CONTENT_TYPE, "application/x-tar")], body(pieces)).into_response())
}

/// Copy files into a sandbox
///
/// Unpacks into the path if it is a directory, and to that name otherwise.
#[utoipa::path(
    put, path = "/v1/sandboxes/{sandbox}/files", tag = "streams",
    params(
        ("sandbox", description = "Name or id"),
        ("path" = String, Query, description = "An absolute path, percent-encoded"),
        ("owners" = Option<String>, Query, description = "`kept`: owners as in the archive; otherwise root")
    ),
    request_body(
        content_type = "application/x-tar",
        description = "A tar archive, plain or compressed with gzip or zstd"
    ),
    responses((status = 200, description = "The files are copied", body = CopiedInto))
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
    // Setuid bits and file capabilities are kept: the user of this host supplies the files.
    let keep = Keep { owners, privileges: FilePrivileges::Kept };
    let archive = body.into_data_stream().map(|piece| piece.map_err(io::Error::other));
    Ok(axum::Json(service.copy_in(&sandbox, path(&uri)?, keep, archive).await?))
}

fn body(mut pieces: Pieces) -> Body {
    Body::from_stream(futures::stream::poll_fn(move |context| pieces.poll_recv(context)))
}

/// Returns the path in the query, which must be absolute and may contain any bytes.
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
