//! `inlay daemon`, `daemon status`, `daemon stop`, and the hidden `inlay keeper`.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, Subcommand};
use inlay_fusefs::keeper::{self, Begin, Claim, Keeper};
use inlay_store::cache::{Budget, CacheOptions};
use serde::Serialize;

use super::Global;
use super::duration;
use super::error::CliError;
use super::output;
use crate::daemon::{
    self, Access, Client, DaemonError, DaemonOptions, IfMounted, Readiness, STOP, StopAnswer,
    StopRequest, keeper_options,
};
use crate::mount::Registry;

/// How long unmounting everything may take.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// How long the daemon may take to end after its answer.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Serve the mounts of this host, in the foreground.
///
/// One daemon serves all mounts of a state directory. 'inlay mount' starts one in the background if
/// there is none, which ends by itself when nothing is mounted any more.
///
/// SIGTERM ends the daemon, not the mounts: a keeper process holds them, programs that use them wait,
/// and the next daemon goes on. 'inlay daemon stop' ends everything.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  inlay daemon --cache-size 20G
  inlay daemon --metrics-listen 127.0.0.1:9464     for Prometheus: http://127.0.0.1:9464/metrics
  inlay daemon --takeover --cache-size 20G         after an upgrade: replaces the one that runs
  inlay daemon status
  inlay daemon stop --force"
)]
pub(super) struct DaemonArgs {
    #[command(subcommand)]
    word: Option<DaemonWord>,
    /// Replace the daemon that runs. What is mounted stays, programs that use it notice nothing
    #[arg(long)]
    takeover: bool,
    /// How much disk the host's cache may take: a size, a share of the disk such as 20%, or auto.
    /// It is remembered for this state [default: what was said last, or auto]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Budget>,
    /// End after so long without a mount [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_exit: Option<Duration>,
    /// For how long programs wait while no daemon serves them; then they get errors until one comes
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "1m")]
    wait_for_daemon: Duration,
    /// A group, by its number, that may talk to the daemon. Its members can become root
    #[arg(long, value_name = "GID")]
    socket_group: Option<u32>,
    /// Serve metrics for Prometheus at this address, too: /metrics and nothing else, to whoever can
    /// reach it [default: on the daemon's socket only]
    #[arg(long, env = "INLAY_METRICS_LISTEN", value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Threads that answer the kernel, for each kind of snapshot [default: twice the cores, at most 8]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Leave the terminal, and say on standard output how it went
    #[arg(long, hide = true)]
    in_background: bool,
}

#[derive(Debug, Subcommand)]
enum DaemonWord {
    Status(StatusArgs),
    Stop(StopArgs),
    Openapi(OpenapiArgs),
}

/// Print the description of the daemon's API: an OpenAPI document.
///
/// A daemon that runs answers it at /v1/openapi.json.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay daemon openapi | jq '.paths | keys'
  curl --unix-socket /var/lib/inlay/run/daemon.sock http://inlay/v1/openapi.json")]
pub(super) struct OpenapiArgs {}

/// Show how the daemon is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay daemon status
  inlay daemon status --json | jq .server.pid")]
pub(super) struct StatusArgs {}

/// End the daemon, its keeper and the FUSE mounts.
///
/// Refused while something is mounted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay daemon stop
  inlay daemon stop --force")]
pub(super) struct StopArgs {
    /// Unmount everything first. Programs that use a mount get errors
    #[arg(long)]
    force: bool,
}

/// Hold the FUSE mounts for the daemons that come and go.
#[derive(Debug, Args)]
pub(super) struct KeeperArgs {
    #[arg(long, value_parser = duration::parse)]
    wait_for_daemon: Duration,
    /// Go on with the descriptors of an earlier keeper, which come through standard input
    #[arg(long)]
    with_stored: bool,
    /// What is started when a daemon has died
    #[arg(last = true)]
    respawn: Vec<OsString>,
}

pub(super) fn daemon(global: &Global, args: &DaemonArgs) -> Result<(), CliError> {
    match &args.word {
        Some(DaemonWord::Status(_)) => status(global),
        Some(DaemonWord::Stop(args)) => stop(global, args),
        Some(DaemonWord::Openapi(_)) => {
            Ok(std::io::stdout().write_all(daemon::openapi()?.as_bytes())?)
        }
        None => serve(global, args),
    }
}

fn serve(global: &Global, args: &DaemonArgs) -> Result<(), CliError> {
    // First, while nothing else is open.
    let stored = daemon::given();
    let mut readiness = args.in_background.then(Readiness::new);
    let outcome = options(global, args).and_then(|options| {
        let ready = || {
            if let Some(Err(error)) = readiness.take().map(Readiness::ready) {
                tracing::warn!(%error, "whoever started the daemon has gone");
            }
        };
        Ok(daemon::run(&options, stored, ready)?)
    });
    if let (Err(error), Some(readiness)) = (&outcome, readiness) {
        readiness.failed(error)?;
    }
    outcome
}

