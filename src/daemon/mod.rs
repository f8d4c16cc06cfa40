//! The daemon: one process per state directory that serves all its mounts, and its client side:
//! finding, starting and calling it.

mod api;
mod attached;
mod client;
mod environment;
mod error;
mod given;
mod given_up;
mod keep;
mod launch;
mod life;
mod limits;
mod listener;
mod memory;
mod metrics;
mod moment;
mod mounted_already;
mod named;
mod notify;
mod once;
mod outbox;
mod paths;
mod redacted;
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
mod traces;
mod tracking;

pub use api::*;
pub use attached::Part;
pub use client::{Client, Keys, has_environment_of};
pub use error::DaemonError;
pub use given::given;
pub use keep::{again, keeper_options};
pub use launch::{Readiness, ensure};
pub use metrics::{Definition, METRICS, MetricKind};
pub use paths::Paths;
pub use routes::openapi;
pub use run::{DaemonOptions, run};
pub use socket::Access;
pub use streams::{Joined, PieceSender, Pieces, UPGRADE};
