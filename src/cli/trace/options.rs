//! Options shared by `inlay trace run` and `inlay trace record`.

use std::path::PathBuf;

use clap::Args;

use inlay_trace::record::{EVENTS_DEFAULT, EVENTS_MAX};

/// Output files of a trace, and its maximum size.
#[derive(Debug, Args)]
pub(super) struct TraceOutputArgs {
    /// Write the trace to a file; '-' for standard output instead of the table
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Write a self-contained HTML page to a file
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Maximum number of events to record; further events are only counted
    #[arg(long, value_name = "N", default_value_t = EVENTS_DEFAULT, value_parser = events)]
    pub(super) events: usize,
}

fn events(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=EVENTS_MAX).contains(number));
    number.ok_or_else(|| format!("it must be a number from 1 to {EVENTS_MAX}"))
}
