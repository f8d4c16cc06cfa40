//! HTTP as the store's clients see it: errors keep what the server said.
//!
//! The library's own error for a bad status can't be named outside of it, so a layer below it
//! turns such an answer into a [`ServerAnswer`], which is found again among the causes.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use object_store::ClientOptions;
use object_store::HeaderMap;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

/// How much of an error's body is read.
const BODY_MAX: usize = 16 * 1024;
/// How much of what the server wrote is repeated.
const TEXT_MAX: usize = 200;

/// A server's answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The error's name, as S3 and Azure give it: `SlowDown`, `ExpiredToken`.
    pub code: Option<String>,
    /// What the server wrote for people, cut short.
    pub message: Option<String>,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
}

impl std::error::Error for ServerAnswer {}

impl fmt::Display for ServerAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        if let Some(code) = &self.code {
            write!(f, " {code}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}

impl ServerAnswer {
    /// Whether the same request may succeed later.
    pub(super) fn is_passing(&self) -> bool {
        let passing_code = ["SlowDown", "InternalError", "RequestTimeout", "ServerBusy"];
        matches!(self.status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            || self.code.as_deref().is_some_and(|code| passing_code.contains(&code))
    }

    /// Whether other credentials may help. Services name expiry in many ways, some with 400; an
    /// answer to HEAD has no body that could name it, so that one has to be taken for expiry too.
    pub(super) fn may_mean_expiry(&self) -> bool {
        let expiry = [
            "ExpiredToken",
            "ExpiredTokenException",
            "TokenRefreshRequired",
            "InvalidToken",
            "RequestExpired",
            "InvalidAccessKeyId",
            "AuthenticationFailed",
            "AuthenticationRequired",
            "InvalidAuthenticationInfo",
            "Unauthorized",
        ];
        match &self.code {
            Some(code) => matches!(self.status, 400 | 401 | 403) && expiry.contains(&code.as_str()),
            None => {
                matches!(self.status, 400 | 401 | 403) && self.message.is_none()
                    || self.status == 401
            }
        }
    }

    pub(super) fn advice(&self) -> &'static str {
        match (self.status, self.code.as_deref()) {
            (404, Some("NoSuchBucket")) => "create the bucket, or check the store's URL",
            (301 | 302 | 307 | 308, _) => "check the store's URL and region",
            (416, _) => "check the object with `inlay verify`; it is shorter than it should be",
            _ if self.is_passing() => "the store is overloaded or broken; try again later",
            _ => "check the store's URL and settings",
        }
    }

    fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let code = element(&text, "Code")
            .or_else(|| headers.get("x-ms-error-code")?.to_str().ok().map(str::to_owned));
        let message = match element(&text, "Message") {
            Some(message) => Some(message),
            None if code.is_some() || text.trim_start().starts_with('<') => None,
            None => Some(text.into_owned()),
        };
        let retry_after = headers.get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
        Self {
            status,
            code: code.as_deref().and_then(tidy),
            message: message.as_deref().and_then(tidy),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }
}

/// One line of printable text, cut short; nothing if nothing is left.
fn tidy(text: &str) -> Option<String> {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    (!short.is_empty()).then_some(short)
}

/// The text of the first XML element with this name. Errors of S3 and Azure are so flat that this
/// is all there is to read.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.to_owned())
}

/// Connects as the library does and puts the layer on top.
#[derive(Debug, Default)]
pub(super) struct Connector {
    inner: ReqwestConnector,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(TellingErrors { inner: self.inner.connect(options)? }))
    }
}

#[derive(Debug)]
struct TellingErrors {
    inner: HttpClient,
}

#[async_trait]
impl HttpService for TellingErrors {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.inner.execute(request).await?;
        let status = response.status();
        // The library's clients know what to make of these: conditions, and credentials that a
        // metadata service does not have.
        if status.is_success() || matches!(status.as_u16(), 304 | 409 | 412) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = start_of(body).await;
        let answer = ServerAnswer::new(status.as_u16(), &parts.headers, &body);
        // A missing object is the library's to report; a missing bucket must not look like one.
        if answer.status == 404 && answer.code.as_deref() != Some("NoSuchBucket") {
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(body)));
        }
        Err(HttpError::new(HttpErrorKind::Unknown, answer))
    }
}

/// The start of a body. One that breaks gives what had come: the status is worth more.
async fn start_of(body: HttpResponseBody) -> Bytes {
    let mut stream = body.bytes_stream();
    let mut start = Vec::new();
    while let Some(Ok(piece)) = stream.next().await {
        let left = BODY_MAX.saturating_sub(start.len());
        start.extend(piece.iter().take(left));
        if start.len() >= BODY_MAX {
            break;
        }
    }
    start.into()
}
