//! Middleware for the `Inlay-Deadline` header: when the deadline passes, the request is cancelled,
//! as if the caller had disconnected.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use inlay_base::duration;

use super::{ApiError, DEADLINE_MAX};
use crate::daemon::api::{DEADLINE, ErrorKind};
use crate::daemon::error::DaemonError;

/// The middleware. Without the header, the deadline is [`DEADLINE_MAX`].
pub(super) async fn deadline(request: Request, next: Next) -> Response {
    let limit = match request.headers().get(DEADLINE).map(limit) {
        None => DEADLINE_MAX,
        Some(Some(limit)) => limit,
        Some(None) => {
            let text = format!("the {DEADLINE} is no length of time; say 500ms, 5s or 2m");
            return ApiError::new(StatusCode::BAD_REQUEST, ErrorKind::Request, &text)
                .into_response();
        }
    };
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => ApiError::from(DaemonError::Deadline(limit)).into_response(),
    }
}

fn limit(value: &HeaderValue) -> Option<Duration> {
    let limit = duration::parse(value.to_str().ok()?).ok()?;
    (!limit.is_zero()).then_some(limit.min(DEADLINE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_and_bounded() {
        let of = |text: &'static str| limit(&HeaderValue::from_static(text));
        assert_eq!(of("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(of("5s"), Some(Duration::from_secs(5)));
        assert_eq!(of("100h"), Some(DEADLINE_MAX));
        for nothing in ["", "0", "0s", "5", "-1s", "five", "99999999999999999999s"] {
            assert_eq!(of(nothing), None, "{nothing}");
        }
    }
}
