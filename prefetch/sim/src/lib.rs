//! Simulates the scheduler of `inlay-prefetch` in virtual time: scenarios of attached snapshots,
//! readers, a link and a host, driven in the same steps as by the real driver (`fetcher.rs`,
//! `batch.rs`).
//!
//! It has two uses. Thousands of random scenarios check the scheduler's invariants after each step,
//! against the simulation's own books. Starts on modelled links measure the effect of its rules and
//! constants.

// The whole crate is a test; a broken assumption must end it.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

mod check;
mod cost;
mod link;
mod permits;
mod policies;
mod random;
mod readers;
mod reference;
mod requests;
mod scenario;
mod trace;
mod world;

pub use cost::print as print_cost;
pub use link::{Faults, LinkModel, Sharing, Weather};
pub use policies::print as print_policies;
pub use random::scenario as random_scenario;
pub use scenario::{
    Begins, HostModel, Patience, Reader, Scenario, Snapshot, SnapshotScript, Stored, Told, Touch,
    Until,
};
pub use trace::{Trace, TraceError, synthetic};
pub use world::{SimulationOutcome, run};
