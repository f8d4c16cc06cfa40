//! The daemon's API as its clients see it. Knows nothing of how the daemon works.
//!
//! [`wire`] has the types of requests and answers. [`Client`] sends requests, [`streams`] those with
//! long bodies and upgraded connections. [`ensure`] finds the daemon of a state directory, whose
//! files [`Paths`] names, or starts one.

mod client;
mod error;
mod launch;
mod paths;
pub mod streams;
pub mod wire;

pub use client::{Client, Keys, METRICS_PATH};
pub use error::ClientError;
pub use launch::{Readiness, ensure, open_log, own_program};
pub use paths::Paths;
pub use streams::{Joined, PieceSender, Pieces, UPGRADE};
pub use wire::*;
