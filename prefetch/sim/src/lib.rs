//! The scheduler of `inlay-prefetch` in virtual time: scenarios of attached snapshots, readers, a link
//! and a host, driven in the same steps as by the real driver (`fetcher.rs`, `batch.rs`).
//!
//! Two uses. Thousands of random scenarios, in which what the scheduler promises is checked after
//! each step, from the simulation's own books. And starts on modelled links, to see what its rules
//! and constants are worth.

// All of this is a test, and a broken assumption is to end it.
#![allow(clippy::panic, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]

mod books;
mod check;
mod link;
mod permits;
mod policies;
mod random;
mod readers;
mod requests;
mod scenario;
mod trace;
mod world;

pub use link::{Faults, LinkModel, Sharing, Weather};
pub use policies::print as print_policies;
pub use random::scenario as random_scenario;
pub use scenario::{
    Begins, HostModel, Patience, Reader, Scenario, Snapshot, SnapshotScript, Stored, Told, Touch,
    Until,
};
pub use trace::{Trace, TraceError, synthetic};
pub use world::{Outcome, run};
