//! `inlay sandbox`: creates, lists, inspects, stops and removes sandboxes.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use inlay_base::duration;
use inlay_mounts::PathText;
use inlay_sandbox::FirstProcess;
use serde::Serialize;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::output::{self, OutputFormat};
use super::sandbox_options::{CREATE_LIMIT, OptionArgs, create_request};
use super::snapshot::{self, RetentionArgs};
use crate::daemon::{
    ClientError, ErrorKind, IfRunning, RemoveSandbox, SANDBOXES, SandboxInfo, SandboxState,
    StartWhen, StopSandbox, StoppedSandbox, TakeSnapshot, WhenEnded, word,
};

/// Timeout of stopping a sandbox, beyond its grace period.
const STOP_LIMIT: Duration = Duration::from_mins(1);
const REMOVE_LIMIT: Duration = Duration::from_mins(2);

/// Manage sandboxes: containers on a snapshot, with live mounts of other snapshots
#[derive(Debug, Args)]
pub(super) struct SandboxArgs {
    #[command(subcommand)]
    word: SandboxWord,
}

#[derive(Debug, Subcommand)]
enum SandboxWord {
    Create(Box<CreateArgs>),
    #[command(visible_alias = "list", alias = "ps")]
    Ls(SandboxLsArgs),
    Inspect(InspectArgs),
    Stop(SandboxStopArgs),
    Rm(RmArgs),
}

/// Create and start a sandbox that remains until it is removed.
///
/// Without a command, the sandbox idles; 'inlay exec' runs commands in it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox create base --name a
  inlay sandbox create base --name web --memory 512M --cpus 1.5 --pids 200
  inlay sandbox create base --name job -v dir-3f9c…:/project -- make -C /project")]
pub(super) struct CreateArgs {
    #[command(flatten)]
    options: OptionArgs,
    /// Name or id of an image or filesystem snapshot
    snapshot: String,
    /// Command and arguments [default: an idle process]
    #[arg(last = true)]
    command: Vec<String>,
}

/// List sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox ls
  inlay sandbox ls --json | jq -r '.[].name'")]
pub(super) struct SandboxLsArgs {
    /// Filter by label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Option<String>,
}

/// Show details of a sandbox as JSON.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox inspect a
  inlay sandbox inspect a | jq .pid")]
pub(super) struct InspectArgs {
    /// Name or id of the sandbox
    sandbox: String,
}

/// Stop running sandboxes; changes are kept until the sandbox is removed.
///
/// With --json, prints an object for one sandbox, and an array for several.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox stop a
  inlay sandbox stop --time 1m a b
  inlay sandbox stop --snapshot /project --name project a")]
pub(super) struct SandboxStopArgs {
    /// Names or ids of sandboxes
    #[arg(required = true)]
    sandbox: Vec<String>,
    /// Time to wait before killing the sandbox
    #[arg(long, short, value_name = "DURATION", value_parser = duration::parse, default_value = "10s")]
    time: Duration,
    /// Take a snapshot of this directory first; if that fails, the sandbox keeps running
    #[arg(long, value_name = "PATH")]
    snapshot: Option<PathBuf>,
    #[command(flatten)]
    kept: RetentionArgs,
}

/// Remove sandboxes and all changes in them.
///
/// With --json, prints an object for one sandbox, and an array for several.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay sandbox rm a
  inlay sandbox rm --force a b")]
pub(super) struct RmArgs {
    /// Names or ids of sandboxes
    #[arg(required = true)]
    sandbox: Vec<String>,
    /// Kill and remove running sandboxes
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
    let made: SandboxInfo = with_daemon(global, None, |client, _| {
        Ok(client.post(SANDBOXES, &request, CREATE_LIMIT)?)
    })?;
    output::print(global.format(), &made, |out| writeln!(out, "{}", made.name))?;
    Ok(())
}

