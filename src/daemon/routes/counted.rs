//! Middleware that counts and times requests by route, method and status.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;

use crate::daemon::service::Service;

/// Route label of unknown paths.
const OTHER: &str = "other";

/// The middleware. A request whose caller is gone before the answer is not counted.
pub(super) async fn counted(
    State(service): State<Service>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let method = named(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let answer = next.run(request).await;
    let route = route.as_ref().map_or(OTHER, MatchedPath::as_str);
    service.activity().answered(route, method, answer.status().as_u16(), began.elapsed());
    answer
}

/// Returns the method's label. Unknown methods share one, because callers can make them up.
fn named(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => OTHER,
    }
}
