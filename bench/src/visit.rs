//! Runs one visit of a method: a start on a cold host, one on the same host with empty kernel
//! caches, and one immediately after.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::adapter::Adapter;
use super::caches::drop_caches;
use super::container::Runtime;
use super::error::BenchError;
use super::inlay::{Fetched, Inlay, Loading};
use super::interrupt::Interrupt;
use super::link::LinkChoice;
use super::method::{HostState, Method};
use super::parts::Parts;
use super::report::Sample;
use super::root::Root;
use super::scenario::Scenario;
use super::server::ShapedStore;
use super::supply::{Native, OfAdapter, OfInlay, Supply};

/// State shared by all visits.
pub(super) struct Bench {
    pub(super) inlay: Inlay,
    pub(super) runtime: Runtime,
    /// The kit's servers; `None` when measuring with the user's own store.
    pub(super) servers: Option<ShapedStore>,
    pub(super) own: BTreeMap<String, String>,
    pub(super) adapters: Vec<Adapter>,
    pub(super) parts: Parts,
    pub(super) work: PathBuf,
    pub(super) seed: u64,
    pub(super) states: Vec<HostState>,
    pub(super) interrupt: Interrupt,
    pub(super) visits: usize,
}

/// Result of each measured state.
pub(super) type VisitOutcome = Vec<(HostState, Result<Sample, BenchError>)>;

/// Action once a start is ready.
#[derive(Debug, Clone, Copy)]
enum Purpose<'a> {
    /// Stop it.
    Measure,
    /// Let the host load everything it keeps over an unshaped link, then restore this link.
    Fill(&'a LinkChoice),
}

