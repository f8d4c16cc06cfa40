//! Middleware that buffers request bodies, bounded in length and time, before handlers run.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;

use super::ApiError;
use crate::daemon::api::{COMMAND_REQUEST_LEN_MAX, ErrorKind, REQUEST_LEN_MAX, SANDBOXES, word};

/// Deadline for the body of a request.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The middleware. Uploads of files (PUT) are streamed instead: they may be long, and have their
/// own consumer.
pub(super) async fn whole(request: Request, next: Next) -> Response {
    if request.method() == Method::PUT {
        return next.run(request).await;
    }
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let limit = len_max(route);
    let (parts, body) = request.into_parts();
    let bytes = match tokio::time::timeout(BODY_WITHIN, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_too_long(&error) => {
            let text = format!("the request's body has more than {limit} bytes");
            return refused(StatusCode::PAYLOAD_TOO_LARGE, &text);
        }
        Ok(Err(error)) => {
            return refused(StatusCode::BAD_REQUEST, &format!("the body breaks off: {error}"));
        }
        Err(_) => {
            let text = format!("the request's body did not come within {BODY_WITHIN:?}");
            return refused(StatusCode::REQUEST_TIMEOUT, &text);
        }
    };
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

fn is_too_long(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<LengthLimitError>)
}

/// Returns the maximum body length of an endpoint: command lines may be as long as the kernel
/// allows.
fn len_max(route: Option<&str>) -> usize {
    let takes_commands = route.is_some_and(|route| {
        route == SANDBOXES
            || route.strip_prefix(SANDBOXES).and_then(|rest| rest.strip_prefix("/{sandbox}/"))
                == Some(word::EXEC)
    });
    if takes_commands { COMMAND_REQUEST_LEN_MAX } else { REQUEST_LEN_MAX }
}

fn refused(status: StatusCode, text: &str) -> Response {
    ApiError::new(status, ErrorKind::Request, text).into_response()
}
