//! `inlay logs`: what a sandbox's first program has printed.

use std::fmt::Write as _;
use std::io::{Write, stderr, stdout};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::output;
use super::sandbox::path_of;
use crate::daemon::{DaemonError, Pieces, word};
use crate::duration;
use crate::sandbox::{LogEntry, LogStream};

/// The longest line of a log, in bytes.
const LINE_MAX: usize = 1 << 20;
/// How often the log is read on at the next daemon. Daemons that end all the time are nobody's to wait for.
const JOINS_MAX: u32 = 32;

/// Show what a sandbox's first program has printed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay logs web
  inlay logs --follow --tail 10 web
  inlay logs --since 5m --timestamps web")]
pub(super) struct LogsArgs {
    /// Name or id
    sandbox: String,
    /// Go on until it has ended
    #[arg(long, short)]
    follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<u64>,
    /// Only what was printed within so long
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// With the time of each line
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
        let mut left_out = seen.as_ref().map_or(0, |seen: &Seen| seen.then);
        let read = with_daemon(global, None, |client, _| {
            client.wait(async {
                let pieces = client.read(&path).await?;
                // From here on, nothing is asked for that was shown.
                Ok::<_, CliError>(lines(global, args, pieces, &mut seen, &mut left_out).await)
            })
        })?;
        match read? {
            Left::Ended => return Ok(()),
            Left::Broken(error) if joins == JOINS_MAX => return Err(error.into()),
            Left::Broken(error) => tracing::debug!(%error, "the log is read on"),
        }
        joins += 1;
    }
}

/// The last entry that was shown.
struct Seen {
    /// Its moment, in nanoseconds since 1970.
    time_ns: u64,
    /// How many entries of that moment were shown.
    then: u64,
}

/// How reading a log ended.
enum Left {
    /// That is all.
    Ended,
    /// The daemon has gone.
    Broken(DaemonError),
}

/// The path of what is still to be shown.
fn wanted(args: &LogsArgs, since: Option<u128>, seen: Option<&Seen>) -> String {
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

/// Shows what comes, but for the first `left_out` entries, which were shown before.
async fn lines(
    global: &Global,
    args: &LogsArgs,
    mut pieces: Pieces,
    seen: &mut Option<Seen>,
    left_out: &mut u64,
) -> Result<Left, CliError> {
    let mut bytes = Vec::new();
    loop {
        let piece = match pieces.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(Left::Ended),
            Err(error) => return Ok(Left::Broken(error)),
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
            *seen = Some(Seen { time_ns, then: then.map_or(1, |seen| seen.then + 1) });
        }
        if bytes.len() > LINE_MAX {
            return Err(DaemonError::Conversation("a line of the log is too long".into()).into());
        }
    }
}

/// Shows an entry. Returns its moment.
fn show(global: &Global, args: &LogsArgs, line: &[u8]) -> Result<u64, CliError> {
    let entry: LogEntry = serde_json::from_slice(line)
        .map_err(|error| DaemonError::Conversation(error.to_string()))?;
    if global.format() == output::Format::Json {
        stdout().lock().write_all(line)?;
        return Ok(entry.time_ns);
    }
    let mut text = Vec::new();
    if args.timestamps {
        let seconds = i64::try_from(entry.time_ns / 1_000_000_000).unwrap_or(i64::MAX);
        let millis = entry.time_ns / 1_000_000 % 1000;
        text.extend_from_slice(format!("{}.{millis:03} ", output::time(seconds)).as_bytes());
    }
    text.extend_from_slice(&entry.bytes());
    match entry.stream {
        LogStream::Stdout => stdout().lock().write_all(&text)?,
        LogStream::Stderr => stderr().lock().write_all(&text)?,
    }
    Ok(entry.time_ns)
}