impl Bench {
    /// Returns the environment in which `inlay` uses the store through the link.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        self.servers.as_ref().map_or_else(|| self.own.clone(), ShapedStore::environment)
    }

    /// Returns the environment in which `inlay` uses the store past the link.
    pub(super) fn environment_direct(&self) -> BTreeMap<String, String> {
        self.servers.as_ref().map_or_else(|| self.own.clone(), ShapedStore::environment_direct)
    }

    /// Shapes all further traffic as on this link; no-op with the user's own store.
    pub(super) fn shape(&mut self, link: &LinkChoice) -> Result<(), BenchError> {
        if let (LinkChoice::Shaped(name), Some(servers)) = (link, &mut self.servers) {
            servers.shape(name, self.seed)?;
        }
        Ok(())
    }

    /// Starts `scenario` by `method` in each requested state that the method has.
    pub(super) fn visit(
        &mut self,
        scenario: &Scenario,
        method: &Method,
        link: &LinkChoice,
    ) -> VisitOutcome {
        let wanted = method.measured_in(&self.states);
        let mut outcome = VisitOutcome::new();
        if wanted.is_empty() {
            return outcome;
        }
        if let Err(error) = self.visit_states(scenario, method, link, &wanted, &mut outcome) {
            // The error also covers the states after it, which were not reached.
            for state in wanted.iter().skip(outcome.len()) {
                outcome.push((*state, Err(error.clone())));
            }
        }
        outcome
    }

    fn visit_states(
        &mut self,
        scenario: &Scenario,
        method: &Method,
        link: &LinkChoice,
        wanted: &[HostState],
        outcome: &mut VisitOutcome,
    ) -> Result<(), BenchError> {
        self.shape(link)?;
        let (number, label) = (self.number(), label(scenario));
        // Moved out of `self`, which the closure borrows mutably.
        let adapters = std::mem::take(&mut self.adapters);
        let done = self.with_supply(scenario, method, number, &label, &adapters, |this, supply| {
            if !wanted.contains(&HostState::Cold) {
                // Filling the host is not measured, so it uses an unshaped link.
                this.shape(&unshaped())?;
                this.start(scenario, supply, Purpose::Fill(link))?;
            }
            for state in wanted {
                if *state != HostState::Hot {
                    this.empty_caches()?;
                }
                let settles = *state == HostState::Cold && wanted.len() > 1;
                let purpose = if settles { Purpose::Fill(link) } else { Purpose::Measure };
                let sample = this.start(scenario, supply, purpose)?;
                outcome.push((*state, Ok(sample)));
            }
            Ok(())
        });
        self.adapters = adapters;
        done
    }

    fn number(&mut self) -> usize {
        self.visits += 1;
        self.visits
    }

    fn with_supply(
        &mut self,
        scenario: &Scenario,
        method: &Method,
        number: usize,
        label: &str,
        adapters: &[Adapter],
        work: impl FnOnce(&mut Self, &mut dyn Supply) -> Result<(), BenchError>,
    ) -> Result<(), BenchError> {
        let loading = match method {
            Method::NoPrefetch => Loading { prefetch: "off", label: None, record: "off" },
            Method::Profile => Loading { prefetch: "all", label: Some(label), record: "off" },
            _ => Loading { prefetch: "all", label: None, record: "off" },
        };
        let mut supply: Box<dyn Supply + '_> = match method {
            Method::Native => Box::new(Native),
            Method::Adapter { place, name } => {
                let adapter = adapters.get(*place);
                let adapter =
                    adapter.ok_or_else(|| BenchError::Request(format!("no adapter {name}")))?;
                let host = adapter.host(number);
                let interrupt = self.interrupt.clone();
                Box::new(OfAdapter { adapter, host, limit: scenario.limit, interrupt })
            }
            _ => {
                let host = self.inlay.host(number, &self.environment(), &self.interrupt)?;
                Box::new(OfInlay { host, loading, limit: scenario.limit })
            }
        };
        let done = work(self, supply.as_mut());
        let ended = supply.end();
        done.and(ended)
    }

    /// Drops this machine's caches, then warms the servers, which stand for other machines, and the
    /// runtime, which a busy host has in memory all the time.
    fn empty_caches(&mut self) -> Result<(), BenchError> {
        drop_caches()?;
        let program = self.runtime.program();
        fs::read(program).map_err(BenchError::path("read", program))?;
        self.servers.as_mut().map_or(Ok(()), ShapedStore::warm)
    }

    /// Runs one start. The clock runs from before the first request until the command is ready.
    fn start(
        &mut self,
        scenario: &Scenario,
        supply: &mut dyn Supply,
        purpose: Purpose<'_>,
    ) -> Result<Sample, BenchError> {
        self.interrupt.check()?;
        let place = self.work.join("points");
        fs::create_dir_all(&place).map_err(BenchError::path("make", &place))?;
        self.runtime.describe(scenario, &place.join("root"))?;
        let before = match &mut self.servers {
            Some(servers) => servers.forget().map(|()| Fetched::default())?,
            None => supply.fetched()?,
        };
        let number = self.number();
        let began = Instant::now();
        let root = Root::assemble(&self.parts.of(scenario)?, &place, supply)?;
        let ready = self.runtime.run_until_ready(
            scenario,
            &format!("inlay-bench-{}-{number}", std::process::id()),
            &self.interrupt,
        );
        let after = ready.as_ref().ok().map(|_| self.passed(&*supply)).transpose();
        let settled = match purpose {
            Purpose::Fill(link) if ready.is_ok() => self.settle(supply, link),
            Purpose::Fill(_) | Purpose::Measure => Ok(()),
        };
        let apart = root.take_apart(supply);
        let (ready, after) = (ready?, after?.unwrap_or_default());
        settled.and(apart)?;
        Ok(Sample {
            seconds: ready.duration_since(began).as_secs_f64(),
            bytes: after.bytes.saturating_sub(before.bytes),
            requests: after.requests.saturating_sub(before.requests),
        })
    }

    fn settle(&mut self, supply: &mut dyn Supply, link: &LinkChoice) -> Result<(), BenchError> {
        self.shape(&unshaped())?;
        let settled = supply.settle();
        self.shape(link).and(settled)
    }

    fn passed(&mut self, supply: &dyn Supply) -> Result<Fetched, BenchError> {
        let Some(servers) = &mut self.servers else { return supply.fetched() };
        let passed = servers.passed()?;
        Ok(Fetched { bytes: passed.bytes_down, requests: passed.requests, ..Fetched::default() })
    }

    /// Runs one unmeasured start that records a profile of `scenario` in the store. Returns the
    /// daemon's estimate of the link.
    pub(super) fn record(&mut self, scenario: &Scenario) -> Result<Fetched, BenchError> {
        self.shape(&unshaped())?;
        let number = self.number();
        let label = label(scenario);
        let host = self.inlay.host(number, &self.environment(), &self.interrupt)?;
        let loading = Loading { prefetch: "off", label: Some(&label), record: "on" };
        let mut supply = OfInlay { host, loading, limit: scenario.limit };
        let started = self.start(scenario, &mut supply, Purpose::Measure);
        let fetched = supply.fetched();
        Box::new(supply).end()?;
        started?;
        fetched
    }

    /// Measures the rate of the link to the store in bytes/s while everything is loaded: a start,
    /// which reads sequentially, does not fill the link. `None` if there is too little data.
    pub(super) fn link_rate(&mut self, scenario: &Scenario) -> Result<Option<f64>, BenchError> {
        let number = self.number();
        let host = self.inlay.host(number, &self.environment(), &self.interrupt)?;
        let loading = Loading { prefetch: "all", label: None, record: "off" };
        let mut best: Option<f64> = None;
        for (part, _) in self.parts.of(scenario)? {
            let point = self.work.join(format!("link-{number}"));
            fs::create_dir_all(&point).map_err(BenchError::path("make", &point))?;
            host.mount(&part.name, &point, &loading, scenario.limit)?;
            let rate = host.wait_until_loaded();
            host.umount(&point)?;
            best = rate?.into_iter().chain(best).reduce(f64::max);
            fs::remove_dir(&point).map_err(BenchError::path("remove", &point))?;
        }
        host.end()?;
        Ok(best)
    }

    /// Runs one start from the local directory, to verify that the scenario works.
    pub(super) fn try_natively(&mut self, scenario: &Scenario) -> Result<Sample, BenchError> {
        self.start(scenario, &mut Native, Purpose::Measure)
    }
}

/// The unshaped link, as fast as this machine.
fn unshaped() -> LinkChoice {
    LinkChoice::Shaped("none".to_owned())
}

/// Label of a scenario's profile.
pub(super) fn label(scenario: &Scenario) -> String {
    format!("bench-{}", scenario.name)
}
