//! `inlay trace`: records and shows traces of starts.

mod endings;
mod options;
mod ready;
mod record;
mod recording;
mod run;
mod show;
mod table;
mod write;

use clap::{Args, Subcommand};

use super::Global;
use super::error::CliError;

/// Record and show traces of starts
#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(subcommand)]
    word: TraceWord,
}

#[derive(Debug, Subcommand)]
enum TraceWord {
    Run(Box<run::TraceRunArgs>),
    Record(record::RecordArgs),
    Show(show::TraceShowArgs),
}

pub(super) fn trace(global: &Global, args: &TraceArgs) -> Result<(), CliError> {
    match &args.word {
        TraceWord::Run(args) => run::run(global, args),
        TraceWord::Record(args) => record::record(global, args),
        TraceWord::Show(args) => show::show(global, args),
    }
}
