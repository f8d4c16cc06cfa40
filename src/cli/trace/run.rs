//! `inlay trace run`: runs a program in a new sandbox and records its start.

use std::io::{Write, stderr};
use std::time::Duration;

use clap::Args;
use hyper::Method;
use inlay_base::duration;
use inlay_base::time::since_epoch;
use inlay_sandbox::{FrameKind, Stdin};
use inlay_trace::{Facts, assemble, clock};
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::endings::Endings;
use super::options::TraceOutputArgs;
use super::ready::{Port, Ready, ReadyArgs};
use super::recording::Recording;
use super::write::write;
use crate::cli::Global;
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::sandbox::{path_of, remove};
use crate::cli::sandbox_options::{CREATE_LIMIT, OptionArgs, create_request};
use crate::cli::stream::next_frame;
use crate::daemon::{
    AttachTo, BeginTrace, Client, CreateSandbox, IfRunning, SANDBOXES, SandboxInfo, StartWhen,
    WhenEnded, word,
};

/// Run a command in a new sandbox and record a trace until it is ready.
///
/// The sandbox is removed afterwards. The command's output goes to standard error. Other activity of
/// the daemon is recorded, too, because it shares the link to the store.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay trace run base -- python3 -c 'import json'
  inlay trace run --ready '^ready' -o start.json --html start.html base -- python3 app.py
  inlay trace run --ready-port 8080 app
  inlay trace run --ready-exit --json base -- true | jq .totals.path")]
pub(super) struct TraceRunArgs {
    #[command(flatten)]
    ready: ReadyArgs,
    /// Maximum time until the command is ready
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "5m")]
    timeout: Duration,
    #[command(flatten)]
    kept: TraceOutputArgs,
    #[command(flatten)]
    options: OptionArgs,
    /// Name or id of an image or filesystem snapshot
    snapshot: String,
    /// Command and arguments [default: from the image]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Results of a start, as observed by this command.
#[derive(Default)]
struct ObservedStart {
    sandbox: Option<SandboxInfo>,
    ready: Option<u64>,
    marks: Vec<(u64, String, String)>,
}

/// A start in progress.
struct Start<'c> {
    client: &'c Client,
    endings: Endings,
    ready: Ready,
    timeout: Duration,
    seen: ObservedStart,
}

pub(super) fn run(global: &Global, args: &TraceRunArgs) -> Result<(), CliError> {
    let first = args.options.first(&args.command);
    let mut request = create_request(global, &args.snapshot, &args.options, first)?;
    (request.start, request.when_ended) = (StartWhen::Later, WhenEnded::Keep);
    let ready = args.ready.ready();
    let recorded = utc_now();
    let events = BeginTrace { events: Some(args.kept.events), ..BeginTrace::default() };
    let recording = Recording::begin(global, &events)?;
    let (client, timeout) = (recording.client(), args.timeout);
    let endings = Endings::heard(client)?;
    let mut start =
        Start { client, endings, ready: ready.clone(), timeout, seen: ObservedStart::default() };
    let began_ns = clock::now();
    let outcome = start.run(&request);
    let seen = start.seen;
    let events = recording.end();
    if let Some(sandbox) = &seen.sandbox
        && let Err(error) = remove(global, sandbox.id.as_str(), IfRunning::Kill)
    {
        tracing::warn!(%error, "the sandbox {} stays", sandbox.id);
    }
    let events = match (events, &outcome) {
        (Ok(events), _) => events,
        (Err(error), Ok(())) => return Err(error),
        // The first error is more useful.
        (Err(_), Err(_)) => return outcome,
    };
    let snapshots = seen.sandbox.iter().flat_map(|sandbox| {
        let mounted = sandbox.mounts.iter().map(|mounted| mounted.snapshot);
        mounted.chain(sandbox.snapshot).map(|id| id.to_string())
    });
    let facts = Facts {
        title: title(args),
        command: std::env::args().collect(),
        recorded,
        began_ns,
        ready_ns: seen.ready,
        ready_by: Some(ready.text()),
        marks: seen.marks,
        snapshots: snapshots.collect(),
        sandbox: seen.sandbox.map(|sandbox| sandbox.id.to_string()),
    };
    let trace = assemble(events, facts);
    match outcome {
        Ok(()) => write(global, &args.kept, &trace),
        Err(error) => {
            // Write the files anyway: the recording may explain the failure.
            if args.kept.output.is_some() || args.kept.html.is_some() {
                super::write::only_files(&args.kept, &trace)?;
            }
            Err(error)
        }
    }
}

