//! `inlay logs`: prints the output of a sandbox's first process.

use std::fmt::Write as _;
use std::io::{Write, stderr, stdout};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use inlay_base::duration;
use inlay_sandbox::{LogEntry, LogStream};

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::output;
use super::sandbox::path_of;
use crate::daemon::{ClientError, Pieces, word};

/// Maximum length of a log line, in bytes.
const LINE_MAX: usize = 1 << 20;
/// Maximum number of reconnects to a new daemon, in case daemons keep dying.
const JOINS_MAX: u32 = 32;

/// Fetch the logs of a sandbox.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay logs web
  inlay logs --follow --tail 10 web
  inlay logs --since 5m --timestamps web")]
pub(super) struct LogsArgs {
    /// Name or id of the sandbox
    sandbox: String,
    /// Follow log output until the sandbox exits
    #[arg(long, short)]
    follow: bool,
    /// Number of lines to show from the end of the logs
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
    /// Show only logs newer than this, e.g. 5m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// Show timestamps
    #[arg(long, short)]
    timestamps: bool,
}

pub(super) fn logs(global: &Global, args: &LogsArgs) -> Result<(), CliError> {
    let since = args.since.map(|since| {
        let since = SystemTime::now().checked_sub(since).unwrap_or(UNIX_EPOCH);
        since.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
    });
    let mut seen = None;
    let mut joins = 0;
    loop {
        let path = wanted(args, since, seen.as_ref());
        let mut left_out = seen.as_ref().map_or(0, |seen: &LogPosition| seen.then);
        let read = with_daemon(global, None, |client, _| {
            client.wait(async {
                let pieces = client.read(&path).await?;
                // `Ok` from here on: a retry would print lines again; the loop resumes after them.
                Ok::<_, CliError>(lines(global, args, pieces, &mut seen, &mut left_out).await)
            })
        })?;
        match read? {
            LogEnd::Ended => return Ok(()),
            LogEnd::Broken(error) if joins == JOINS_MAX => return Err(error.into()),
            LogEnd::Broken(error) => tracing::debug!(%error, "skipping a damaged part of the log"),
        }
        joins += 1;
    }
}

/// Position in the log: the last entry shown.
struct LogPosition {
    /// Time of the entry, in nanoseconds since 1970.
    time_ns: u64,
    /// Number of entries shown with this time.
    then: u64,
}

/// Outcome of reading a log.
enum LogEnd {
    /// End of the log.
    Ended,
    /// Lost the connection to the daemon.
    Broken(ClientError),
}

/// Returns the request path for the rest of the log.
fn wanted(args: &LogsArgs, since: Option<u128>, seen: Option<&LogPosition>) -> String {
    let mut path =
        format!("{}?follow={}", path_of(&args.sandbox, word::LOGS), u8::from(args.follow));
    match (seen, args.tail, since) {
        (Some(seen), _, _) => {
            let _ = write!(path, "&since_ns={}", seen.time_ns);
        }
        (None, tail, since) => {
            if let Some(tail) = tail {
                let _ = write!(path, "&tail={tail}");
            }
            if let Some(since) = since {
                let _ = write!(path, "&since_ns={since}");
            }
        }
    }
    path
}

/// Prints entries as they arrive, and skips the first `left_out`, which were shown before.
async fn lines(
    global: &Global,
    args: &LogsArgs,
    mut pieces: Pieces,
    seen: &mut Option<LogPosition>,
    left_out: &mut u64,
) -> Result<LogEnd, CliError> {
    let mut bytes = Vec::new();
    loop {
        let piece = match pieces.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(LogEnd::Ended),
            Err(error) => return Ok(LogEnd::Broken(error)),
        };
        bytes.extend_from_slice(&piece);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            if let Some(less) = left_out.checked_sub(1) {
                *left_out = less;
                continue;
            }
            let time_ns = show(global, args, &line)?;
            let then = seen.as_ref().filter(|seen| seen.time_ns == time_ns);
            *seen = Some(LogPosition { time_ns, then: then.map_or(1, |seen| seen.then + 1) });
        }
        if bytes.len() > LINE_MAX {
            return Err(ClientError::Conversation("a line of the log is too long".into()).into());
        }
    }
}

/// Prints an entry. Returns its time in nanoseconds.
fn show(global: &Global, args: &LogsArgs, line: &[u8]) -> Result<u64, CliError> {
    let entry: LogEntry = serde_json::from_slice(line)
        .map_err(|error| ClientError::Conversation(error.to_string()))?;
    if global.format() == output::OutputFormat::Json {
        stdout().lock().write_all(line)?;
        return Ok(entry.time_ns);
    }
    let mut text = Vec::new();
    if args.timestamps {
        let seconds = i64::try_from(entry.time_ns / 1_000_000_000).unwrap_or(i64::MAX);
        let millis = entry.time_ns / 1_000_000 % 1000;
        text.extend_from_slice(format!("{}.{millis:03} ", output::utc(seconds)).as_bytes());
    }
    text.extend_from_slice(&entry.bytes());
    match entry.stream {
        LogStream::Stdout => stdout().lock().write_all(&text)?,
        LogStream::Stderr => stderr().lock().write_all(&text)?,
    }
    Ok(entry.time_ns)
}
