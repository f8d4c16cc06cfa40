//! The report of a benchmark: what was measured under which conditions, and what follows from it.
//!
//! The JSON form is this file's types; Markdown and the page show the same.

mod markdown;
mod verdict;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use markdown::markdown;
use verdict::verdicts;

use super::link::LinkFigures;
use super::method::HostState;
use super::stats::Spread;

/// The version of the JSON form.
pub const VERSION: u32 = 1;

/// A whole benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// `inlay-bench`.
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Under which conditions.
    pub conditions: Conditions,
    /// The links, in the order in which they were asked for.
    pub links: Vec<LinkShown>,
    /// The scenarios, in the order in which they were given.
    pub scenarios: Vec<ScenarioShown>,
    /// The methods, the limit first.
    pub methods: Vec<MethodShown>,
    /// What was measured: one for each link, scenario, method and state, in this order.
    pub cells: Vec<Cell>,
    /// What follows, in sentences, what speaks against inlay first.
    pub verdicts: Vec<Verdict>,
    /// Why something that was asked for is not here, or is here without numbers.
    pub failures: Vec<String>,
}

/// Under which conditions.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conditions {
    /// When it began, in seconds since 1970.
    pub began: i64,
    /// How long it took, in seconds.
    pub took: f64,
    /// The version of inlay.
    pub inlay: String,
    /// The kernel's release.
    pub kernel: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// The OCI runtime.
    pub runtime: String,
    /// How often each start was made.
    pub runs: usize,
    /// What order and jitter followed from.
    pub seed: u64,
    /// The store that was measured with, without credentials.
    pub store: String,
}

/// A link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LinkShown {
    /// As it was asked for.
    pub name: String,
    /// What it can do; of the user's own link, what the daemon has measured, if it has.
    pub figures: Option<LinkFigures>,
}

/// A scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScenarioShown {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Its command, as words.
    pub command: Vec<String>,
    /// When it counts as ready.
    pub ready: String,
    /// What a start reads, if it is known.
    pub needed: Option<Needed>,
    /// The ideal start over each link, in seconds, by the link's name; missing if it is not known.
    pub ideal: BTreeMap<String, f64>,
}

/// What a start reads of its image, each group once, as a recorded start has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed {
    /// Groups.
    pub groups: u64,
    /// Their bytes in the store.
    pub stored_bytes: u64,
    /// Their bytes decoded.
    pub raw_bytes: u64,
}

/// A method.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MethodShown {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Whose it is.
    pub whose: Whose,
}

/// Whose method it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whose {
    /// Nobody's: the limit.
    Limit,
    /// inlay's.
    Inlay,
    /// Somebody else's.
    Other,
}

/// One measured start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From before the first request to when the command was ready, in seconds.
    pub seconds: f64,
    /// Bytes that came through the link until then.
    pub bytes: u64,
    /// Requests until then.
    pub requests: u64,
}

/// What was measured of one method in one state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// Over which link.
    pub link: String,
    /// Which start.
    pub scenario: String,
    /// By which method.
    pub method: String,
    /// In which state.
    pub state: HostState,
    /// All starts, in their order; none if one of them failed.
    pub samples: Vec<Sample>,
    /// Of `seconds`.
    pub seconds: Option<Spread>,
    /// Its median as a multiple of the reference of its state: of the ideal for a cold start, of the
    /// native start in the same state for others.
    pub ratio: Option<f64>,
    /// Why there are no numbers.
    pub failure: Option<String>,
}

/// A sentence that follows from the numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether inlay loses.
    pub outcome: Outcome,
    /// The sentence.
    pub text: String,
}

/// How inlay does against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is slower.
    Loses,
    /// The spreads overlap.
    Even,
    /// It is faster.
    Wins,
}

impl Report {
    /// The cell of these, if it was asked for.
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

    /// Works out ideals, ratios and verdicts from the samples.
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

    /// Whether everything that was asked for has its numbers.
    pub fn is_whole(&self) -> bool {
        self.failures.is_empty() && self.cells.iter().all(|cell| cell.failure.is_none())
    }
}
