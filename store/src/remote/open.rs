//! Opens the client for a store from its URL and options.

use std::path::Path as FilePath;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig,
};
use url::{Position, Url};

use super::config::{PlainHttp, StoreConfig};
use super::endpoint::Endpoint;
use super::error::StoreError;
use super::http::Connector;
use super::local::LocalDirectory;
use super::outbox_dir::{OutboxDir, OutboxFirst};
use super::redirect::{Redirects, is_loopback};

/// The default connect timeout.
pub(super) const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Whether a store is writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
}

/// The location of a store's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorePlace {
    /// In a directory on this host.
    Here,
    /// In a service, or in memory.
    Elsewhere,
}

/// An open store.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) endpoint: Endpoint,
    /// The prefix of all paths in the store.
    pub(super) root: Path,
    /// The URL, for messages.
    pub(super) description: String,
    pub(super) access: Access,
    pub(super) disk: StorePlace,
    /// The directory that is read first.
    pub(super) outbox_dir: Option<OutboxDir>,
}

/// Opens the store that `config` describes. Reads and writes no object.
pub(super) fn open(config: &StoreConfig) -> Result<Opened, StoreError> {
    let opened = far(config)?;
    let Some(options) = &config.outbox_dir else { return Ok(opened) };
    let dir = options.dir();
    let outbox_dir = LocalDirectory::open(dir);
    let outbox_dir = Arc::new(outbox_dir.map_err(|e| cannot_open(&dir.display().to_string(), &e))?);
    let (root, options) = (opened.root.clone(), options.clone());
    let looked_into = Some(options.clone());
    let endpoint = opened.endpoint.below(move |far| {
        let outbox_dir: Arc<dyn ObjectStore> = outbox_dir.clone();
        Arc::new(OutboxFirst::new(outbox_dir, far, root.clone(), options.clone()))
    });
    Ok(Opened { endpoint, outbox_dir: looked_into, ..opened })
}

/// Opens the store itself, without a outbox directory.
fn far(config: &StoreConfig) -> Result<Opened, StoreError> {
    if config.url == "memory:" {
        let store = Arc::new(InMemory::new());
        return Ok(opened(Endpoint::fixed(store), Path::default(), "memory:".to_owned()));
    }
    if !config.url.contains("://") {
        return directory(FilePath::new(&config.url), &config.url);
    }
    let url = Url::parse(&config.url).map_err(|e| unusable(&config.url, e.to_string()))?;
    if url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        let reason = "a password, a query or a fragment has no place in it".to_owned();
        return Err(unusable(&url[..Position::BeforeUsername], reason));
    }
    let (scheme, root) =
        ObjectStoreScheme::parse(&url).map_err(|e| unusable(&config.url, e.to_string()))?;
    let description = config.url.trim_end_matches('/').to_owned();
    match scheme {
        ObjectStoreScheme::Local => {
            let path = url.to_file_path();
            let path = path.map_err(|()| unusable(&config.url, "it is no path".to_owned()))?;
            directory(&path, &description)
        }
        ObjectStoreScheme::Memory => {
            Err(unusable(&config.url, "the store in memory is memory:".to_owned()))
        }
        ObjectStoreScheme::Http => {
            let store = http(&url, config)?;
            let opened = opened(Endpoint::fixed(store), root, description);
            Ok(Opened { access: Access::ReadOnly, ..opened })
        }
        scheme => {
            let store = cloud(&scheme, &url, config)?;
            let config = config.clone();
            let reopen = Box::new(move || {
                let mut config = config.clone();
                if let Some(refresh) = &config.refresh {
                    config.options = (refresh.0)();
                }
                let reopened = cloud(&scheme, &url, &config);
                reopened.inspect_err(|e| tracing::warn!("can't renew the credentials: {e}")).ok()
            });
            Ok(opened(Endpoint::reopened_by(store, reopen), root, description))
        }
    }
}

fn opened(endpoint: Endpoint, root: Path, description: String) -> Opened {
    Opened {
        endpoint,
        root,
        description,
        access: Access::ReadWrite,
        disk: StorePlace::Elsewhere,
        outbox_dir: None,
    }
}

fn directory(path: &FilePath, description: &str) -> Result<Opened, StoreError> {
    let store = LocalDirectory::open(path).map_err(|e| cannot_open(description, &e))?;
    let endpoint = Endpoint::fixed(Arc::new(store));
    let opened = opened(endpoint, Path::default(), description.to_owned());
    Ok(Opened { disk: StorePlace::Here, ..opened })
}

fn cloud(
    scheme: &ObjectStoreScheme,
    url: &Url,
    config: &StoreConfig,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match scheme {
        ObjectStoreScheme::AmazonS3 => s3(url, config),
        ObjectStoreScheme::GoogleCloudStorage => gcs(url, config),
        ObjectStoreScheme::MicrosoftAzure => azure(url, config),
        _ => Err(unusable(url.as_str(), "this kind of store is not known".to_owned())),
    }
}

