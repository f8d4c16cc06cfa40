//! Metrics of the daemon: one table of definitions, and a collector that reads existing counters at
//! each scrape. This module counts nothing itself.

mod activity;
mod collect;
mod defs;
mod families;
mod http;
mod starts;
mod store_stats;

use prometheus::{Registry, TextEncoder};
use tokio::task::spawn_blocking;

pub(super) use activity::Activity;
use collect::MetricSources;
pub use defs::{Definition, METRICS, MetricKind};
pub(super) use http::Scrapes;
pub(super) use starts::{Loaded, Recorded, StartTotals};
pub(super) use store_stats::{Books, Entry};

use super::error::DaemonError;
use super::server::Server;
use super::service::Service;

/// Path of the metrics.
pub(super) const PATH: &str = inlay_api::METRICS_PATH;
/// Content type of the answer: the Prometheus text format.
pub(super) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The daemon's metrics registry. Clones share state.
#[derive(Clone)]
pub(super) struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(super) fn new(service: Service, server: Server) -> Result<Self, DaemonError> {
        let registry = Registry::new();
        registry.register(Box::new(MetricSources::new(service, server)?))?;
        Ok(Self { registry })
    }

    /// Returns all metrics as text. Briefly takes locks that readers take, too.
    pub(super) async fn scrape(&self) -> Result<String, DaemonError> {
        let registry = self.registry.clone();
        let text = move || TextEncoder::new().encode_to_string(&registry.gather());
        Ok(spawn_blocking(text).await.map_err(|_| DaemonError::Panicked)??)
    }
}
