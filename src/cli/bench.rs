//! `inlay bench`: what is measured, how far that is, and where the report goes.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Global;
use super::error::CliError;
use super::output;
use crate::bench::{
    BenchError, HostState, Interrupt, LinkChoice, Progress, Report, Scenario, StartupOptions,
    markdown, page, startup,
};
use crate::config;

/// Measure.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Startup(StartupArgs),
}

/// Measure how soon programs are ready: by inlay, from a local directory, and in other ways.
///
/// A scenario is a file in TOML: an image, a command, and when it counts as ready. Each is started by
/// each method over each link on a host that has nothing of the image (cold), that has it with empty
/// caches of the kernel (warm), and once more at once (hot), in random order, several times. The report
/// has medians and spreads, what came through the link, the ratio to the ideal, and says where inlay
/// loses. What fails has no number, and makes the command fail.
///
/// Without --store, a local S3 server behind a link that is shaped is measured with: the test kit's
/// program 'shaped-store' does that. With it, your own store is, over the link that there is. Needs
/// root; empties the kernel's caches.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay bench startup benches/startup/python.toml
  inlay bench startup --link wan,region --runs 5 --output report benches/startup/*.toml
  inlay bench startup --adapter benches/startup/adapters/pull --method profile,pull python.toml
  inlay --store s3://bucket/prefix bench startup mine.toml
  inlay bench startup --link 30ms,500mbit --host cold --json mine.toml | jq '.verdicts'")]
struct StartupArgs {
    /// Files of scenarios
    #[arg(required = true, value_name = "SCENARIO.toml")]
    scenarios: Vec<PathBuf>,
    /// zone (2 ms, 10 Gbit/s), region (20 ms, 2 Gbit/s), wan (50 ms, 200 Mbit/s), none, or
    /// LATENCY,BANDWIDTH[,JITTER] [default: wan; with --store, the link that there is]. Several
    /// names have commas between them; others are given one by one
    #[arg(long = "link", value_name = "LINK")]
    links: Vec<String>,
    /// native, profile, no-profile, no-prefetch, prefetched, and what adapters are called [default:
    /// all; native always is]
    #[arg(long = "method", value_name = "METHOD", value_delimiter = ',')]
    methods: Vec<String>,
    /// A program that gets images to a host in another way
    #[arg(long = "adapter", value_name = "PROGRAM")]
    adapters: Vec<PathBuf>,
    /// What a host has before a start
    #[arg(long = "host", value_enum, value_delimiter = ',', value_name = "STATE",
        default_values = ["cold", "warm", "hot"])]
    hosts: Vec<StateWord>,
    /// How often each start is made
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// What the order of starts and the jitter of links follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A directory for report.json, report.md and report.html, made if it is missing
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// A directory on a disk, for the hosts that are measured
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work: PathBuf,
    /// The test kit's program [default: shaped-store beside this program, or in PATH]
    #[arg(long, value_name = "PROGRAM")]
    shaped_store: Option<PathBuf>,
    /// The OCI runtime [default: runc, or crun]
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
    let mut show = Show::new(global);
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
        runtime: args.runtime.clone(),
        store,
    })
}

/// Several names, or one link whose figures have commas between them.
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
        let write = || -> std::io::Result<()> {
            let mut new = tempfile::NamedTempFile::new_in(dir)?;
            new.write_all(text.as_bytes())?;
            new.as_file().sync_all()?;
            new.persist(&file)?;
            Ok(())
        };
        write().map_err(BenchError::path("write", &file))?;
    }
    Ok(())
}

fn request(text: &str) -> CliError {
    BenchError::Request(text.to_owned()).into()
}

/// Progress on a terminal, and lines for what fails.
struct Show {
    bar: ProgressBar,
    done: (usize, usize),
}

impl Show {
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

impl Progress for Show {
    fn stage(&mut self, what: &str) {
        self.bar.set_message(what.to_owned());
        tracing::info!(done = self.done.0, of = self.done.1, "{what}");
    }

    fn visits(&mut self, done: usize, of: usize) {
        self.done = (done, of);
        self.bar.set_prefix(format!("{done} of {of}"));
    }

    fn notice(&mut self, text: &str) {
        self.bar.suspend(|| {
            // Nobody may be there to read it.
            drop(writeln!(std::io::stderr(), "inlay: {text}"));
        });
    }
}
