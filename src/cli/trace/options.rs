//! Options that several words of `inlay trace` have.

use std::path::PathBuf;

use clap::Args;

use crate::trace::record::{EVENTS_DEFAULT, EVENTS_MAX};

/// Where the trace goes, and how much of it is kept.
#[derive(Debug, Args)]
pub(super) struct Kept {
    /// Write the trace to this file; '-' is standard output, instead of the table
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Write the page that shows it to this file: it needs nothing but a browser
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// How many events are kept. What is more is counted, not recorded
    #[arg(long, value_name = "N", default_value_t = EVENTS_DEFAULT, value_parser = events)]
    pub(super) events: usize,
}

fn events(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=EVENTS_MAX).contains(number));
    number.ok_or_else(|| format!("it must be a number from 1 to {EVENTS_MAX}"))
}