fn options(global: &Global, args: &DaemonArgs) -> Result<DaemonOptions, CliError> {
    Ok(DaemonOptions {
        state: global.state.clone(),
        claim: if args.takeover { Claim::TakeOver } else { Claim::WhenFree },
        access: args.socket_group.map_or(Access::Owner, Access::Group),
        cache: CacheOptions { budget: args.cache_size, ..CacheOptions::default() },
        idle_exit: args.idle_exit,
        metrics_listen: args.metrics_listen,
        threads: args.threads,
        keeper: keeper_words(global, args)?,
        monitor: common_words(global, "monitor")?,
    })
}

/// The words that make this program the keeper of daemons such as this one.
fn keeper_words(global: &Global, args: &DaemonArgs) -> Result<Vec<OsString>, CliError> {
    let mut words = common_words(global, "keeper")?;
    words.extend(["--wait-for-daemon".into(), duration::format(args.wait_for_daemon).into()]);
    words.push("--".into());
    let mut again = common_words(global, "daemon")?;
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            again.extend([name.into(), value.into()]);
        }
    };
    option("--cache-size", args.cache_size.map(|size| size.to_string()));
    option("--idle-exit", args.idle_exit.map(duration::format));
    option("--wait-for-daemon", Some(duration::format(args.wait_for_daemon)));
    option("--socket-group", args.socket_group.map(|group| group.to_string()));
    option("--metrics-listen", args.metrics_listen.map(|address| address.to_string()));
    option("--threads", args.threads.map(|threads| threads.to_string()));
    words.extend(daemon::again(again)?);
    Ok(words)
}

/// A word of the command line with the options that every process of a daemon shares.
pub(super) fn common_words(global: &Global, word: &str) -> Result<Vec<OsString>, CliError> {
    let state = std::path::absolute(&global.state)?;
    Ok(vec![word.into(), "--state".into(), state.into(), "--log".into(), (&global.log).into()])
}

pub(super) fn keeper(global: &Global, args: &KeeperArgs) -> Result<(), CliError> {
    let begin = if args.with_stored { Begin::WithStored } else { Begin::Afresh };
    let respawn = args.respawn.clone();
    let options = keeper_options(&global.paths()?, args.wait_for_daemon, respawn, begin);
    Ok(keeper::run(options).map_err(DaemonError::from)?)
}

fn status(global: &Global) -> Result<(), CliError> {
    let paths = global.paths()?;
    let Some(status) = Client::new(&paths)?.status()? else {
        return Err(DaemonError::NotRunning(paths.state().to_owned()).into());
    };
    output::print(global.format(), &status, |out| {
        let keeper = status.keeper.map_or("none".to_owned(), |pid| format!("process {pid}"));
        let cache = status.cache_size.as_deref().unwrap_or("unknown");
        let idle = status.idle_exit_ms.map_or("never".to_owned(), |limit| {
            format!("after {:?} without a mount", Duration::from_millis(limit))
        });
        writeln!(out, "daemon    process {}, version {}", status.server.pid, status.version)?;
        writeln!(out, "keeper    {keeper}, session {}", status.session)?;
        writeln!(out, "state     {}", status.state.to_path().display())?;
        writeln!(out, "mounts    {}", status.mounts)?;
        writeln!(out, "attached  {}", status.attached)?;
        writeln!(out, "sealed    {}", status.sealed)?;
        writeln!(out, "cache     {cache}")?;
        writeln!(out, "ends      {idle}")
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Stopped {
    /// The daemon's process, if there was a daemon.
    pid: Option<u32>,
    /// What was unmounted.
    unmounted: Vec<crate::mount::PathText>,
}

fn stop(global: &Global, args: &StopArgs) -> Result<(), CliError> {
    let paths = global.paths()?;
    let kept = Keeper::connect(&paths.keeper_socket()).is_ok();
    let mounted = paths.state().is_dir() && !Registry::open(paths.state())?.list()?.is_empty();
    let mut client = Client::new(&paths)?;
    if client.status()?.is_none() {
        if !kept && !mounted {
            let answer = Stopped { pid: None, unmounted: Vec::new() };
            output::print(global.format(), &answer, |out| writeln!(out, "no daemon runs"))?;
            return Ok(());
        }
        if args.force && !kept {
            // A service manager may hold it, and then nothing new can be in its place.
            keeper::give_up(&paths.fuse());
        }
        // What a daemon has left behind, a daemon clears up.
        client = super::client::ensure(global, &paths, None)?.0;
    }
    let if_mounted = if args.force { IfMounted::Unmount } else { IfMounted::Refuse };
    let answer: StopAnswer = client.post(STOP, &StopRequest { if_mounted }, STOP_LIMIT)?;
    let pid = answer.server.pid;
    if !answer.server.wait(END_LIMIT)? {
        return Err(DaemonError::DoesNotEnd(pid).into());
    }
    let answer = Stopped { pid: Some(pid), unmounted: answer.unmounted };
    output::print(global.format(), &answer, |out| {
        for mountpoint in &answer.unmounted {
            writeln!(out, "{} unmounted", mountpoint.to_path().display())?;
        }
        writeln!(out, "daemon {pid} stopped")
    })?;
    Ok(())
}
