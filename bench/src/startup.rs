//! Runs a whole start-up benchmark: preparation, visits in random order, and the report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::adapter::Adapter;
use super::command::find;
use super::container::Runtime;
use super::error::BenchError;
use super::inlay::{Fetched, Inlay};
use super::interrupt::Interrupt;
use super::link::{LinkChoice, LinkSpeed};
use super::method::{HostState, Method};
use super::parts::{Layouts, Parts};
use super::report::{
    Cell, Conditions, LinkReport, MethodReport, Needed, Report, ScenarioReport, VERSION, Whose,
};
use super::scenario::{Scenario, Source};
use super::server::ShapedStore;
use super::visit::{Bench, VisitOutcome, label};

/// Parameters of a benchmark.
#[derive(Debug, Clone)]
pub struct StartupOptions {
    /// Starts to measure.
    pub scenarios: Vec<Scenario>,
    /// Links: shaped ones of the test kit, or the user's own alone.
    pub links: Vec<LinkChoice>,
    /// Names of methods; `None` for all.
    pub methods: Option<Vec<String>>,
    /// Executables of adapters.
    pub adapters: Vec<PathBuf>,
    /// States of hosts to measure.
    pub states: Vec<HostState>,
    /// Number of runs of each start; at least 1.
    pub runs: usize,
    /// Seed of the random order and of the jitter.
    pub seed: u64,
    /// Working directory on a disk, used exclusively.
    pub work: PathBuf,
    /// The `inlay` executable.
    pub exe: PathBuf,
    /// The test kit's `shaped-store`; searched for if `None`.
    pub kit: Option<PathBuf>,
    /// Fallback if the test kit's servers fail to start.
    pub without_kit: WithoutKit,
    /// The OCI runtime; searched for if `None`.
    pub runtime: Option<PathBuf>,
    /// The user's own store for [`LinkChoice::Own`], with the variables of its credentials.
    pub store: Option<(String, Vec<(String, String)>)>,
}

/// Fallback if no shaped link can be provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutKit {
    /// Fail: the caller requested a shaped link.
    Fail,
    /// Measure with a store in a local directory, without a link.
    LocalDirectory,
}

/// Receives progress reports.
pub trait Progress {
    /// A new stage begins.
    fn stage(&mut self, what: &str);
    /// `done` of `of` visits are complete.
    fn visits(&mut self, done: usize, of: usize);
    /// A message to show now; the report contains it too.
    fn notice(&mut self, text: &str);
}

#[derive(Deserialize)]
struct ProfileJson {
    groups: Vec<serde_json::Value>,
    stored_bytes: u64,
    raw_bytes: u64,
}

/// One visit to make, as indices into the options and the methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Visit {
    link: usize,
    scenario: usize,
    method: usize,
}

struct Run<'a> {
    options: &'a StartupOptions,
    methods: Vec<Method>,
    bench: Bench,
    report: Report,
    /// Visits that are skipped because preparation or an earlier run failed.
    given_up: Vec<Visit>,
    progress: &'a mut dyn Progress,
}