fn s3(url: &Url, config: &StoreConfig) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let builder = AmazonS3Builder::new()
        .with_url(url.as_str())
        .with_client_options(client_options())
        .with_retry(no_retries())
        .with_http_connector(Connector::new(Redirects::SameServer, config.plain_http));
    let mut builder = options_for(config)
        .fold(builder, |builder, (key, value): (AmazonS3ConfigKey, _)| {
            builder.with_config(key, value)
        });
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    let style = AmazonS3ConfigKey::VirtualHostedStyleRequest;
    let style_given = options_for::<AmazonS3ConfigKey>(config).any(|(key, _)| key == style);
    // S3 itself prefers the bucket in the host name, except for buckets with dots, which its TLS
    // certificate does not cover. Other servers rarely support that style.
    let dotted = url.host_str().is_some_and(|bucket| bucket.contains('.'));
    if endpoint.is_none() && !style_given && !dotted && url.scheme() != "https" {
        builder = builder.with_virtual_hosted_style_request(true);
    }
    let builder = builder.with_allow_http(plain_http(endpoint.as_deref(), config)?);
    Ok(Arc::new(builder.build().map_err(|e| cannot_open(url.as_str(), &e))?))
}

fn gcs(url: &Url, config: &StoreConfig) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_url(url.as_str())
        .with_client_options(client_options());
    let builder = options_for(config)
        .fold(builder, |builder, (key, value): (GoogleConfigKey, _)| {
            builder.with_config(key, value)
        });
    let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
    let allowed = plain_http(endpoint.as_deref(), config)?;
    let allow_http = GoogleConfigKey::Client(ClientConfigKey::AllowHttp);
    let builder = builder
        .with_config(allow_http, allowed.to_string())
        .with_retry(no_retries())
        .with_http_connector(Connector::new(Redirects::SameServer, config.plain_http));
    Ok(Arc::new(builder.build().map_err(|e| cannot_open(url.as_str(), &e))?))
}

fn azure(url: &Url, config: &StoreConfig) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let builder =
        MicrosoftAzureBuilder::new().with_url(url.as_str()).with_client_options(client_options());
    let builder = options_for(config)
        .fold(builder, |builder, (key, value): (AzureConfigKey, _)| {
            builder.with_config(key, value)
        });
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    let allowed = plain_http(endpoint.as_deref(), config)?;
    let builder = builder
        .with_allow_http(allowed)
        .with_retry(no_retries())
        .with_http_connector(Connector::new(Redirects::SameServer, config.plain_http));
    Ok(Arc::new(builder.build().map_err(|e| cannot_open(url.as_str(), &e))?))
}

fn http(url: &Url, config: &StoreConfig) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let allowed = plain_http(Some(url.as_str()), config)?;
    let builder = HttpBuilder::new()
        .with_url(&url[..Position::BeforePath])
        .with_client_options(client_options().with_allow_http(allowed))
        .with_retry(no_retries())
        .with_http_connector(Connector::new(Redirects::AnyServer, config.plain_http));
    Ok(Arc::new(builder.build().map_err(|e| cannot_open(url.as_str(), &e))?))
}

/// Returns the options that this service supports.
fn options_for<K: FromStr>(config: &StoreConfig) -> impl Iterator<Item = (K, &String)> {
    config
        .options
        .iter()
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)))
}

/// Returns whether the client for `endpoint` may use plain HTTP. Fails if it would have to but may
/// not.
fn plain_http(endpoint: Option<&str>, config: &StoreConfig) -> Result<bool, StoreError> {
    let Some(endpoint) = endpoint else { return Ok(false) };
    let url = Url::parse(endpoint).map_err(|e| unusable(endpoint, e.to_string()))?;
    if url.scheme() != "http" {
        return Ok(false);
    }
    if is_loopback(&url) || config.plain_http == PlainHttp::Allowed {
        return Ok(true);
    }
    Err(StoreError::PlainHttp { endpoint: url[..Position::BeforePath].to_owned() })
}

/// Disables the client's own time limit, unless the store's options set one: the retry loop limits
/// each attempt, because it knows the number of bytes.
fn client_options() -> ClientOptions {
    ClientOptions::new().with_timeout_disabled().with_connect_timeout(CONNECT_MAX)
}

/// `object_store`'s retries do not cover a truncated body, and would multiply with ours.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

fn unusable(url: &str, reason: String) -> StoreError {
    StoreError::Url { url: url.to_owned(), reason }
}

fn cannot_open(store: &str, error: &object_store::Error) -> StoreError {
    StoreError::Open { store: store.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