/// Returns the title: the command on one line, or the snapshot.
fn title(args: &TraceRunArgs) -> String {
    let words = args.command.iter().flat_map(|word| word.split_whitespace());
    let line = words.collect::<Vec<_>>().join(" ");
    if line.is_empty() { args.snapshot.clone() } else { line }
}

/// Returns the current time in RFC 3339 format.
pub(super) fn utc_now() -> String {
    let secs = i64::try_from(since_epoch().as_secs()).unwrap_or(i64::MAX);
    format!("{}Z", output::utc(secs).replace(' ', "T"))
}

impl Start<'_> {
    /// Creates and starts the sandbox, and waits until it is ready.
    fn run(&mut self, request: &CreateSandbox) -> Result<(), CliError> {
        let made = self.client.wait(async {
            // If the request is dropped before the response, the daemon undoes it.
            let making =
                self.client.ask::<SandboxInfo>(Method::POST, SANDBOXES, request, CREATE_LIMIT);
            tokio::select! {
                made = making => Ok(made?),
                () = self.endings.next() => Err(given_up(&self.ready)),
            }
        })?;
        self.mark("made", &made.name);
        self.seen.sandbox = Some(made.clone());
        self.client.wait(self.begin(&made))
    }

    fn mark(&mut self, name: &str, detail: &str) {
        self.seen.marks.push((clock::now(), name.to_owned(), detail.to_owned()));
    }

    async fn begin(&mut self, made: &SandboxInfo) -> Result<(), CliError> {
        let id = made.id.as_str();
        let (attach, start) = (path_of(id, word::ATTACH), path_of(id, word::START));
        let wanted = AttachTo { stdin: Stdin::Empty, size: None, shown: None };
        let mut connection = self.client.upgrade(&attach, &wanted).await?.stream;
        let port = match (&self.ready, made.pid) {
            (Ready::Port(port), Some(pid)) => Some(Port::watch(pid, *port)?),
            _ => None,
        };
        let (_port, answered) = port.map_or((None, None), |(port, sent)| (Some(port), Some(sent)));
        let client = self.client;
        let starting = async {
            let started = client.ask::<SandboxInfo>(Method::POST, &start, &(), CREATE_LIMIT).await;
            started.map(drop).map_err(CliError::from)
        };
        tokio::pin!(starting);
        let deadline = Instant::now() + self.timeout;
        let watching = self.watch(&mut connection, answered, deadline);
        match started_or_watched(starting.as_mut(), watching).await {
            First::Settled(outcome) => outcome,
            First::Watched(watched) => tokio::select! {
                started = starting => started.and(watched),
                () = sleep_until(deadline) => watched,
                () = self.endings.next() => Err(given_up(&self.ready)),
            },
        }
    }

    /// Relays output until the program is ready, exits, times out or a signal arrives.
    async fn watch(
        &mut self,
        connection: &mut (impl AsyncReadExt + Unpin),
        mut answered: Option<oneshot::Receiver<u64>>,
        deadline: Instant,
    ) -> Result<(), Unready> {
        let mut lines = self.ready.lines();
        loop {
            let frame = tokio::select! {
                frame = next_frame(connection) => frame?,
                at = moment(&mut answered) => {
                    self.seen.ready = Some(at);
                    return Ok(());
                }
                () = sleep_until(deadline) => {
                    let text = format!(
                        "it was not ready ({}) after {:?}; --timeout says how long it may take",
                        self.ready.text(), self.timeout
                    );
                    return Err(Unready::GivenUp(CliError::Trace(text)));
                }
                () = self.endings.next() => {
                    return Err(Unready::GivenUp(given_up(&self.ready)));
                }
                () = quiet(lines.due()) => {
                    self.seen.ready = lines.rest();
                    return Ok(());
                }
            };
            let now = clock::now();
            match frame.kind {
                FrameKind::Stdout | FrameKind::Stderr => {
                    if !self.seen.marks.iter().any(|(_, name, _)| name == "first-output") {
                        self.seen.marks.push((now, "first-output".to_owned(), String::new()));
                    }
                    let found = lines.take(frame.kind, &frame.bytes, now);
                    // Best effort: standard error may be closed.
                    drop(stderr().lock().write_all(&frame.bytes));
                    if found.is_some() {
                        self.seen.ready = found;
                        return Ok(());
                    }
                }
                FrameKind::Exit => {
                    self.seen.ready = lines.rest();
                    return Ok(self.ended(frame.exit_code().unwrap_or(1), now)?);
                }
                FrameKind::Error => {
                    let text = String::from_utf8_lossy(&frame.bytes).into_owned();
                    return Err(CliError::Trace(text).into());
                }
                _ => {}
            }
        }
    }

    fn ended(&mut self, code: i32, now: u64) -> Result<(), CliError> {
        self.seen.marks.push((now, "exit".to_owned(), code.to_string()));
        if self.seen.ready.is_some() {
            return Ok(());
        }
        if matches!(self.ready, Ready::Exit) && code == 0 {
            self.seen.ready = Some(now);
            return Ok(());
        }
        let text = match self.ready {
            Ready::Exit => format!("the program has ended with exit code {code}, not with 0"),
            _ => format!(
                "the program has ended with exit code {code} before it was ready ({})",
                self.ready.text()
            ),
        };
        Err(CliError::Trace(text))
    }
}

