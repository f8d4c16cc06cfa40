//! `inlay prefetch`: shows the progress of prefetching.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use super::Global;
use super::error::CliError;
use super::output;
use crate::daemon::{Client, ClientError, LoadingStatus, PREFETCH, PrefetchAnswer, StoreStatus};

/// Inspect prefetching.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay prefetch status
  inlay prefetch status --json | jq '.snapshots[].phase'")]
pub(super) struct PrefetchArgs {
    #[command(subcommand)]
    command: PrefetchCommand,
}

#[derive(Debug, Subcommand)]
enum PrefetchCommand {
    Status(PrefetchStatusArgs),
}

/// Show the prefetch progress of each mounted snapshot, and the links to the stores.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay prefetch status
  watch inlay prefetch status
  inlay prefetch status --json | jq '.stores[].rate'")]
struct PrefetchStatusArgs {}

pub(super) fn prefetch(global: &Global, args: &PrefetchArgs) -> Result<(), CliError> {
    match &args.command {
        PrefetchCommand::Status(PrefetchStatusArgs {}) => status(global),
    }
}

fn status(global: &Global) -> Result<(), CliError> {
    let paths = global.paths()?;
    let client = Client::new(&paths)?;
    if client.status()?.is_none() {
        return Err(ClientError::NotRunning(paths.state().to_owned()).into());
    }
    let answer: PrefetchAnswer = client.get(PREFETCH)?;
    Ok(output::print(global.format(), &answer, |out| show(out, &answer))?)
}

fn show(out: &mut dyn Write, answer: &PrefetchAnswer) -> io::Result<()> {
    for store in &answer.stores {
        show_store(out, store)?;
    }
    if answer.snapshots.is_empty() {
        return writeln!(out, "nothing is mounted");
    }
    let heads = ["SNAPSHOT", "LABEL", "PROFILE", "PHASE", "LOOKED AT", "HERE", "FETCHED", "READ"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(answer.snapshots.iter().map(row));
    output::table(out, &rows)
}

fn show_store(out: &mut dyn Write, store: &StoreStatus) -> io::Result<()> {
    let name = store.store.url.as_deref().unwrap_or("the embedded store");
    let round_trip = store.round_trip_ms.map_or("unknown".to_owned(), |ms| format!("{ms:.1} ms"));
    // Rates are far below 2^52: the cast only drops the fraction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rate = store
        .rate
        .map_or("unknown".to_owned(), |rate| format!("{}B/s", output::bytes(rate as u64)));
    writeln!(
        out,
        "{name}: round trip {round_trip}, rate {rate}, {:.0} % of it for prefetch, {} readers wait",
        store.share * 100.0,
        store.readers_waiting
    )?;
    for (class, bytes) in &store.bytes {
        let requests = store.requests.get(class).copied().unwrap_or(0);
        let queued = store.queued.get(class).copied().unwrap_or(0);
        if requests + queued > 0 {
            let bytes = output::bytes(*bytes);
            writeln!(out, "  {class:<10} {requests} requests, {bytes}; {queued} groups queued")?;
        }
    }
    Ok(())
}

fn row(shown: &LoadingStatus) -> Vec<String> {
    let profile = match shown.profile_runs {
        None => "none".to_owned(),
        Some(1) => "1 run".to_owned(),
        Some(runs) => format!("{runs} runs"),
    };
    let id: String = shown.snapshot.to_string().chars().take(16).collect();
    vec![
        id,
        shown.load.label.to_string(),
        profile,
        shown.phase.clone(),
        format!("{} of {}", shown.looked, shown.groups),
        shown.here.to_string(),
        format!("{}, {}", shown.fetched, output::bytes(shown.fetched_bytes)),
        output::bytes(shown.used_bytes),
    ]
}
