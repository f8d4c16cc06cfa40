//! `inlay sandbox`: making, listing, looking at, stopping and removing sandboxes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::output;
use super::sandbox_options::{CREATE_LIMIT, OptionArgs, create_request};
use super::snapshot::{self, Kept};
use crate::daemon::{
    DaemonError, ErrorKind, IfRunning, RemoveSandbox, SANDBOXES, SandboxShown, SandboxState,
    StartWhen, StopSandbox, StoppedSandbox, TakeSnapshot, WhenEnded, word,
};
use crate::duration;
use crate::mount::PathText;
use crate::sandbox::FirstProcess;

/// How much longer than its grace the end of a sandbox may take.
const STOP_LIMIT: Duration = Duration::from_mins(1);
const REMOVE_LIMIT: Duration = Duration::from_mins(2);

/// Sandboxes: containers on a snapshot, into which others can be mounted while they run
#[derive(Debug, Args)]
pub(super) struct SandboxArgs {
    #[command(subcommand)]
    word: SandboxWord,
}

#[derive(Debug, Subcommand)]
enum SandboxWord {
    Create(CreateArgs),
    #[command(visible_alias = "list", alias = "ps")]
    Ls(LsArgs),
    Inspect(InspectArgs),
    Stop(StopArgs),
    Rm(RmArgs),
}

/// Make a sandbox that stays until it is removed.
///
/// Without a command, it waits for others: 'inlay exec' runs programs in it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox create base --name a
  inlay sandbox create base --name web --memory 512M --cpus 1.5 --pids 200
  inlay sandbox create base --name job -v dir-3f9c…:/project -- make -C /project")]
pub(super) struct CreateArgs {
    #[command(flatten)]
    options: OptionArgs,
    /// The image or filesystem snapshot that is its root: name or id
    snapshot: String,
    /// What runs in it first, instead of a program that only waits
    #[arg(last = true)]
    command: Vec<String>,
}

/// List sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox ls
  inlay sandbox ls --json | jq -r '.[].name'")]
pub(super) struct LsArgs {
    /// Only those with this label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Option<String>,
}

/// Show all that is known of a sandbox.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox inspect a
  inlay sandbox inspect a | jq .pid")]
pub(super) struct InspectArgs {
    /// Name or id
    sandbox: String,
}

/// End a sandbox's processes. What was changed in it stays until it is removed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox stop a
  inlay sandbox stop --time 1m a b
  inlay sandbox stop --snapshot /project --name project a")]
pub(super) struct StopArgs {
    /// Names or ids
    #[arg(required = true)]
    sandbox: Vec<String>,
    /// How long the first program may take before everything is killed
    #[arg(long, short, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    time: Duration,
    /// Take a snapshot of this directory before; if that fails, the sandbox goes on
    #[arg(long, value_name = "PATH")]
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    kept: Kept,
}

/// Remove sandboxes, with all that was changed in them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox rm a
  inlay sandbox rm --force a b")]
pub(super) struct RmArgs {
    /// Names or ids
    #[arg(required = true)]
    sandbox: Vec<String>,
    /// Also those that run
    #[arg(long, short)]
    force: bool,
}

pub(super) fn sandbox(global: &Global, args: &SandboxArgs) -> Result<(), CliError> {
    match &args.word {
        SandboxWord::Create(args) => create(global, args),
        SandboxWord::Ls(args) => ls(global, args),
        SandboxWord::Inspect(args) => inspect(global, args),
        SandboxWord::Stop(args) => stop(global, args),
        SandboxWord::Rm(args) => rm(global, args),
    }
}

fn create(global: &Global, args: &CreateArgs) -> Result<(), CliError> {
    let first = if args.command.is_empty() && args.options.entrypoint.is_none() {
        FirstProcess::Wait
    } else {
        args.options.first(&args.command)
    };
    let mut request = create_request(global, &args.snapshot, &args.options, first)?;
    (request.start, request.when_ended) = (StartWhen::Now, WhenEnded::Keep);
    let made: SandboxShown = with_daemon(global, None, |client, _| {
        Ok(client.post(SANDBOXES, &request, CREATE_LIMIT)?)
    })?;
    output::print(global.format(), &made, |out| writeln!(out, "{}", made.name))?;
    Ok(())
}

