//! `inlay bench`: selects measurements, shows their progress and writes the report.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use inlay_base::durable;
use inlay_base::text::Escaped;
use inlay_bench::{
    BenchError, HostState, Interrupt, LinkChoice, Progress, Report, Scenario, StartupOptions,
    WithoutKit, markdown, page, startup,
};

use super::Global;
use super::error::CliError;
use super::output;
use crate::config;

/// Run benchmarks.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Startup(StartupArgs),
}

/// Measure startup times with inlay, from a local directory, and by other methods.
///
/// A scenario is a TOML file with an image, a command and a readiness condition. Each scenario is
/// started with each method over each link on a host without any of the image (cold), with the image
/// but empty kernel caches (warm), and immediately again (hot), several times in random order. The
/// report contains medians and spreads, bytes transferred over the link, the ratio to the ideal, and the
/// cases where inlay is slower. Measurements that fail have no numbers, and the command exits with 1.
///
/// With --store, images are imported into that store and starts fetch them over the real link. Without
/// it, the program 'shaped-store' of the test kit runs a local S3 server (SeaweedFS) behind a shaped
/// link. In the source tree, 'scripts/bench startup' installs the server and builds both programs. If
/// shaped-store is missing or its server does not start, and none of --link, --adapter and
/// --shaped-store is given, the store is a local directory without a shaped link: a warning and the
/// report say so.
///
/// Requires root and runc or crun. Drops the kernel's caches.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay bench startup benches/startup/python.toml
  inlay bench startup --link wan,region --runs 5 --output report benches/startup/*.toml
  inlay bench startup --adapter benches/startup/adapters/pull --method profile,pull python.toml
  inlay --store s3://bucket/prefix bench startup mine.toml
  inlay bench startup --link 30ms,500mbit --host cold --json mine.toml | jq '.verdicts'")]
struct StartupArgs {
    /// Scenario files
    #[arg(required = true, value_name = "SCENARIO.toml")]
    scenarios: Vec<PathBuf>,
    /// Link: zone (2 ms, 10 Gbit/s), region (20 ms, 2 Gbit/s), wan (50 ms, 200 Mbit/s), none, or
    /// LATENCY,BANDWIDTH[,JITTER]. Separate several names with commas; repeat the option for other
    /// links [default: wan; with --store, the real link]
    #[arg(long = "link", value_name = "LINK")]
    links: Vec<String>,
    /// Methods: native, profile, no-profile, no-prefetch, prefetched, or names of adapters. native is
    /// always included [default: all]
    #[arg(long = "method", value_name = "METHOD", value_delimiter = ',')]
    methods: Vec<String>,
    /// Program that provides images by another method
    #[arg(long = "adapter", value_name = "PROGRAM")]
    adapters: Vec<PathBuf>,
    /// State of the host before a start
    #[arg(long = "host", value_enum, value_delimiter = ',', value_name = "STATE",
        default_values = ["cold", "warm", "hot"])]
    hosts: Vec<StateWord>,
    /// Number of runs of each start
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Seed for the order of starts and the jitter of links
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for report.json, report.md and report.html; created if missing
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Directory on a disk for the state of the measured hosts
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work: PathBuf,
    /// Program 'shaped-store' of the test kit [default: beside this program, or in PATH]
    #[arg(long, value_name = "PROGRAM")]
    shaped_store: Option<PathBuf>,
    /// OCI runtime [default: runc, or crun]
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StateWord {
    Cold,
    Warm,
    Hot,
}

pub(super) fn bench(global: &Global, args: &BenchArgs) -> Result<(), CliError> {
    match &args.command {
        BenchCommand::Startup(args) => measure(global, args),
    }
}

fn measure(global: &Global, args: &StartupArgs) -> Result<(), CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(request("run this as root: it mounts, and empties the kernel's caches"));
    }
    let interrupt = Interrupt::by_signals().map_err(|error| request(&error.to_string()))?;
    let work = tempfile::Builder::new()
        .prefix("inlay-bench-")
        .tempdir_in(&args.work)
        .map_err(|error| request(&format!("--work {}: {error}", args.work.display())))?;
    let mut show = BenchProgress::new(global);
    let options = options(global, args, work.path())?;
    let report = startup(&options, &interrupt, &mut show);
    show.bar.finish_and_clear();
    let report = report?;
    work.close().map_err(|error| request(&format!("the working directory stays: {error}")))?;
    if let Some(dir) = &args.output {
        write_report(dir, &report)?;
    }
    let text = markdown(&report);
    output::print(global.format(), &report, |out| out.write_all(text.as_bytes()))?;
    if report.is_whole() {
        return Ok(());
    }
    let failed = report.failures.len();
    Err(request(&format!(
        "{failed} of what was to be measured failed and has no numbers; the report says what"
    )))
}

fn options(global: &Global, args: &StartupArgs, work: &Path) -> Result<StartupOptions, CliError> {
    let scenarios =
        args.scenarios.iter().map(|file| Scenario::read(file)).collect::<Result<_, _>>()?;
    let store = global.store.clone().map(|url| (url, config::store_variables()));
    let links = match (args.links.is_empty(), &store) {
        (true, Some(_)) => vec![LinkChoice::Own],
        (true, None) => vec![LinkChoice::Shaped("wan".to_owned())],
        (false, _) => args.links.iter().flat_map(|text| links(text)).collect(),
    };
    // No fallback if the user explicitly requested the test kit's servers.
    let explicit =
        !args.links.is_empty() || !args.adapters.is_empty() || args.shaped_store.is_some();
    let without_kit = if explicit { WithoutKit::Fail } else { WithoutKit::LocalDirectory };
    let exe = std::env::current_exe().map_err(|error| request(&error.to_string()))?;
    let states = args.hosts.iter().map(|state| match state {
        StateWord::Cold => HostState::Cold,
        StateWord::Warm => HostState::Warm,
        StateWord::Hot => HostState::Hot,
    });
    let mut states: Vec<HostState> = states.collect();
    states.sort();
    states.dedup();
    Ok(StartupOptions {
        scenarios,
        links,
        methods: (!args.methods.is_empty()).then(|| args.methods.clone()),
        adapters: args.adapters.clone(),
        states,
        runs: args.runs.into(),
        seed: args.seed,
        work: work.to_owned(),
        exe,
        kit: args.shaped_store.clone(),
        without_kit,
        runtime: args.runtime.clone(),
        store,
    })
}

/// Parses comma-separated names, or one LATENCY,BANDWIDTH[,JITTER].
fn links(text: &str) -> Vec<LinkChoice> {
    let named = |word: &str| matches!(word, "none" | "zone" | "region" | "wan" | "own");
    let choice = |word: &str| match word {
        "own" => LinkChoice::Own,
        _ => LinkChoice::Shaped(word.to_owned()),
    };
    if text.split(',').all(named) {
        text.split(',').map(choice).collect()
    } else {
        vec![choice(text)]
    }
}

fn write_report(dir: &Path, report: &Report) -> Result<(), CliError> {
    fs::create_dir_all(dir).map_err(BenchError::path("make", dir))?;
    let json = serde_json::to_string_pretty(report).map_err(|error| request(&error.to_string()))?;
    for (name, text) in
        [("report.json", json), ("report.md", markdown(report)), ("report.html", page(report))]
    {
        let file = dir.join(name);
        durable::write(&file, text.as_bytes()).map_err(BenchError::path("write", &file))?;
    }
    Ok(())
}

fn request(text: &str) -> CliError {
    BenchError::Request(text.to_owned()).into()
}

/// Shows progress on a terminal, and notices such as failures on lines of their own.
struct BenchProgress {
    bar: ProgressBar,
    done: (usize, usize),
}

impl BenchProgress {
    fn new(global: &Global) -> Self {
        let visible = !global.quiet && std::io::stderr().is_terminal();
        let target = if visible {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        if visible {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, done: (0, 0) }
    }
}

impl Progress for BenchProgress {
    fn stage(&mut self, what: &str) {
        self.bar.set_message(what.to_owned());
        tracing::info!(done = self.done.0, of = self.done.1, "{what}");
    }

    fn visits(&mut self, done: usize, of: usize) {
        self.done = (done, of);
        self.bar.set_prefix(format!("{done} of {of}"));
    }

    fn notice(&mut self, text: &str) {
        self.bar.suspend(|| output::note(format_args!("inlay: {}", Escaped(text))));
    }
}
