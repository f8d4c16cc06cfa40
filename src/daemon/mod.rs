//! The daemon: one process per state directory that serves all its mounts, and its client side:
//! finding, starting and calling it.

mod attached_records;
mod cancel_on_drop;
mod environment;
mod error;
mod host_mounts;
mod idempotency;
mod inherited_fds;
mod keeper_client;
mod lifecycle;
mod limits;
mod listener;
mod main_loop;
mod memory;
mod metrics;
mod name_cache;
mod new_mount;
mod notify;
mod outbox;
mod redacted;
mod repeated_mount;
mod routes;
mod run;
mod sandboxes;
mod server;
mod service;
mod snapshots;
mod socket;
mod stores;
#[cfg(test)]
mod testing;
mod timestamp;
mod traces;
mod tracking;

use inlay_api::wire as api;

pub use environment::has_environment_of;
pub use error::DaemonError;
pub use inherited_fds::given;
pub use inlay_api::*;
pub use keeper_client::{again, keeper_options};
pub use metrics::{Definition, METRICS, MetricKind};
pub use routes::openapi;
pub use run::{DaemonOptions, run};
pub use socket::Access;
