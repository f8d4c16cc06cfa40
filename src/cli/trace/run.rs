//! `inlay trace run`: a start, recorded.

use std::io::{Write, stderr};
use std::time::Duration;

use clap::Args;
use hyper::Method;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::endings::Endings;
use super::options::Kept;
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
    AttachTo, BeginTrace, Client, CreateSandbox, IfRunning, SANDBOXES, SandboxShown, StartWhen,
    WhenEnded, word,
};
use crate::duration;
use crate::sandbox::{FrameKind, Stdin};
use crate::trace::{Facts, assemble, clock};

/// Run a program in a new sandbox, record until it is ready, and show where the time went.
///
/// The sandbox is removed afterwards. What the program prints goes to standard error. What else the
/// daemon does meanwhile is recorded, too, because it shares the way to the store.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay trace run base -- python3 -c 'import json'
  inlay trace run --ready '^ready' -o start.json --html start.html base -- python3 app.py
  inlay trace run --ready-port 8080 app
  inlay trace run --ready-exit --json base -- true | jq .totals.path")]
pub(super) struct RunArgs {
    #[command(flatten)]
    ready: ReadyArgs,
    /// How long it may take until it is ready
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "5m")]
    timeout: Duration,
    #[command(flatten)]
    kept: Kept,
    #[command(flatten)]
    options: OptionArgs,
    /// The image or filesystem snapshot that is its root: name or id
    snapshot: String,
    /// The program and its words
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What a start came to, as this command saw it.
#[derive(Default)]
struct Seen {
    sandbox: Option<SandboxShown>,
    ready: Option<u64>,
    marks: Vec<(u64, String, String)>,
}

/// A start under way.
struct Start<'c> {
    client: &'c Client,
    endings: Endings,
    ready: Ready,
    timeout: Duration,
    seen: Seen,
}

pub(super) fn run(global: &Global, args: &RunArgs) -> Result<(), CliError> {
    let first = args.options.first(&args.command);
    let mut request = create_request(global, &args.snapshot, &args.options, first)?;
    (request.start, request.when_ended) = (StartWhen::Later, WhenEnded::Keep);
    let ready = args.ready.ready();
    let recorded = utc_now();
    let events = BeginTrace { events: Some(args.kept.events), ..BeginTrace::default() };
    let recording = Recording::begin(global, &events)?;
    let (client, timeout) = (recording.client(), args.timeout);
    let endings = Endings::heard(client)?;
    let mut start = Start { client, endings, ready: ready.clone(), timeout, seen: Seen::default() };
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
        // What went wrong first says more.
        (Err(_), Err(_)) => return outcome,
    };
    let snapshots = seen.sandbox.iter().flat_map(|sandbox| {
        let mounted = sandbox.mounts.iter().map(|mounted| mounted.snapshot);
        mounted.chain([sandbox.snapshot]).map(|id| id.to_string())
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
            // There is nothing to be shown, but what was recorded may say why.
            if args.kept.output.is_some() || args.kept.html.is_some() {
                super::write::only_files(&args.kept, &trace)?;
            }
            Err(error)
        }
    }
}

/// One line, also of a program that is given in several.
fn title(args: &RunArgs) -> String {
    let words = args.command.iter().flat_map(|word| word.split_whitespace());
    let line = words.collect::<Vec<_>>().join(" ");
    if line.is_empty() { args.snapshot.clone() } else { line }
}

/// This moment, as RFC 3339 writes it.
pub(super) fn utc_now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let secs = since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0));
    format!("{}Z", output::time(secs).replace(' ', "T"))
}

impl Start<'_> {
    /// Everything from the first request until it is ready.
    fn run(&mut self, request: &CreateSandbox) -> Result<(), CliError> {
        let made = self.client.wait(async {
            // Given up before it is answered, the daemon undoes it.
            let making =
                self.client.ask::<SandboxShown>(Method::POST, SANDBOXES, request, CREATE_LIMIT);
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

    async fn begin(&mut self, made: &SandboxShown) -> Result<(), CliError> {
        let id = made.id.as_str();
        let (attach, start) = (path_of(id, word::ATTACH), path_of(id, word::START));
        let wanted = AttachTo { stdin: Stdin::Empty, size: None, shown: None };
        let mut connection = self.client.upgrade(&attach, &wanted).await?;
        let port = match (&self.ready, made.pid) {
            (Ready::Port(port), Some(pid)) => Some(Port::watch(pid, *port)?),
            _ => None,
        };
        let (_port, answered) = port.map_or((None, None), |(port, sent)| (Some(port), Some(sent)));
        let client = self.client;
        let starting = client.ask::<SandboxShown>(Method::POST, &start, &(), CREATE_LIMIT);
        let watching = self.watch(&mut connection, answered);
        tokio::pin!(starting, watching);
        // It may be ready before the answer is here that it was started.
        tokio::select! {
            started = &mut starting => {
                started?;
                watching.await
            }
            watched = &mut watching => {
                starting.await?;
                watched
            }
        }
    }

    /// Until it is ready, or can't be any more.
    async fn watch(
        &mut self,
        connection: &mut (impl AsyncReadExt + Unpin),
        mut answered: Option<oneshot::Receiver<u64>>,
    ) -> Result<(), CliError> {
        let deadline = Instant::now() + self.timeout;
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
                    return Err(CliError::Trace(text));
                }
                () = self.endings.next() => return Err(given_up(&self.ready)),
            };
            let now = clock::now();
            match frame.kind {
                FrameKind::Stdout | FrameKind::Stderr => {
                    if !self.seen.marks.iter().any(|(_, name, _)| name == "first-output") {
                        self.seen.marks.push((now, "first-output".to_owned(), String::new()));
                    }
                    let found = lines.take(frame.kind, &frame.bytes);
                    // Where standard error is gone, nobody wants to see it.
                    drop(stderr().lock().write_all(&frame.bytes));
                    if found {
                        self.seen.ready = Some(now);
                        return Ok(());
                    }
                }
                FrameKind::Exit => return self.ended(frame.exit_code().unwrap_or(1), now),
                FrameKind::Error => {
                    return Err(CliError::Trace(
                        String::from_utf8_lossy(&frame.bytes).into_owned(),
                    ));
                }
                _ => {}
            }
        }
    }

    fn ended(&mut self, code: i32, now: u64) -> Result<(), CliError> {
        self.seen.marks.push((now, "exit".to_owned(), code.to_string()));
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

fn given_up(ready: &Ready) -> CliError {
    CliError::Trace(format!("interrupted before it was ready ({})", ready.text()))
}

/// When a port has answered.
async fn moment(answered: &mut Option<oneshot::Receiver<u64>>) -> u64 {
    if let Some(receiver) = answered
        && let Ok(at) = receiver.await
    {
        return at;
    }
    *answered = None;
    std::future::pending().await
}
