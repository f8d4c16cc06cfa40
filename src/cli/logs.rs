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
    let mut path =
        format!("{}?follow={}", path_of(&args.sandbox, word::LOGS), u8::from(args.follow));
    if let Some(tail) = args.tail {
        let _ = write!(path, "&tail={tail}");
    }
    if let Some(since) = args.since {
        let since = SystemTime::now().checked_sub(since).unwrap_or(UNIX_EPOCH);
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        let _ = write!(path, "&since_ns={}", since.as_nanos());
    }
    with_daemon(global, None, |client, _| {
        client.wait(async {
            let pieces = client.read(&path).await?;
            // From here on, nothing is tried again.
            Ok::<_, CliError>(lines(global, args, pieces).await)
        })
    })?
}

async fn lines(global: &Global, args: &LogsArgs, mut pieces: Pieces) -> Result<(), CliError> {
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await? {
        bytes.extend_from_slice(&piece);
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            show(global, args, &line)?;
        }
        if bytes.len() > LINE_MAX {
            return Err(DaemonError::Conversation("a line of the log is too long".into()).into());
        }
    }
    Ok(())
}

fn show(global: &Global, args: &LogsArgs, line: &[u8]) -> Result<(), CliError> {
    if global.format() == output::Format::Json {
        return Ok(stdout().lock().write_all(line)?);
    }
    let entry: LogEntry = serde_json::from_slice(line)
        .map_err(|error| DaemonError::Conversation(error.to_string()))?;
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
    Ok(())
}
