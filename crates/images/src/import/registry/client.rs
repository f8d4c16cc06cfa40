//! Talks to one image's registry: login, manifests and blobs, each with a deadline and bounded
//! retries.

use std::net::IpAddr;
use std::time::Duration;

use inlay_store::remote::{self as store, Redirects};
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::error::AttemptFailure;
use super::{
    BlobDigest, BlobHasher, JSON_LEN_MAX, PlainHttp, RegistryError, RegistryOptions, Retry,
    credentials, login,
};

/// Timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Deadline of one attempt, in addition to the transfer time of its bytes.
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
/// Slowest link assumed by a blob's deadline, in bytes per second.
const SLOWEST_LINK: u64 = 32 << 10;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A registry, from which one image is imported.
pub(super) struct Registry {
    pub(super) reference: Reference,
    pub(super) http: reqwest::Client,
    /// Last token; `None` before the first login.
    token: Mutex<Option<Token>>,
    pub(super) scheme: &'static str,
    /// Where plain HTTP may go that the registry redirects to.
    pub(super) plain: store::PlainHttp,
    pub(super) auth: RegistryAuth,
    retry: Retry,
}

/// Response to a login: `None` if the registry needs no token.
type Token = Option<String>;

impl Registry {
    pub(super) fn open(
        reference: Reference,
        options: &RegistryOptions,
    ) -> Result<Self, RegistryError> {
        let auth = credentials::find(options.docker_config.as_deref(), reference.registry())?;
        let plain = match options.plain_http {
            PlainHttp::Always => true,
            PlainHttp::Never => false,
            PlainHttp::Loopback => is_loopback(reference.resolve_registry()),
        };
        let elsewhere = match options.plain_http {
            PlainHttp::Always => store::PlainHttp::Allowed,
            PlainHttp::Loopback | PlainHttp::Never => store::PlainHttp::LoopbackOnly,
        };
        let http = reqwest::Client::builder()
            .read_timeout(options.retry.idle_timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("inlay/", env!("CARGO_PKG_VERSION")))
            // Registries redirect blob requests to other servers. Credentials are not forwarded.
            .redirect(Redirects::AnyServer.policy(elsewhere))
            .build()
            .map_err(|error| RegistryError::Tls(error.to_string()))?;
        Ok(Self {
            reference,
            http,
            token: Mutex::default(),
            scheme: if plain { "http" } else { "https" },
            plain: elsewhere,
            auth,
            retry: options.retry,
        })
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Fetches the manifest or index with the tag or digest `name`. Not verified.
    pub(super) async fn manifest(&self, name: &str) -> Result<Vec<u8>, RegistryError> {
        let doing = format!("getting the manifest {name}");
        self.retried(&doing, ATTEMPT_TIMEOUT, async || self.manifest_once(name).await).await
    }

    /// Fetches and verifies a blob small enough for memory.
    pub(super) async fn small_blob(
        &self,
        digest: &BlobDigest,
        size: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        self.retried(&format!("getting the blob {digest}"), deadline(size), async || {
            let mut bytes = Vec::new();
            self.blob_once(digest, size, async |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .await?;
            Ok(bytes)
        })
        .await
    }

    /// Attempts once to fetch a blob, passing it to `take` in pieces. Fails at the end if it does
    /// not match its digest.
    pub(super) async fn blob_once(
        &self,
        digest: &BlobDigest,
        size: u64,
        mut take: impl AsyncFnMut(&[u8]) -> Result<(), AttemptFailure>,
    ) -> Result<(), AttemptFailure> {
        let mut response = self.ask(&format!("blobs/{digest}"), "*/*").await?;
        let mut hasher = BlobHasher::new(digest.clone(), size);
        while let Some(piece) = response.chunk().await? {
            hasher.update(&piece)?;
            take(&piece).await?;
        }
        Ok(hasher.check()?)
    }

    /// Retries `attempt` with exponential backoff as often as the options allow, each time with the
    /// deadline `limit`. A refusal triggers one new login, which may be retried: tokens expire, and
    /// registries report that in different ways.
    pub(super) async fn retried<T>(
        &self,
        doing: &str,
        limit: Duration,
        mut attempt: impl AsyncFnMut() -> Result<T, AttemptFailure>,
    ) -> Result<T, RegistryError> {
        let (mut pause, mut logged_in_again) = (self.retry.first_pause, false);
        let mut tries = 0;
        loop {
            tries += 1;
            let late =
                || AttemptFailure::Transient(format!("no answer in {} seconds", limit.as_secs()));
            let failure = match timeout(limit, attempt()).await.unwrap_or_else(|_| Err(late())) {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let why = match failure {
                AttemptFailure::Final(error) => return Err(error),
                AttemptFailure::NotFound => return Err(self.not_found(doing)),
                AttemptFailure::Transient(why) => why,
                AttemptFailure::Refused(why) if logged_in_again => return Err(self.refused(why)),
                AttemptFailure::Refused(why) => match self.log_in_again().await {
                    Ok(()) => {
                        logged_in_again = true;
                        why
                    }
                    // The next attempt is refused, too, and repeats the login.
                    Err(AttemptFailure::Transient(login)) => {
                        format!("{why}, and logging in: {login}")
                    }
                    Err(AttemptFailure::Final(error)) => return Err(error),
                    Err(AttemptFailure::Refused(_) | AttemptFailure::NotFound) => {
                        return Err(self.refused(why));
                    }
                },
            };
            if tries >= self.retry.tries {
                let (reference, doing) = (self.reference.whole(), doing.to_owned());
                return Err(RegistryError::Failed { reference, doing, tries, why });
            }
            tracing::debug!(image = %self.reference, doing, tries, why, "trying again");
            sleep(pause).await;
            pause *= 2;
        }
    }

    async fn log_in_again(&self) -> Result<(), AttemptFailure> {
        let late = || format!("no answer in {} seconds", ATTEMPT_TIMEOUT.as_secs());
        timeout(ATTEMPT_TIMEOUT, self.token())
            .await
            .unwrap_or_else(|_| Err(AttemptFailure::Transient(late())))
            .map(drop)
    }

    async fn token(&self) -> Result<Option<String>, AttemptFailure> {
        let token = login::token(self).await?;
        *self.token.lock() = Some(token.clone());
        Ok(token)
    }

    /// Requests a manifest or a blob.
    async fn ask(&self, what: &str, accept: &str) -> Result<reqwest::Response, AttemptFailure> {
        let url = format!(
            "{}://{}/v2/{}/{what}",
            self.scheme,
            self.reference.resolve_registry(),
            self.reference.repository()
        );
        let known = self.token.lock().clone();
        let token = match known {
            Some(token) => token,
            None => self.token().await?,
        };
        let request = self.http.get(url).header("Accept", accept);
        let request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let response = request.send().await?;
        let status = response.status();
        if status.is_success() {
            Ok(response)
        } else {
            Err(AttemptFailure::of_status(status.as_u16(), ""))
        }
    }

    async fn manifest_once(&self, name: &str) -> Result<Vec<u8>, AttemptFailure> {
        let mut response = self.ask(&format!("manifests/{name}"), MANIFEST_TYPES).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > JSON_LEN_MAX {
                return Err(AttemptFailure::Final(RegistryError::TooLarge {
                    reference: self.reference.whole(),
                    what: format!("the manifest {name}"),
                    limit: JSON_LEN_MAX,
                }));
            }
        }
        Ok(bytes)
    }

    fn not_found(&self, doing: &str) -> RegistryError {
        let what = doing.strip_prefix("getting ").unwrap_or("it").to_owned();
        RegistryError::NotFound { reference: self.reference.whole(), what }
    }

    fn refused(&self, why: String) -> RegistryError {
        let registry = self.reference.registry().to_owned();
        RegistryError::Refused { reference: self.reference.whole(), registry, why }
    }
}

/// Returns the deadline of one attempt to fetch a blob of `size` bytes.
pub(super) fn deadline(size: u64) -> Duration {
    ATTEMPT_TIMEOUT + Duration::from_secs(size / SLOWEST_LINK)
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_loopback() {
        for registry in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:80"] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in
            ["localhost.example.org", "example.org:127", "10.0.0.1:5000", "127.0.0.1.example.org"]
        {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
