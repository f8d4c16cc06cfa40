//! The HTTP layer below `object_store`, which preserves the server's error responses.
//!
//! `object_store`'s own error for a bad status is private. This layer therefore converts such a
//! response into a [`ServerAnswer`], which callers find again in the error's chain of causes.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use object_store::ClientConfigKey;
use object_store::ClientOptions;
use object_store::HeaderMap;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::config::PlainHttp;
use super::open::CONNECT_MAX;
use super::redirect::Redirects;

/// The maximum length read of an error's body, in bytes.
const BODY_MAX: usize = 16 * 1024;
/// The maximum length quoted of a server's message, in characters.
const TEXT_MAX: usize = 200;

/// An error response of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The error code of S3 or Azure: `SlowDown`, `ExpiredToken`.
    pub code: Option<String>,
    /// The message of the server for humans, truncated.
    pub message: Option<String>,
    /// How long the server asks clients to wait before a retry.
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
    /// Returns whether the error is transient.
    pub(super) fn is_passing(&self) -> bool {
        let passing_code = ["SlowDown", "InternalError", "RequestTimeout", "ServerBusy"];
        matches!(self.status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
            || self.code.as_deref().is_some_and(|code| passing_code.contains(&code))
    }

    /// Returns whether fresh credentials may help. Services signal expiry in many ways, some with
    /// status 400. A response to HEAD has no body with a code, so it must be treated as expiry too.
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

    /// Parses an error response.
    fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let code = element(&text, "Code")
            .or_else(|| headers.get("x-ms-error-code")?.to_str().ok().map(str::to_owned));
        let message = match element(&text, "Message") {
            Some(message) => Some(message),
            None if code.is_some() || text.trim_start().starts_with('<') => None,
            None => Some(text.into_owned()),
        };
        Self {
            status,
            code: code.as_deref().and_then(tidy),
            message: message.as_deref().and_then(tidy),
            retry_after: headers
                .get("retry-after")
                .and_then(|value| retry_after(value.to_str().ok()?, SystemTime::now())),
        }
    }
}

/// Parses `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). A date in the past is no wait.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value.trim()).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// Returns one line of printable text, truncated; `None` if it is empty.
fn tidy(text: &str) -> Option<String> {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = line.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
    (!short.is_empty()).then_some(short)
}

/// Returns the text of the first XML element `name`. The errors of S3 and Azure are flat, so this
/// needs no XML parser.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.to_owned())
}

/// Connects with the settings of `object_store`, and adds the error layer. This module decides
/// about redirects, name resolution and the default HTTP version.
#[derive(Debug)]
pub(super) struct Connector {
    redirects: Redirects,
    plain: PlainHttp,
}

/// An error from creating a client.
type ClientError = Box<dyn std::error::Error + Send + Sync>;

impl Connector {
    /// Creates a connector that follows redirects as `redirects` and `plain` allow.
    pub(super) fn new(redirects: Redirects, plain: PlainHttp) -> Self {
        Self { redirects, plain }
    }

    fn client(&self, options: &ClientOptions) -> Result<reqwest::Client, ClientError> {
        let settings = Settings(options);
        let mut client = reqwest::Client::builder()
            .redirect(self.redirects.policy(self.plain))
            .https_only(!settings.is_set(ClientConfigKey::AllowHttp))
            .tls_danger_accept_invalid_certs(
                settings.is_set(ClientConfigKey::AllowInvalidCertificates),
            )
            .dns_resolver(Arc::new(Shuffled));
        client = match settings.text(ClientConfigKey::UserAgent) {
            Some(agent) => client.user_agent(agent),
            None => client.user_agent(concat!("inlay/", env!("CARGO_PKG_VERSION"))),
        };
        // Fetching objects over several HTTP/1.1 connections is faster than over a single HTTP/2
        // connection.
        client = if settings.is_set(ClientConfigKey::Http2Only) {
            settings.http2(client.http2_prior_knowledge())?
        } else {
            client.http1_only()
        };
        client = settings.limits(client)?;
        if let Some(url) = settings.text(ClientConfigKey::ProxyUrl) {
            let excludes = settings.text(ClientConfigKey::ProxyExcludes);
            let excludes = excludes.and_then(|hosts| reqwest::NoProxy::from_string(&hosts));
            client = client.proxy(reqwest::Proxy::all(url)?.no_proxy(excludes));
        }
        let certificate = settings.text(ClientConfigKey::ProxyCaCertificate);
        let certificate = certificate.map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()));
        let certificate = certificate.transpose()?;
        client = if settings.is_set(ClientConfigKey::NoSystemCertificates) {
            client.tls_certs_only(certificate)
        } else {
            client.tls_certs_merge(certificate)
        };
        Ok(client.build()?)
    }
}