/// Why a program is not ready.
enum Unready {
    /// Interrupted or timed out: nothing else is waited for.
    GivenUp(CliError),
    /// Failed. If the start request fails, too, its error is the cause.
    Failed(CliError),
}

impl From<CliError> for Unready {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

/// What ended first.
enum First {
    /// The outcome is known.
    Settled(Result<(), CliError>),
    /// The program is ready or has failed before the response to the start request.
    Watched(Result<(), CliError>),
}

/// Waits until the start request fails, or the program is ready, has failed or is given up.
async fn started_or_watched(
    starting: impl Future<Output = Result<(), CliError>>,
    watching: impl Future<Output = Result<(), Unready>>,
) -> First {
    tokio::pin!(starting, watching);
    let (watched, started) = tokio::select! {
        // If both are known, the response counts.
        biased;
        started = &mut starting => match started {
            Ok(()) => (watching.await, true),
            Err(error) => return First::Settled(Err(error)),
        },
        watched = &mut watching => (watched, false),
    };
    match watched {
        Err(Unready::GivenUp(error)) => First::Settled(Err(error)),
        Err(Unready::Failed(error)) if started => First::Settled(Err(error)),
        Err(Unready::Failed(error)) => First::Watched(Err(error)),
        Ok(()) if started => First::Settled(Ok(())),
        Ok(()) => First::Watched(Ok(())),
    }
}

/// Waits until `due`; forever if there is none.
async fn quiet(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn given_up(ready: &Ready) -> CliError {
    CliError::Trace(format!("interrupted before it was ready ({})", ready.text()))
}

/// Waits for the time when the port accepted a connection; forever if it never does.
async fn moment(answered: &mut Option<oneshot::Receiver<u64>>) -> u64 {
    if let Some(receiver) = answered
        && let Ok(at) = receiver.await
    {
        return at;
    }
    *answered = None;
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn error(text: &str) -> CliError {
        CliError::Trace(text.to_owned())
    }

    #[tokio::test]
    async fn an_interrupted_start_does_not_wait_for_the_daemon() {
        let interrupted = ready(Err(Unready::GivenUp(error("interrupted"))));
        let first = started_or_watched(pending(), interrupted);
        let first = tokio::time::timeout(Duration::from_secs(30), first).await.unwrap();
        assert!(matches!(first, First::Settled(Err(error)) if error.to_string() == "interrupted"));
    }

    #[tokio::test]
    async fn a_failed_start_request_is_the_cause() {
        let refused = ready(Err(error("refused")));
        let first = started_or_watched(refused, pending()).await;
        assert!(matches!(first, First::Settled(Err(error)) if error.to_string() == "refused"));
        // The program may end before the response.
        let ended = ready(Err(Unready::Failed(error("ended"))));
        let first = started_or_watched(pending(), ended).await;
        assert!(matches!(first, First::Watched(Err(error)) if error.to_string() == "ended"));
        let first = started_or_watched(ready(Ok(())), ready(Ok(()))).await;
        assert!(matches!(first, First::Settled(Ok(()))));
    }
}
