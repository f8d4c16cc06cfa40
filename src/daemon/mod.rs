//! The daemon: one process for each state directory that serves all its mounts, and what its clients
//! need to find, start and ask it.

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
mod listener;
mod memory;
mod metrics;
mod notify;
mod once;
mod outbox;
mod paths;
mod routes;
mod run;
mod sandboxes;
mod server;
mod service;
mod snapshots;
mod socket;
mod stores;
mod streams;
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
pub use streams::{PieceSender, Pieces, UPGRADE};