/// Measures as `options` request. Failures of single starts go into the report, which then lacks
/// their numbers; an error means that there is nothing to report.
pub fn startup(
    options: &StartupOptions,
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Report, BenchError> {
    check(options)?;
    let (began, clock) = (SystemTime::now(), Instant::now());
    let mut failures = Vec::new();
    let adapters = find_adapters(options, interrupt, &mut failures, progress)?;
    let methods = methods(options, &adapters)?;
    let inlay = Inlay::new(options.exe.clone(), options.work.clone());
    let runtime = Runtime::find(options.runtime.as_deref(), &options.work)?;
    let local;
    let (options, servers) = match start_servers(options, &adapters, interrupt, progress) {
        Ok(servers) => (options, servers),
        Err(error) => {
            interrupt.check()?;
            if options.without_kit == WithoutKit::Fail {
                return Err(error);
            }
            progress.notice(&format!(
                "{error}. Measuring with a store in a local directory instead: no link is shaped, \
                 and latency and bandwidth are those of this disk"
            ));
            local = options.on_local_directory();
            (&local, None)
        }
    };
    let report = empty_report(options, &methods, &adapters, &runtime, began, failures);
    let own = options.store.as_ref().map(|(url, variables)| {
        let mut own: BTreeMap<_, _> = variables.iter().cloned().collect();
        own.insert("INLAY_STORE".to_owned(), url.clone());
        own
    });
    let bench = Bench {
        inlay,
        runtime,
        servers,
        own: own.unwrap_or_default(),
        adapters,
        parts: Parts::default(),
        work: options.work.clone(),
        seed: options.seed,
        states: options.states.clone(),
        interrupt: interrupt.clone(),
        visits: 0,
    };
    let mut run = Run { options, methods, bench, report, given_up: Vec::new(), progress };
    run.prepare()?;
    run.visits()?;
    run.clean();
    let mut report = run.report;
    report.conditions.took = clock.elapsed().as_secs_f64();
    report.conclude();
    Ok(report)
}

fn check(options: &StartupOptions) -> Result<(), BenchError> {
    let wrong = |text: &str| Err(BenchError::Request(text.to_owned()));
    let names: BTreeSet<_> = options.scenarios.iter().map(|scenario| &scenario.name).collect();
    if names.len() < options.scenarios.len() {
        return wrong("two scenarios have the same name");
    }
    if names.is_empty()
        || options.links.is_empty()
        || options.states.is_empty()
        || options.runs == 0
    {
        return wrong("nothing is asked for: give scenarios, links, states and runs");
    }
    let owns = options.links.iter().filter(|link| **link == LinkChoice::Own).count();
    if owns > 0 && (options.links.len() > 1 || options.store.is_none()) {
        return wrong(
            "the link 'own' is measured by itself, with a store of your own: give --store",
        );
    }
    if owns > 0 && !options.adapters.is_empty() {
        return wrong("adapters need the test kit's servers: they can't be measured with --store");
    }
    let of_store =
        |scenario: &Scenario| scenario.sources().any(|one| matches!(one, Source::Snapshot(_)));
    if owns == 0 && options.scenarios.iter().any(of_store) {
        return wrong("a scenario starts from a snapshot of a store: give --store");
    }
    Ok(())
}

impl StartupOptions {
    /// Returns the same options with a store in the working directory.
    fn on_local_directory(&self) -> Self {
        let store = self.work.join("store").to_string_lossy().into_owned();
        Self { links: vec![LinkChoice::Own], store: Some((store, Vec::new())), ..self.clone() }
    }

    /// Returns the store for the report, without credentials.
    fn store_shown(&self) -> String {
        match self.store.as_ref().filter(|_| self.links.contains(&LinkChoice::Own)) {
            None => "a local S3 server".to_owned(),
            Some((url, _)) if Path::new(url).starts_with(&self.work) => {
                "a local directory".to_owned()
            }
            Some((url, _)) => url.split(['?', '@']).next_back().unwrap_or_default().to_owned(),
        }
    }
}

/// Starts the test kit's servers. `None` if every link is the user's own.
fn start_servers(
    options: &StartupOptions,
    adapters: &[Adapter],
    interrupt: &Interrupt,
    progress: &mut dyn Progress,
) -> Result<Option<ShapedStore>, BenchError> {
    if options.links.iter().all(|link| *link == LinkChoice::Own) {
        return Ok(None);
    }
    progress.stage("starting the store");
    let registry: &[&str] = if adapters.is_empty() { &[] } else { &["--registry"] };
    ShapedStore::start(&kit(options)?, registry, interrupt).map(Some)
}

fn kit(options: &StartupOptions) -> Result<PathBuf, BenchError> {
    let found = options.kit.clone().or_else(|| find("shaped-store"));
    found.ok_or_else(|| BenchError::Missing {
        program: "shaped-store".to_owned(),
        why: "for a store behind a shaped link",
        advice: "in the source tree, 'scripts/bench startup' builds and uses it, and so does 'cargo build \
                 --release -p inlay-testkit --bin shaped-store' ('cargo test --workspace' for a debug \
                 build); or measure your own store with --store"
            .to_owned(),
    })
}

fn find_adapters(
    options: &StartupOptions,
    interrupt: &Interrupt,
    failures: &mut Vec<String>,
    progress: &mut dyn Progress,
) -> Result<Vec<Adapter>, BenchError> {
    let mut adapters: Vec<Adapter> = Vec::new();
    for program in &options.adapters {
        match Adapter::find(program, interrupt)? {
            Ok(adapter) => {
                let name = &adapter.described.name;
                let taken = |other: &Adapter| other.described.name == *name;
                if Method::OWN.iter().any(|own| own.name() == name) || adapters.iter().any(taken) {
                    return Err(BenchError::Request(format!("two methods are called {name}")));
                }
                adapters.push(adapter);
            }
            Err(missing) => {
                let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let text = format!("{name} is not measured: {missing}");
                progress.notice(&text);
                // It counts as a failure only if it was requested by name.
                if options.methods.as_ref().is_some_and(|methods| methods.contains(&name)) {
                    failures.push(text);
                }
            }
        }
    }
    Ok(adapters)
}

fn methods(options: &StartupOptions, adapters: &[Adapter]) -> Result<Vec<Method>, BenchError> {
    let of_adapters = adapters
        .iter()
        .enumerate()
        .map(|(place, adapter)| Method::Adapter { place, name: adapter.described.name.clone() });
    let all: Vec<Method> = Method::OWN.into_iter().chain(of_adapters).collect();
    let Some(wanted) = &options.methods else { return Ok(all) };
    let names = || all.iter().map(Method::name).collect::<Vec<_>>().join(", ");
    if let Some(unknown) = wanted.iter().find(|name| !all.iter().any(|one| one.name() == *name)) {
        return Err(BenchError::Request(format!(
            "there is no method {unknown}; there are {}",
            names()
        )));
    }
    // The limit is always measured: every comparison needs it.
    let is_wanted = |method: &Method| {
        *method == Method::Native || wanted.iter().any(|name| name == method.name())
    };
    Ok(all.iter().filter(|method| is_wanted(method)).cloned().collect())
}

fn empty_report(
    options: &StartupOptions,
    methods: &[Method],
    adapters: &[Adapter],
    runtime: &Runtime,
    began: SystemTime,
    failures: Vec<String>,
) -> Report {
    let described = |method: &Method| match method {
        Method::Adapter { place, .. } => adapters.get(*place).map_or(String::new(), |adapter| {
            let Adapter { described, .. } = adapter;
            format!("{} ({})", described.what.trim_end_matches('.'), described.version)
        }),
        _ => method.about().to_owned(),
    };
    let whose = |method: &Method| match method {
        Method::Native => Whose::Limit,
        Method::Adapter { .. } => Whose::Other,
        _ => Whose::Inlay,
    };
    let uname = rustix::system::uname();
    Report {
        format: "inlay-bench".to_owned(),
        version: VERSION,
        conditions: Conditions {
            began: began
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| i64::try_from(since.as_secs()).ok())
                .unwrap_or(0),
            took: 0.0,
            inlay: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            runtime: name_of(runtime.program()),
            runs: options.runs,
            seed: options.seed,
            store: options.store_shown(),
        },
        links: options
            .links
            .iter()
            .map(|link| LinkReport { name: link.to_string(), figures: None })
            .collect(),
        scenarios: options.scenarios.iter().map(scenario_shown).collect(),
        methods: methods
            .iter()
            .map(|method| MethodReport {
                name: method.name().to_owned(),
                about: described(method),
                whose: whose(method),
            })
            .collect(),
        cells: Vec::new(),
        verdicts: Vec::new(),
        failures,
    }
}

