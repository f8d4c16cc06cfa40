//! What a store is opened with.

use std::fmt;
use std::sync::Arc;

use super::near::Near;
use super::retry::RetryPolicy;

/// Where the store is and how it is talked to.
#[derive(Clone)]
pub struct StoreConfig {
    /// A directory, or a URL: `file://`, `s3://`, `gs://`, `az://`, `http(s)://` (only for reading),
    /// or `memory:`, a store that ends with the process.
    pub url: String,
    /// Settings and credentials of the service, by the names of its usual variables in any case:
    /// `AWS_REGION`, `aws_endpoint_url`. Names that the service does not have are passed over.
    pub options: Vec<(String, String)>,
    /// Gathers `options` anew, for credentials that expire. It is called when the store has refused
    /// them, and may read files.
    pub refresh: Option<OptionsRefresh>,
    /// How failures are met.
    pub retry: RetryPolicy,
    /// Whether bytes may pass unencrypted to other machines.
    pub plain_http: PlainHttp,
    /// A directory of this host that is looked into first.
    pub near: Option<Near>,
}

impl StoreConfig {
    /// A store at `url` with no options and the usual retries.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            options: Vec::new(),
            refresh: None,
            retry: RetryPolicy::default(),
            plain_http: PlainHttp::LoopbackOnly,
            near: None,
        }
    }
}

// The options hold secrets: only their names are shown.
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

/// Whether plain HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Only to this machine itself.
    #[default]
    LoopbackOnly,
    /// To any machine.
    Allowed,
}

/// A function that gathers a store's options as they are now.
#[derive(Clone)]
pub struct OptionsRefresh(pub Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>);