fn ls(global: &Global, args: &LsArgs) -> Result<(), CliError> {
    let mut listed: Vec<SandboxShown> =
        with_daemon(global, None, |client, _| Ok(client.get(SANDBOXES)?))?;
    if let Some(label) = &args.label {
        listed.retain(|sandbox| {
            let labels = &sandbox.options.labels;
            match label.split_once('=') {
                Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
                None => labels.contains_key(label),
            }
        });
    }
    output::print(global.format(), &listed, |out| {
        let head = ["NAME", "STATE", "IMAGE", "CREATED", "PID", "MOUNTS"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(listed.iter().map(row));
        output::table(out, &rows)
    })?;
    Ok(())
}

fn row(sandbox: &SandboxShown) -> Vec<String> {
    let state = match (sandbox.state, &sandbox.exit) {
        (SandboxState::Stopped, Some(exit)) => format!("stopped ({})", exit.code),
        (state, _) => format!("{state:?}").to_lowercase(),
    };
    let created = i64::try_from(sandbox.created_ms / 1000).unwrap_or(i64::MAX);
    vec![
        sandbox.name.clone(),
        state,
        output::shown(sandbox.image.as_bytes()),
        output::time(created),
        sandbox.pid.map_or("-".to_owned(), |pid| pid.to_string()),
        sandbox.mounts.len().to_string(),
    ]
}

fn inspect(global: &Global, args: &InspectArgs) -> Result<(), CliError> {
    let path = path_of(&args.sandbox, "");
    let shown: SandboxShown = with_daemon(global, None, |client, _| Ok(client.get(&path)?))?;
    // There is too much for a table: it is JSON either way.
    output::print(output::Format::Json, &shown, |_| Ok(()))?;
    Ok(())
}

fn stop(global: &Global, args: &StopArgs) -> Result<(), CliError> {
    if args.sandbox.len() > 1 && args.snapshot.is_some() {
        let text = "--snapshot is for one sandbox; stop them one by one";
        return Err(CliError::Usage(text.to_owned()));
    }
    let snapshot = match &args.snapshot {
        Some(path) => Some(TakeSnapshot {
            path: Some(PathText::from(&**path)),
            ..snapshot::request(global, &args.kept)?
        }),
        None => None,
    };
    let request = StopSandbox {
        grace_ms: u64::try_from(args.time.as_millis()).unwrap_or(u64::MAX),
        snapshot,
    };
    let limit = args.time
        + STOP_LIMIT
        + request.snapshot.as_ref().map_or(Duration::ZERO, |_| snapshot::LIMIT);
    for sandbox in &args.sandbox {
        let path = path_of(sandbox, word::STOP);
        let stopped: StoppedSandbox =
            with_daemon(global, None, |client, _| Ok(client.post(&path, &request, limit)?))?;
        output::print(global.format(), &stopped, |out| {
            if let Some(taken) = &stopped.snapshot {
                snapshot::report(out, taken)?;
            }
            writeln!(out, "{} stopped", stopped.sandbox.name)
        })?;
    }
    Ok(())
}

fn rm(global: &Global, args: &RmArgs) -> Result<(), CliError> {
    let if_running = if args.force { IfRunning::Kill } else { IfRunning::Refuse };
    for sandbox in &args.sandbox {
        let removed = remove(global, sandbox, if_running)?;
        output::print(global.format(), &removed, |out| writeln!(out, "{} removed", removed.name))?;
    }
    Ok(())
}

/// Removes one sandbox.
pub(super) fn remove(
    global: &Global,
    sandbox: &str,
    if_running: IfRunning,
) -> Result<SandboxShown, CliError> {
    let path = path_of(sandbox, "");
    let mut before: Option<SandboxShown> = None;
    with_daemon(global, None, |client, _| {
        let Some(shown) = &before else {
            before = Some(client.get(&path)?);
            return Ok(client.delete(&path, &RemoveSandbox { if_running }, REMOVE_LIMIT)?);
        };
        match client.delete(&path, &RemoveSandbox { if_running }, REMOVE_LIMIT) {
            // The daemon before has died over it, and this one has finished it.
            Err(DaemonError::Refused(answer)) if answer.kind == ErrorKind::NotFound => {
                Ok(shown.clone())
            }
            other => Ok(other?),
        }
    })
}

/// Where the API has a sandbox, or something of it.
pub(super) fn path_of(sandbox: &str, word: &str) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let sandbox = utf8_percent_encode(sandbox, NON_ALPHANUMERIC);
    if word.is_empty() {
        format!("{SANDBOXES}/{sandbox}")
    } else {
        format!("{SANDBOXES}/{sandbox}/{word}")
    }
}
