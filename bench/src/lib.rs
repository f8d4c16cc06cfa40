//! Measures start-up latency for `inlay bench startup`, by method, link and state of the host.
//!
//! Everything runs as a user would run it, through commands. Each start is a container on an
//! overlay; methods differ only in the origin of the root's files. Starts run in random order, each
//! scenario and method once per round, so that background load affects all of them alike.

mod adapter;
mod caches;
mod command;
mod container;
mod error;
mod inlay;
mod interrupt;
mod link;
mod method;
mod page;
mod parts;
pub mod report;
mod root;
mod scenario;
mod server;
mod startup;
mod stats;
mod supply;
mod visit;

pub use adapter::Described;
pub use error::BenchError;
pub use interrupt::Interrupt;
pub use link::{LinkChoice, LinkSpeed};
pub use method::{HostState, Method};
pub use page::page;
pub use report::{
    Cell, Conditions, LinkReport, MethodReport, Needed, Outcome, Report, Sample, ScenarioReport,
    Verdict, Whose, markdown,
};
pub use scenario::{MountPart, Ready, Scenario, Source};
pub use startup::{Progress, StartupOptions, WithoutKit, startup};
pub use stats::Spread;
