//! `inlay bench startup`: how soon programs are ready, by which method, over which link, on which host.
//!
//! Everything is done as a user does it, by commands. Each start is made in a container on an overlay;
//! only where the root's files come from differs. Starts are made in random order, each scenario and
//! method once in each round, so that what else the machine does meets all of them alike.

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
pub use link::{LinkChoice, LinkFigures};
pub use method::{HostState, Method};
pub use page::page;
pub use report::{
    Cell, Conditions, LinkShown, MethodShown, Needed, Outcome, Report, Sample, ScenarioShown,
    Verdict, Whose, markdown,
};
pub use scenario::{MountPart, Ready, Scenario, Source};
pub use startup::{Progress, StartupOptions, startup};
pub use stats::Spread;
