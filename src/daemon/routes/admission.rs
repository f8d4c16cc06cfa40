//! Middleware that bounds concurrent requests by class, so that streams and long polls can't starve
//! control requests.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ApiError;
use crate::daemon::api::{ErrorKind, GONE, MOUNTS, SANDBOXES, SNAPSHOTS, SYNC, TRACES, word};
use crate::daemon::limits::Limits;

/// Class of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Stream,
    Poll,
    Work,
    Control,
}

impl Class {
    /// Returns the class of a request for the endpoint at `route`, if there is one.
    fn of(method: &Method, route: Option<&str>) -> Self {
        let Some(route) = route else { return Self::Control };
        if let Some((SANDBOXES, action)) = route.split_once("/{sandbox}/") {
            return match action {
                word::EXEC | word::ATTACH | word::LOGS | word::FILES => Self::Stream,
                word::WAIT => Self::Poll,
                word::START | word::STOP => Self::Work,
                word::MOUNTS if method == Method::POST => Self::Work,
                _ => Self::Control,
            };
        }
        match route {
            TRACES => Self::Stream,
            GONE | SYNC => Self::Poll,
            MOUNTS | SANDBOXES | SNAPSHOTS if method == Method::POST => Self::Work,
            _ => Self::Control,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stream => "streams",
            Self::Poll => "long polls",
            Self::Work => "mounts, sandboxes and snapshots being made",
            Self::Control => "requests",
        }
    }
}

/// Remaining capacity of each class. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    streams: Arc<Semaphore>,
    polls: Arc<Semaphore>,
    work: Arc<Semaphore>,
    control: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(limits: &Limits) -> Self {
        let of = |most| Arc::new(Semaphore::new(most));
        Self {
            streams: of(limits.streams),
            polls: of(limits.polls),
            work: of(limits.work),
            control: of(limits.control),
        }
    }

    fn turns(&self, class: Class) -> &Arc<Semaphore> {
        match class {
            Class::Stream => &self.streams,
            Class::Poll => &self.polls,
            Class::Work => &self.work,
            Class::Control => &self.control,
        }
    }
}

/// Permit of a request in its class. A stream that outlives its request's answer keeps a clone.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    _turn: Arc<OwnedSemaphorePermit>,
}

/// The middleware. The permit is held until the answer is sent. Over the limit, the answer is 503.
pub(super) async fn admitted(
    State(admission): State<Admission>,
    mut request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let class = Class::of(request.method(), route);
    let Ok(turn) = Arc::clone(admission.turns(class)).try_acquire_owned() else {
        let text = format!("too many {} at once; try again", class.name());
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, &text)
            .into_response();
    };
    let admitted = Admitted { _turn: Arc::new(turn) };
    request.extensions_mut().insert(admitted.clone());
    next.run(request).await.map(|body| Body::new(Held { body, _admitted: admitted }))
}

/// Body of an answer that holds the permit of its request.
struct Held {
    body: Body,
    _admitted: Admitted,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::*;

    #[test]
    fn requests_that_wait_for_clients_or_stores_are_not_in_the_control_class() {
        let paths = document().paths.paths;
        let class = |method: Method, route: &str| {
            assert!(paths.contains_key(route), "{route}");
            Class::of(&method, Some(route))
        };
        for (method, route, expected) in [
            (Method::POST, "/v1/sandboxes/{sandbox}/exec", Class::Stream),
            (Method::GET, "/v1/sandboxes/{sandbox}/logs", Class::Stream),
            (Method::PUT, "/v1/sandboxes/{sandbox}/files", Class::Stream),
            (Method::POST, "/v1/traces", Class::Stream),
            (Method::POST, "/v1/sandboxes/{sandbox}/wait", Class::Poll),
            (Method::POST, "/v1/mounts/gone", Class::Poll),
            (Method::POST, "/v1/sync", Class::Poll),
            (Method::POST, "/v1/mounts", Class::Work),
            (Method::POST, "/v1/sandboxes", Class::Work),
            (Method::POST, "/v1/sandboxes/{sandbox}/mounts", Class::Work),
            (Method::DELETE, "/v1/sandboxes/{sandbox}/mounts", Class::Control),
            (Method::DELETE, "/v1/mounts", Class::Control),
            (Method::GET, "/v1/status", Class::Control),
            (Method::GET, "/metrics", Class::Control),
            (Method::POST, "/v1/stop", Class::Control),
        ] {
            assert_eq!(class(method, route), expected, "{route}");
        }
    }
}
