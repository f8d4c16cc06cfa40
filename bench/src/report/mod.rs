//! Defines the report of a benchmark: conditions, measurements and verdicts.
//!
//! Its JSON form is these types as they are serialized; Markdown and HTML show the same content.

mod markdown;
mod verdict;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use markdown::markdown;
use verdict::verdicts;

use super::link::LinkSpeed;
use super::method::HostState;
use super::stats::Spread;

/// Version of the JSON format.
pub const VERSION: u32 = 1;

/// Report of a whole benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Always `inlay-bench`.
    pub format: String,
    /// Always [`VERSION`].
    pub version: u32,
    /// Conditions of the measurement.
    pub conditions: Conditions,
    /// Links in the requested order.
    pub links: Vec<LinkReport>,
    /// Scenarios in the given order.
    pub scenarios: Vec<ScenarioReport>,
    /// Methods, the limit first.
    pub methods: Vec<MethodReport>,
    /// One cell per link, scenario, method and state, sorted in this order.
    pub cells: Vec<Cell>,
    /// Verdicts in sentences, those against inlay first.
    pub verdicts: Vec<Verdict>,
    /// Reasons why requested measurements are missing or without numbers.
    pub failures: Vec<String>,
}

/// Conditions of a measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conditions {
    /// Start time in seconds since 1970.
    pub began: i64,
    /// Duration in seconds.
    pub took: f64,
    /// Version of inlay.
    pub inlay: String,
    /// Kernel release.
    pub kernel: String,
    /// Number of CPUs available to this process.
    pub cores: usize,
    /// File name of the OCI runtime.
    pub runtime: String,
    /// Number of runs of each start.
    pub runs: usize,
    /// Seed of the random order and of the jitter.
    pub seed: u64,
    /// URL of the measured store without credentials, or a description of it.
    pub store: String,
}

/// A link in the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkReport {
    /// As requested.
    pub name: String,
    /// Its latency and bandwidth. For the user's own link these are the daemon's measurements, if
    /// any.
    pub figures: Option<LinkSpeed>,
}

/// A scenario in the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Name.
    pub name: String,
    /// Description.
    pub about: String,
    /// Command as a list of arguments.
    pub command: Vec<String>,
    /// Condition for readiness.
    pub ready: String,
    /// Data that a start reads, if known.
    pub needed: Option<Needed>,
    /// Ideal start in seconds by link name; absent if unknown.
    pub ideal: BTreeMap<String, f64>,
}

/// Image data that a start reads, each group counted once, from a recorded start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed {
    /// Number of groups.
    pub groups: u64,
    /// Size in the store, in bytes.
    pub stored_bytes: u64,
    /// Decoded size, in bytes.
    pub raw_bytes: u64,
}

/// A method in the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MethodReport {
    /// Name.
    pub name: String,
    /// Description.
    pub about: String,
    /// Owner of the method.
    pub whose: Whose,
}

/// Owner of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// None: the method is the limit.
    Limit,
    /// inlay.
    Inlay,
    /// Another tool, through an adapter.
    Other,
}

/// One measured start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds from before the first request until the command is ready.
    pub seconds: f64,
    /// Bytes received over the link until then.
    pub bytes: u64,
    /// Requests sent until then.
    pub requests: u64,
}

/// Measurements of one method in one state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the link.
    pub link: String,
    /// Name of the scenario.
    pub scenario: String,
    /// Name of the method.
    pub method: String,
    /// State of the host.
    pub state: HostState,
    /// All starts in order; empty if one failed.
    pub samples: Vec<Sample>,
    /// Spread of the seconds.
    pub seconds: Option<Spread>,
    /// Median as a multiple of the reference: the ideal for a cold start, else the native start in
    /// the same state.
    pub ratio: Option<f64>,
    /// Error message if there are no numbers.
    pub failure: Option<String>,
}

/// A conclusion from the numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether inlay wins or loses.
    pub outcome: Outcome,
    /// The sentence.
    pub text: String,
}

/// Result of inlay against another method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// inlay is slower.
    Loses,
    /// The spreads overlap.
    Even,
    /// inlay is faster.
    Wins,
}

impl Report {
    /// Finds the cell of a link, scenario, method and state.
    pub fn cell(
        &self,
        link: &str,
        scenario: &str,
        method: &str,
        state: HostState,
    ) -> Option<&Cell> {
        self.cells.iter().find(|cell| {
            cell.link == link
                && cell.scenario == scenario
                && cell.method == method
                && cell.state == state
        })
    }

    /// Computes ideals, ratios and verdicts from the samples.
    pub fn conclude(&mut self) {
        for cell in &mut self.cells {
            if cell.failure.is_some() {
                cell.samples.clear();
            }
            cell.seconds = Spread::of(cell.samples.iter().map(|sample| sample.seconds));
        }
        self.ideals();
        self.ratios();
        self.verdicts = verdicts(self);
    }

    fn median(&self, link: &str, scenario: &str, state: HostState) -> Option<f64> {
        Some(self.cell(link, scenario, "native", state)?.seconds?.median)
    }

    fn ideals(&mut self) {
        let mut ideals = Vec::new();
        for (place, scenario) in self.scenarios.iter().enumerate() {
            for link in &self.links {
                let native = self.median(&link.name, &scenario.name, HostState::Hot);
                if let (Some(native), Some(needed), Some(figures)) =
                    (native, scenario.needed, link.figures)
                {
                    let ideal = figures.ideal(needed.stored_bytes, native);
                    ideals.push((place, link.name.clone(), ideal));
                }
            }
        }
        for (place, link, ideal) in ideals {
            if let Some(scenario) = self.scenarios.get_mut(place) {
                scenario.ideal.insert(link, ideal);
            }
        }
    }

    fn ratios(&mut self) {
        let reference = |cell: &Cell| match cell.state {
            HostState::Cold => {
                let scenario = self.scenarios.iter().find(|one| one.name == cell.scenario)?;
                scenario.ideal.get(&cell.link).copied()
            }
            state => self.median(&cell.link, &cell.scenario, state),
        };
        let ratios: Vec<Option<f64>> =
            self.cells.iter().map(|cell| Some(cell.seconds?.median / reference(cell)?)).collect();
        for (cell, ratio) in self.cells.iter_mut().zip(ratios) {
            cell.ratio = ratio;
        }
    }

    /// Whether every requested measurement has numbers.
    pub fn is_whole(&self) -> bool {
        self.failures.is_empty() && self.cells.iter().all(|cell| cell.failure.is_none())
    }
}
