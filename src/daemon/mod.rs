//! The daemon: one process per state directory that serves all its mounts, and its client side:
//! finding, starting and calling it.

mod api;
mod attached_records;
mod cancel_on_drop;
mod client;
mod environment;
mod error;
mod host_mounts;
mod idempotency;
mod inherited_fds;
mod keeper_client;
mod launch;
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
mod paths;
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
mod streams;
#[cfg(test)]
mod testing;
mod timestamp;
mod traces;
mod tracking;

pub use api::*;
pub use attached_records::Part;
pub use client::{Client, Keys, has_environment_of};
pub use error::DaemonError;
pub use inherited_fds::given;
pub use keeper_client::{again, keeper_options};
pub use launch::{Readiness, ensure};
pub use metrics::{Definition, METRICS, MetricKind};
pub use paths::Paths;
pub use routes::openapi;
pub use run::{DaemonOptions, run};
pub use socket::Access;
pub use streams::{Joined, PieceSender, Pieces, UPGRADE};
