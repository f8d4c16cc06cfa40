//! `inlay top`: shows the daemon, its sandboxes and mounts: live, as text, or as JSON.

mod draw;
mod numbers;
mod sample;
mod screen;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::Path;
use std::time::Duration;

use clap::Args;

use super::Global;
use super::error::CliError;
use super::{duration, output};
use crate::daemon::{Client, ClientError};
use output::OutputFormat;
use sample::Sample;
use view::View;

/// Width of the text output without a terminal, in columns.
const WIDTH: u16 = 120;
/// Minimum interval, to limit the load on the daemon.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Show a live view of the daemon: cache, links, waits, sandboxes and mounts.
///
/// Keys: q quits, Tab switches tables, arrows move, s sorts, p pauses, ? shows help. Does not start a
/// daemon. With --json, prints one object per interval.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay top
  inlay top --once                               one view as text, over one second
  inlay top --json --interval 5s | jq .cache
  inlay top --json --count 1 | jq '.mounts[] | {path, phase, progress}'")]
pub(super) struct TopArgs {
    /// Print one view as text and exit
    #[arg(long)]
    once: bool,
    /// Time between samples; at least 100ms
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    interval: Duration,
    /// Exit after this number of views; only with --json
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) fn top(global: &Global, args: &TopArgs) -> Result<(), CliError> {
    let json = global.format() == OutputFormat::Json;
    if args.count.is_some() && !json {
        return Err(CliError::Usage("--count is for --json; --once prints one view".into()));
    }
    if args.interval < INTERVAL_MIN {
        return Err(CliError::Usage("--interval must be at least 100ms".into()));
    }
    let live = !json && !args.once;
    if live && !(stdin().is_terminal() && stdout().is_terminal()) {
        return Err(CliError::Usage(
            "top needs a terminal; --once prints one view as text, --json one object an interval"
                .into(),
        ));
    }
    let paths = global.paths()?;
    let state = paths.state().to_owned();
    let client = Client::new(&paths)?;
    // Report a missing or exiting daemon as such.
    if client.status()?.is_none() {
        return Err(ClientError::NotRunning(state).into());
    }
    let first = client.wait(Sample::take(&client, state.clone()))?;
    if live {
        return screen::live(&client, &state, args.interval, first);
    }
    let count = if args.once { Some(1) } else { args.count };
    print(&client, &state, args.interval, first, count, global.format())
}

/// Prints a view after each interval, `count` times or until an error.
fn print(
    client: &Client,
    state: &Path,
    interval: Duration,
    first: Sample,
    count: Option<u64>,
    format: OutputFormat,
) -> Result<(), CliError> {
    let mut before = first;
    let mut left = count;
    while left != Some(0) {
        std::thread::sleep(interval);
        let now = client.wait(Sample::take(client, state.to_owned()))?;
        let view = View::of(&now, Some(&before));
        let mut out = stdout().lock();
        match format {
            OutputFormat::Json => {
                serde_json::to_writer(&mut out, &view).map_err(std::io::Error::from)?;
                out.write_all(b"\n")?;
            }
            OutputFormat::Text => {
                for line in draw::text(&view, WIDTH) {
                    writeln!(out, "{line}")?;
                }
            }
        }
        out.flush()?;
        before = now;
        left = left.map(|left| left - 1);
    }
    Ok(())
}
