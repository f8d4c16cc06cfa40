//! The configuration of a store.

use std::fmt;
use std::sync::Arc;

use super::outbox_dir::OutboxDir;
use super::retry::RetryPolicy;

/// The location of a store and the settings for accessing it.
#[derive(Clone)]
pub struct StoreConfig {
    /// A directory, or a URL: `file://`, `s3://`, `gs://`, `az://`, `http(s)://` (read-only), or
    /// `memory:`, a store that lives as long as the process.
    pub url: String,
    /// Settings and credentials of the service, by the names of its usual environment variables in
    /// any case: `AWS_REGION`, `aws_endpoint_url`. Names unknown to the service are ignored.
    pub options: Vec<(String, String)>,
    /// Collects fresh `options`, for credentials that expire. Called after the store has rejected
    /// them; may read files.
    pub refresh: Option<OptionsRefresh>,
    /// Retry policy.
    pub retry: RetryPolicy,
    /// Whether unencrypted connections to other machines are allowed.
    pub plain_http: PlainHttp,
    /// A local directory that is read before the store.
    pub outbox_dir: Option<OutboxDir>,
}

impl StoreConfig {
    /// Creates a configuration for `url` with no options and the default retry policy.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            options: Vec::new(),
            refresh: None,
            retry: RetryPolicy::default(),
            plain_http: PlainHttp::LoopbackOnly,
            outbox_dir: None,
        }
    }
}

// The options hold secrets: only print their names.
impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.options.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("StoreConfig")
            .field("url", &self.url)
            .field("options", &names)
            .field("retry", &self.retry)
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}

/// Whether plain HTTP is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Only to this machine.
    #[default]
    LoopbackOnly,
    /// To any machine.
    Allowed,
}

/// A function that returns the current options of a store.
#[derive(Clone)]
pub struct OptionsRefresh(pub Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>);