fn scenario_shown(scenario: &Scenario) -> ScenarioReport {
    ScenarioReport {
        name: scenario.name.clone(),
        about: scenario.about.clone(),
        command: scenario.command.clone(),
        ready: scenario.ready.to_string(),
        needed: None,
        ideal: BTreeMap::new(),
    }
}

fn name_of(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Run<'_> {
    /// Does everything that is not measured: imports images, tries each scenario once natively, and
    /// records a profile of it.
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.cells();
        self.stats()?;
        let uses_adapters =
            self.methods.iter().any(|method| matches!(method, Method::Adapter { .. }));
        let layouts = if uses_adapters { Layouts::Wanted } else { Layouts::NotWanted };
        let options = self.options;
        for (place, scenario) in options.scenarios.iter().enumerate() {
            if let Err(error) = self.prepare_scenario(scenario, layouts) {
                self.bench.interrupt.check()?;
                self.give_up_scenario(place, &error);
            }
        }
        self.prepare_adapters()
    }

    fn cells(&mut self) {
        for link in &self.options.links {
            for scenario in &self.options.scenarios {
                for method in &self.methods {
                    let states = method.measured_in(&self.options.states).into_iter();
                    self.report.cells.extend(states.map(|state| Cell {
                        link: link.to_string(),
                        scenario: scenario.name.clone(),
                        method: method.name().to_owned(),
                        state,
                        samples: Vec::new(),
                        seconds: None,
                        ratio: None,
                        failure: None,
                    }));
                }
            }
        }
    }

    fn stats(&mut self) -> Result<(), BenchError> {
        let Some(servers) = &mut self.bench.servers else { return Ok(()) };
        for (link, shown) in self.options.links.iter().zip(&mut self.report.links) {
            if let LinkChoice::Shaped(name) = link {
                shown.figures = Some(servers.shape(name, self.options.seed)?);
            }
        }
        Ok(())
    }

    fn prepare_scenario(
        &mut self,
        scenario: &Scenario,
        layouts: Layouts,
    ) -> Result<(), BenchError> {
        self.progress.stage(&format!("{}: putting its image into the store", scenario.name));
        let direct = self.bench.environment_direct();
        let (inlay, interrupt) = (self.bench.inlay.clone(), self.bench.interrupt.clone());
        self.bench.parts.prepare(scenario, &inlay, &direct, layouts, &interrupt)?;
        self.progress.stage(&format!("{}: trying it from the local directory", scenario.name));
        self.bench.try_natively(scenario)?;
        let ours = self.methods.iter().any(Method::is_inlay);
        if !ours {
            return Ok(());
        }
        self.refuse_known_profile(scenario)?;
        self.progress.stage(&format!("{}: recording what it reads", scenario.name));
        let mut fetched = self.bench.record(scenario)?;
        if self.bench.servers.is_none() {
            self.progress.stage(&format!("{}: measuring the link", scenario.name));
            fetched.rate = self.bench.link_rate(scenario)?.or(fetched.rate);
        }
        self.own_figures(&fetched);
        let needed = self.needed(scenario)?;
        if let Some(shown) = self.report.scenarios.iter_mut().find(|one| one.name == scenario.name)
        {
            shown.needed = Some(needed);
        }
        Ok(())
    }

    /// Fails if the store already has a profile for all starts: the method no-profile would use it.
    fn refuse_known_profile(&self, scenario: &Scenario) -> Result<(), BenchError> {
        if self.bench.servers.is_some() || !self.methods.contains(&Method::NoProfile) {
            return Ok(());
        }
        for (part, _) in self.bench.parts.of(scenario)? {
            if self
                .profile(&part.name, "default")?
                .is_some_and(|profile| !profile.groups.is_empty())
            {
                return Err(BenchError::Request(format!(
                    "{} has a profile for all starts in this store, so a first start can't be measured: \
                     leave out the method no-profile, or drop it with 'inlay profile drop {}'",
                    part.name, part.name
                )));
            }
        }
        Ok(())
    }

    fn profile(&self, part: &str, label: &str) -> Result<Option<ProfileJson>, BenchError> {
        let words = ["--json", "profile", "show", part, "--label", label];
        let said = self
            .bench
            .inlay
            .ask(&self.bench.environment_direct(), &words)
            .run(&self.bench.interrupt)?;
        if !said.status.success() {
            // No profile, or the store does not respond; the next use of the store reports the
            // latter.
            return Ok(None);
        }
        let parsed = serde_json::from_slice(&said.stdout);
        parsed.map(Some).map_err(|error| BenchError::Program {
            program: "inlay profile show".to_owned(),
            why: error.to_string(),
        })
    }

    fn needed(&self, scenario: &Scenario) -> Result<Needed, BenchError> {
        let mut needed = Needed::default();
        for (part, _) in self.bench.parts.of(scenario)? {
            // A part small enough for its index alone fetches no groups and has no profile.
            if let Some(profile) = self.profile(&part.name, &label(scenario))? {
                needed.groups += profile.groups.len() as u64;
                needed.stored_bytes += profile.stored_bytes;
                needed.raw_bytes += profile.raw_bytes;
            }
        }
        if needed.groups == 0 {
            return Err(BenchError::Request(
                "the recorded start has read nothing of its image".to_owned(),
            ));
        }
        Ok(needed)
    }

    /// Updates the user's own link from the daemon's measurements, their only source. Keeps the
    /// best of all recorded starts: one that reads little does not fill the link.
    fn own_figures(&mut self, fetched: &Fetched) {
        if self.bench.servers.is_some() {
            return;
        }
        if let (Some(latency), Some(link)) = (fetched.round_trip, self.report.links.first_mut()) {
            let now = LinkSpeed { latency, bandwidth: fetched.rate };
            link.figures = Some(link.figures.map_or(now, |before| before.or_better(&now)));
        }
    }

    fn prepare_adapters(&mut self) -> Result<(), BenchError> {
        let Some(servers) = &self.bench.servers else { return Ok(()) };
        let environment = servers.environment_of_adapters();
        self.bench.shape(&LinkChoice::Shaped("none".to_owned()))?;
        let mut broken = Vec::new();
        for (place, adapter) in self.bench.adapters.iter_mut().enumerate() {
            let of_this = |method: &&Method| matches!(method, Method::Adapter { place: of, .. } if *of == place);
            let Some(method) = self.methods.iter().position(|method| of_this(&method)) else {
                continue;
            };
            adapter.settle(&self.options.work, &environment)?;
            self.progress.stage(&format!(
                "{}: putting images where it gets them from",
                adapter.described.name
            ));
            let prepare = |part| adapter.prepare(part, &self.bench.interrupt);
            if let Err(error) = self.bench.parts.list().try_for_each(prepare) {
                self.bench.interrupt.check()?;
                broken.push((method, error));
            }
        }
        for (method, error) in broken {
            self.give_up(&error, |visit| visit.method == method);
        }
        Ok(())
    }

    fn give_up_scenario(&mut self, place: usize, error: &BenchError) {
        self.give_up(error, |visit| visit.scenario == place);
    }

    /// Marks the selected visits as failed and reports the error once.
    fn give_up(&mut self, error: &BenchError, which: impl Fn(&Visit) -> bool) {
        let all: Vec<Visit> = self.all_visits().into_iter().filter(|visit| which(visit)).collect();
        let mut names = BTreeSet::new();
        for visit in all {
            if self.given_up.contains(&visit) {
                continue;
            }
            let (link, scenario, method) = self.names(visit);
            names.insert(scenario.clone());
            for cell in &mut self.report.cells {
                if cell.link == link && cell.scenario == scenario && cell.method == method {
                    cell.failure = Some(error.to_string());
                }
            }
            self.given_up.push(visit);
        }
        let names: Vec<String> = names.into_iter().collect();
        self.fail(&format!("{}: {error}", names.join(", ")));
    }

    fn fail(&mut self, text: &str) {
        self.progress.notice(text);
        self.report.failures.push(text.to_owned());
    }

    fn names(&self, visit: Visit) -> (String, String, String) {
        let link = self.options.links.get(visit.link).map(ToString::to_string);
        let scenario = self.options.scenarios.get(visit.scenario).map(|one| one.name.clone());
        let method = self.methods.get(visit.method).map(|one| one.name().to_owned());
        (link.unwrap_or_default(), scenario.unwrap_or_default(), method.unwrap_or_default())
    }

    fn all_visits(&self) -> Vec<Visit> {
        let mut all = Vec::new();
        for link in 0..self.options.links.len() {
            for scenario in 0..self.options.scenarios.len() {
                all.extend((0..self.methods.len()).map(|method| Visit { link, scenario, method }));
            }
        }
        all
    }

    fn visits(&mut self) -> Result<(), BenchError> {
        let mut chance = fastrand::Rng::with_seed(self.options.seed);
        let total = self.all_visits().len() * self.options.runs;
        let mut done = 0;
        for _ in 0..self.options.runs {
            let mut round = self.all_visits();
            chance.shuffle(&mut round);
            for visit in round {
                self.progress.visits(done, total);
                done += 1;
                if !self.given_up.contains(&visit) {
                    self.visit(visit)?;
                }
            }
        }
        self.progress.visits(total, total);
        Ok(())
    }

    fn visit(&mut self, visit: Visit) -> Result<(), BenchError> {
        let options = self.options;
        let (Some(link), Some(scenario), Some(method)) = (
            options.links.get(visit.link),
            options.scenarios.get(visit.scenario),
            self.methods.get(visit.method).cloned(),
        ) else {
            return Ok(());
        };
        self.progress.stage(&format!("{} over {link}, {}", scenario.name, method.name()));
        let outcome: VisitOutcome = self.bench.visit(scenario, &method, link);
        // An interrupted start says nothing about its method.
        self.bench.interrupt.check()?;
        let (link, scenario, method) = self.names(visit);
        for (state, sample) in outcome {
            let cell = self.report.cells.iter_mut().find(|cell| {
                cell.link == link
                    && cell.scenario == scenario
                    && cell.method == method
                    && cell.state == state
            });
            let Some(cell) = cell else { continue };
            match sample {
                Ok(sample) => cell.samples.push(sample),
                Err(error) => {
                    let text = format!("{scenario} over {link}, {method}, {state}: {error}");
                    let first = cell.failure.is_none();
                    cell.failure = Some(error.to_string());
                    if first {
                        self.fail(&text);
                    }
                    if !self.given_up.contains(&visit) {
                        self.given_up.push(visit);
                    }
                }
            }
        }
        Ok(())
    }

    /// Stops adapters, and deletes the benchmark's profiles from the user's own store.
    fn clean(&mut self) {
        self.progress.stage("clearing away");
        for adapter in &self.bench.adapters {
            if let Err(error) = adapter.clean(&adapter.host(usize::MAX)) {
                tracing::warn!(%error, "an adapter is not cleared away");
            }
        }
        if self.bench.servers.is_some() {
            return;
        }
        for scenario in &self.options.scenarios {
            let Ok(parts) = self.bench.parts.of(scenario) else { continue };
            for (part, _) in parts {
                let words = ["profile", "drop", &part.name, "--label", &label(scenario)];
                let dropped =
                    self.bench.inlay.ask(&self.bench.own, &words).output(&Interrupt::default());
                if let Err(error) = dropped {
                    tracing::debug!(%error, "a profile of the benchmark stays in the store");
                }
            }
        }
    }
}
