//! One image's registry: logging in, manifests, blobs, each with a deadline and bounded retries.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use tokio::time::{sleep, timeout};

use super::credentials;
use super::error::Failure;
use super::{
    BlobDigest, BlobHasher, JSON_LEN_MAX, PlainHttp, RegistryError, RegistryOptions, Retry,
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What one attempt may take besides the time for its bytes.
const ATTEMPT_TIMEOUT: Duration = Duration::from_mins(1);
/// The slowest link that a blob's deadline allows for, in bytes a second.
const SLOWEST_LINK: u64 = 32 << 10;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A registry, for one image of it.
pub(super) struct Registry {
    reference: Reference,
    client: Client,
    /// For manifests: the client above takes them whole, whatever their size.
    http: reqwest::Client,
    scheme: &'static str,
    auth: RegistryAuth,
    retry: Retry,
}

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
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            read_timeout: Some(options.retry.idle_timeout),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: concat!("inlay/", env!("CARGO_PKG_VERSION")),
            platform_resolver: None,
            ..ClientConfig::default()
        };
        let http = reqwest::Client::builder()
            .read_timeout(options.retry.idle_timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(config.user_agent)
            .build()
            .map_err(|error| RegistryError::Tls(error.to_string()))?;
        let client =
            Client::try_from(config).map_err(|error| RegistryError::Tls(error.to_string()))?;
        Ok(Self {
            reference,
            client,
            http,
            scheme: if plain { "http" } else { "https" },
            auth,
            retry: options.retry,
        })
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The manifest or index with the tag or digest `name`; not yet checked.
    pub(super) async fn manifest(&self, name: &str) -> Result<Vec<u8>, RegistryError> {
        let doing = format!("getting the manifest {name}");
        self.retried(&doing, ATTEMPT_TIMEOUT, async || self.manifest_once(name).await).await
    }

    /// A blob that is small enough for memory, checked.
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

    /// One attempt at a blob: its bytes to `take`, piece by piece; an error at the end if they were
    /// not the right ones.
    pub(super) async fn blob_once(
        &self,
        digest: &BlobDigest,
        size: u64,
        mut take: impl AsyncFnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let name = digest.to_string();
        let mut stream = self.client.pull_blob_stream(&self.reference, name.as_str()).await?;
        let mut hasher = BlobHasher::new(digest.clone(), size);
        while let Some(piece) = stream.next().await {
            let piece = piece?;
            hasher.update(&piece)?;
            take(&piece).await?;
        }
        Ok(hasher.check()?)
    }

    /// Tries until it goes, as often as the options say, each time no longer than `limit`. A refusal is
    /// answered by logging in anew, once: tokens run out, and not every registry says so alike.
    pub(super) async fn retried<T>(
        &self,
        doing: &str,
        limit: Duration,
        mut attempt: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<T, RegistryError> {
        let (mut pause, mut refused) = (self.retry.first_pause, 0);
        let mut tries = 0;
        loop {
            tries += 1;
            let late = || Failure::Transient(format!("no answer in {} seconds", limit.as_secs()));
            let failure = match timeout(limit, attempt()).await.unwrap_or_else(|_| Err(late())) {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            let why = match failure {
                Failure::Final(error) => return Err(error),
                Failure::NotFound => return Err(self.not_found(doing)),
                Failure::Refused(why) if refused > 0 || self.log_in_again().await.is_err() => {
                    return Err(self.refused(why));
                }
                Failure::Refused(why) => {
                    refused += 1;
                    why
                }
                Failure::Transient(why) => why,
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

    async fn log_in_again(&self) -> Result<(), Failure> {
        timeout(ATTEMPT_TIMEOUT, self.token())
            .await
            .unwrap_or_else(|_| Err(Failure::Transient("no answer".to_owned())))
            .map(drop)
    }

    async fn token(&self) -> Result<Option<String>, Failure> {
        Ok(self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await?)
    }

    async fn manifest_once(&self, name: &str) -> Result<Vec<u8>, Failure> {
        let url = format!(
            "{}://{}/v2/{}/manifests/{name}",
            self.scheme,
            self.reference.resolve_registry(),
            self.reference.repository()
        );
        let mut request = self.http.get(url).header("Accept", MANIFEST_TYPES);
        // This leaves the token with the client, too, which needs it for blobs.
        request = match (self.token().await?, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, _) => request,
        };
        let mut response = request.send().await?;
        let status = response.status();
        if !status.is_success() {
            return Err(Failure::of_status(status.as_u16(), ""));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > JSON_LEN_MAX {
                return Err(Failure::Final(RegistryError::TooLarge {
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

/// How long one attempt at a blob of `size` bytes may take.
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