fn ls(global: &Global, args: &SandboxLsArgs) -> Result<(), CliError> {
    let mut listed: Vec<SandboxInfo> =
        with_daemon(global, None, |client, _| Ok(client.get(SANDBOXES)?))?;
    if let Some(label) = &args.label {
        listed.retain(|sandbox| {
            let Some(labels) = sandbox.options.as_ref().map(|options| &options.labels) else {
                return false;
            };
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
        output::table(out, &rows)?;
        for damage in listed.iter().filter_map(|sandbox| sandbox.damage.as_ref()) {
            writeln!(out, "{}", output::escaped(damage.as_bytes()))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn row(sandbox: &SandboxInfo) -> Vec<String> {
    let state = match (sandbox.state, &sandbox.exit) {
        (SandboxState::Stopped, Some(exit)) => format!("stopped ({})", exit.code),
        (state, _) => format!("{state:?}").to_lowercase(),
    };
    let unknown = || "-".to_owned();
    let created = sandbox.created_ms.map(|ms| i64::try_from(ms / 1000).unwrap_or(i64::MAX));
    vec![
        sandbox.name.clone(),
        state,
        sandbox.image.as_ref().map_or_else(unknown, |image| output::escaped(image.as_bytes())),
        created.map_or_else(unknown, output::utc),
        sandbox.pid.map_or_else(unknown, |pid| pid.to_string()),
        sandbox.mounts.len().to_string(),
    ]
}

fn inspect(global: &Global, args: &InspectArgs) -> Result<(), CliError> {
    let path = path_of(&args.sandbox, "");
    let shown: SandboxInfo = with_daemon(global, None, |client, _| Ok(client.get(&path)?))?;
    // Always JSON: too many fields for a table.
    output::print(OutputFormat::Json, &shown, |_| Ok(()))?;
    Ok(())
}

fn stop(global: &Global, args: &SandboxStopArgs) -> Result<(), CliError> {
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
    let stop = |sandbox: &str| -> Result<StoppedSandbox, CliError> {
        let path = path_of(sandbox, word::STOP);
        with_daemon(global, None, |client, _| Ok(client.post(&path, &request, limit)?))
    };
    each(&args.sandbox, global.format(), &mut io::stdout(), stop, |out, stopped| {
        if let Some(taken) = &stopped.snapshot {
            snapshot::report(out, taken)?;
        }
        writeln!(out, "{} stopped", stopped.sandbox.name)
    })
}

fn rm(global: &Global, args: &RmArgs) -> Result<(), CliError> {
    let if_running = if args.force { IfRunning::Kill } else { IfRunning::Refuse };
    let remove = |sandbox: &str| remove(global, sandbox, if_running);
    each(&args.sandbox, global.format(), &mut io::stdout(), remove, |out, removed| {
        writeln!(out, "{} removed", removed.name)
    })
}

/// Applies `act` to each sandbox until one fails, and prints the results: text one by one, JSON as
/// one value. That is the result itself for one name, an array for several, including those before
/// a failure.
fn each<T: Serialize>(
    names: &[String],
    format: OutputFormat,
    out: &mut dyn Write,
    mut act: impl FnMut(&str) -> Result<T, CliError>,
    text: impl Fn(&mut dyn Write, &T) -> io::Result<()>,
) -> Result<(), CliError> {
    if format == OutputFormat::Text || names.len() == 1 {
        for name in names {
            let done = act(name)?;
            output::print_to(out, format, &done, |out| text(out, &done))?;
        }
        return Ok(());
    }
    let (mut done, mut failed) = (Vec::with_capacity(names.len()), None);
    for name in names {
        match act(name) {
            Ok(one) => done.push(one),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    output::print_to(out, format, &done, |_| Ok(()))?;
    failed.map_or(Ok(()), Err)
}

/// Removes one sandbox.
pub(super) fn remove(
    global: &Global,
    sandbox: &str,
    if_running: IfRunning,
) -> Result<SandboxInfo, CliError> {
    let path = path_of(sandbox, "");
    let mut before: Option<SandboxInfo> = None;
    with_daemon(global, None, |client, _| {
        let Some(shown) = &before else {
            before = Some(client.get(&path)?);
            return Ok(client.delete(&path, &RemoveSandbox { if_running }, REMOVE_LIMIT)?);
        };
        match client.delete(&path, &RemoveSandbox { if_running }, REMOVE_LIMIT) {
            // A retry after the daemon died: the next daemon has already completed the removal.
            Err(ClientError::Refused(answer)) if answer.kind == ErrorKind::NotFound => {
                Ok(shown.clone())
            }
            other => Ok(other?),
        }
    })
}

/// Returns the API path of a sandbox, or of its sub-resource `word`.
pub(super) fn path_of(sandbox: &str, word: &str) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let sandbox = utf8_percent_encode(sandbox, NON_ALPHANUMERIC);
    if word.is_empty() {
        format!("{SANDBOXES}/{sandbox}")
    } else {
        format!("{SANDBOXES}/{sandbox}/{word}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: OutputFormat, names: &[&str]) -> (String, Result<(), CliError>) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut out = Vec::new();
        let act = |name: &str| match name {
            "gone" => Err(CliError::Usage("gone".to_owned())),
            name => Ok(name.to_owned()),
        };
        let outcome =
            each(&names, format, &mut out, act, |out, name| writeln!(out, "{name} removed"));
        (String::from_utf8(out).unwrap(), outcome)
    }

    #[test]
    fn several_names_are_one_json_value() {
        let json = |names: &[&str]| {
            let (text, outcome) = printed(OutputFormat::Json, names);
            (serde_json::from_str::<serde_json::Value>(&text).unwrap(), outcome.is_ok())
        };
        assert_eq!(json(&["a"]), (serde_json::json!("a"), true));
        assert_eq!(json(&["a", "b"]), (serde_json::json!(["a", "b"]), true));
        assert_eq!(json(&["a", "gone", "b"]), (serde_json::json!(["a"]), false));
        let (text, outcome) = printed(OutputFormat::Text, &["a", "gone", "b"]);
        assert!(text == "a removed\n" && outcome.is_err());
    }
}