/// The settings of `object_store`, which are only accessible as text.
struct Settings<'o>(&'o ClientOptions);

impl Settings<'_> {
    fn text(&self, key: ClientConfigKey) -> Option<String> {
        self.0.get_config_value(&key)
    }

    fn is_set(&self, key: ClientConfigKey) -> bool {
        self.text(key).is_some_and(|value| value == "true")
    }

    fn duration(&self, key: ClientConfigKey) -> Result<Option<Duration>, ClientError> {
        self.parsed(key, |text| humantime::parse_duration(text).map_err(Into::into))
    }

    fn number<T>(&self, key: ClientConfigKey) -> Result<Option<T>, ClientError>
    where
        T: std::str::FromStr<Err = std::num::ParseIntError>,
    {
        self.parsed(key, |text| text.parse().map_err(Into::into))
    }

    fn parsed<T>(
        &self,
        key: ClientConfigKey,
        parse: impl FnOnce(&str) -> Result<T, ClientError>,
    ) -> Result<Option<T>, ClientError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let parsed = parse(&text);
        parsed.map(Some).map_err(|error| format!("{}: '{text}': {error}", key.as_ref()).into())
    }

    /// Applies timeouts and the limits of the connection pool.
    fn limits(
        &self,
        mut client: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, ClientError> {
        client = client.connect_timeout(
            self.duration(ClientConfigKey::ConnectTimeout)?.unwrap_or(CONNECT_MAX),
        );
        if let Some(limit) = self.duration(ClientConfigKey::Timeout)? {
            client = client.timeout(limit);
        }
        if let Some(limit) = self.duration(ClientConfigKey::ReadTimeout)? {
            client = client.read_timeout(limit);
        }
        if let Some(limit) = self.duration(ClientConfigKey::PoolIdleTimeout)? {
            client = client.pool_idle_timeout(limit);
        }
        if let Some(most) = self.number(ClientConfigKey::PoolMaxIdlePerHost)? {
            client = client.pool_max_idle_per_host(most);
        }
        Ok(client)
    }

    /// Applies settings of HTTP/2.
    fn http2(
        &self,
        mut client: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, ClientError> {
        if let Some(interval) = self.duration(ClientConfigKey::Http2KeepAliveInterval)? {
            client = client.http2_keep_alive_interval(interval);
        }
        if let Some(limit) = self.duration(ClientConfigKey::Http2KeepAliveTimeout)? {
            client = client.http2_keep_alive_timeout(limit);
        }
        if self.is_set(ClientConfigKey::Http2KeepAliveWhileIdle) {
            client = client.http2_keep_alive_while_idle(true);
        }
        let frame: Option<u32> = self.number(ClientConfigKey::Http2MaxFrameSize)?;
        Ok(client.http2_max_frame_size(frame))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.client(options).map_err(|error| object_store::Error::Generic {
            store: "HTTP client",
            source: error,
        })?;
        Ok(HttpClient::new(TellingErrors { inner: HttpClient::new(client) }))
    }
}

/// Resolves names and shuffles the addresses, because services rely on that to spread their load.
#[derive(Debug)]
struct Shuffled;

impl Resolve for Shuffled {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut addresses: Vec<_> = found.collect();
            fastrand::shuffle(&mut addresses);
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
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
        // `object_store` handles these statuses itself, e.g. failed preconditions.
        if status.is_success() || matches!(status.as_u16(), 304 | 409 | 412) {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = start_of(body).await;
        let answer = ServerAnswer::new(status.as_u16(), &parts.headers, &body);
        // `object_store` also handles 404 itself, for missing objects and for credentials that a
        // metadata service does not have. A missing bucket must not look like either.
        if answer.status == 404 && answer.code.as_deref() != Some("NoSuchBucket") {
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::from(body)));
        }
        Err(HttpError::new(HttpErrorKind::Unknown, answer))
    }
}

/// Reads the start of a body. If the body breaks off, returns the part received: the status matters
/// more.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_asks_for_a_wait_in_seconds_or_until_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, wait) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(value, now), wait.map(Duration::from_secs), "{value:?}");
        }
    }
}
