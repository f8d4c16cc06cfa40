//! The daemon's metrics: one table of what there is, and what gathers the numbers at each scrape.
//! Nothing is counted here that is not counted where it happens.

mod activity;
mod books;
mod collect;
mod defs;
mod families;
mod http;
mod starts;

use prometheus::{Registry, TextEncoder};
use tokio::task::spawn_blocking;

pub(super) use activity::Activity;
pub(super) use books::{Books, Entry};
use collect::Numbers;
pub use defs::{Definition, METRICS, MetricKind};
pub(super) use http::Scrapes;
pub(super) use starts::{Loaded, Recorded, StartTotals};

use super::error::DaemonError;
use super::server::Server;
use super::service::Service;

/// Where metrics are.
pub(super) const PATH: &str = "/metrics";
/// The format of the answer: Prometheus' text.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What a daemon tells of itself. Clones share everything.
#[derive(Clone)]
pub(super) struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(super) fn new(service: Service, server: Server) -> Result<Self, DaemonError> {
        let registry = Registry::new();
        registry.register(Box::new(Numbers::new(service, server)?))?;
        Ok(Self { registry })
    }

    /// All metrics as they are now, as text. Takes locks that readers take, each for a moment.
    pub(super) async fn scrape(&self) -> Result<String, DaemonError> {
        let registry = self.registry.clone();
        let text = move || TextEncoder::new().encode_to_string(&registry.gather());
        Ok(spawn_blocking(text).await.map_err(|_| DaemonError::Panicked)??)
    }
}
