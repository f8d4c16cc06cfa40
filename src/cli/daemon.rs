//! `inlay daemon` with `status`, `stop` and `openapi`, and the hidden `inlay keeper`.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Args, Subcommand};
use inlay_base::descriptors;
use inlay_fusefs::keeper::{self, Begin, Claim, Keeper};
use inlay_mounts::Registry;
use inlay_store::cache::{Budget, CacheOptions};
use serde::Serialize;

use super::Global;
use super::duration;
use super::error::CliError;
use super::output;
use crate::daemon::{
    self, Access, Client, ClientError, DaemonError, DaemonOptions, IfMounted, Readiness, STOP,
    StatusAnswer, StopAnswer, StopRequest, SyncAnswer, keeper_options,
};

/// Timeout for unmounting everything; longer than the daemon's own.
const STOP_LIMIT: Duration = Duration::from_mins(2);
/// Timeout for the daemon's exit after its response.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Serve the mounts of this host, in the foreground.
///
/// One daemon serves all mounts of a state directory. 'inlay mount' starts one in the background if
/// none is running; that one exits when nothing is mounted any more.
///
/// SIGTERM stops the daemon, not the mounts: a keeper process holds them, programs that use them block,
/// and the next daemon resumes serving. 'inlay daemon stop' stops everything.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  inlay daemon --cache-size 20G
  inlay daemon --metrics-listen 127.0.0.1:9464     for Prometheus: http://127.0.0.1:9464/metrics
  inlay daemon --takeover --cache-size 20G         after an upgrade: replaces the running daemon
  inlay daemon status
  inlay daemon stop --force"
)]
pub(super) struct DaemonArgs {
    #[command(subcommand)]
    word: Option<DaemonWord>,
    /// Replace the running daemon. Mounts remain, and programs that use them are not interrupted
    #[arg(long)]
    takeover: bool,
    /// Disk budget of the host's cache: a size, a percentage of the disk such as 20%, or auto. Stored
    /// in the state directory [default: the stored value, or auto]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Budget>,
    /// Exit after this time without a mount [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    idle_exit: Option<Duration>,
    /// Time that programs block while no daemon is running; then they get errors until one starts
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "1m")]
    wait_for_daemon: Duration,
    /// Group id with access to the daemon's socket. Access is equivalent to root
    #[arg(long, value_name = "GID")]
    socket_group: Option<u32>,
    /// Also serve Prometheus metrics at this address: only /metrics, without authentication [default:
    /// on the daemon's socket only]
    #[arg(long, env = "INLAY_METRICS_LISTEN", value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Threads serving kernel requests, per kind of snapshot [default: twice the cores, at most 8]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Detach from the terminal and report readiness or failure on standard output
    #[arg(long, hide = true)]
    in_background: bool,
}

#[derive(Debug, Subcommand)]
enum DaemonWord {
    Status(StatusArgs),
    Stop(StopArgs),
    Openapi(OpenapiArgs),
}

/// Print the OpenAPI document of the daemon's API.
///
/// A running daemon serves it at /v1/openapi.json.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay daemon openapi | jq '.paths | keys'
  curl --unix-socket /var/lib/inlay/run/daemon.sock http://inlay/v1/openapi.json")]
pub(super) struct OpenapiArgs {}

/// Show the status of the daemon.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay daemon status
  inlay daemon status --json | jq .server.pid")]
pub(super) struct StatusArgs {}

/// Stop the daemon, its keeper and the FUSE mounts.
///
/// Fails while a snapshot is mounted, unless --force is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay daemon stop
  inlay daemon stop --force")]
pub(super) struct StopArgs {
    /// Unmount everything first; programs that use a mount get errors
    #[arg(long)]
    force: bool,
}

/// Hold the FUSE mounts while daemons restart.
#[derive(Debug, Args)]
pub(super) struct KeeperArgs {
    #[arg(long, value_parser = duration::parse)]
    wait_for_daemon: Duration,
    /// Resume with the descriptors of an earlier keeper, passed through standard input
    #[arg(long)]
    with_stored: bool,
    /// Command that restarts a daemon that died
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
    // Take over passed descriptors before any other is opened.
    let stored = daemon::given()?;
    let mut readiness = args.in_background.then(Readiness::new);
    let outcome = options(global, args).and_then(|options| {
        let ready = || {
            if let Some(Err(error)) = readiness.take().map(Readiness::ready) {
                tracing::warn!(%error, "the process that started the daemon has exited");
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

/// Returns the arguments that start the keeper, including the command that restarts this daemon.
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

/// Returns the arguments for the subcommand `word`: `--state` and `--log`, shared by all processes of a
/// daemon.
pub(super) fn common_words(global: &Global, word: &str) -> Result<Vec<OsString>, CliError> {
    let state = std::path::absolute(&global.state)?;
    Ok(vec![word.into(), "--state".into(), state.into(), "--log".into(), (&global.log).into()])
}

pub(super) fn keeper(global: &Global, args: &KeeperArgs) -> Result<(), CliError> {
    descriptors::close_inherited(0)?;
    let begin = if args.with_stored { Begin::WithStored } else { Begin::Afresh };
    let respawn = args.respawn.clone();
    let options = keeper_options(&global.paths()?, args.wait_for_daemon, respawn, begin);
    Ok(keeper::run(options).map_err(DaemonError::from)?)
}

fn status(global: &Global) -> Result<(), CliError> {
    let paths = global.paths()?;
    let Some(status) = Client::new(&paths)?.status()? else {
        return Err(ClientError::NotRunning(paths.state().to_owned()).into());
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
        writeln!(out, "sealed    {}", sealed(&status))?;
        writeln!(out, "cache     {cache}")?;
        writeln!(out, "ends      {idle}")?;
        for record in &status.damaged {
            writeln!(out, "damaged   {}", output::escaped(record.why.as_bytes()))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Formats the number of sealed snapshots that wait for their store, and their problems.
fn sealed(status: &StatusAnswer) -> String {
    let SyncAnswer { waiting, failing, damaged, name_conflicts } = &status.outbox;
    if failing.is_empty() && damaged.is_empty() && name_conflicts.is_empty() {
        return waiting.to_string();
    }
    format!(
        "{waiting}; {} failed so far, {} files are damaged, {} names were not moved: see `inlay sync`",
        failing.len(),
        damaged.len(),
        name_conflicts.len()
    )
}

#[derive(Serialize)]
struct Stopped {
    /// Pid of the daemon; `None` if none was running.
    pid: Option<u32>,
    /// Mount points that were unmounted.
    unmounted: Vec<inlay_mounts::PathText>,
}

fn stop(global: &Global, args: &StopArgs) -> Result<(), CliError> {
    let paths = global.paths()?;
    let kept = Keeper::connect(&paths.keeper_socket()).is_ok();
    let mounted =
        paths.state().is_dir() && !Registry::open(paths.state())?.list()?.mounts.is_empty();
    let mut client = Client::new(&paths)?;
    if client.status()?.is_none() {
        if !kept && !mounted {
            let answer = Stopped { pid: None, unmounted: Vec::new() };
            output::print(global.format(), &answer, |out| writeln!(out, "no daemon runs"))?;
            return Ok(());
        }
        if args.force && !kept {
            // A service manager may still hold descriptors of the dead session, which would block a new
            // one: abort its FUSE connections.
            keeper::give_up(&paths.fuse());
        }
        // Start a daemon to clean up what an earlier one left behind.
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
