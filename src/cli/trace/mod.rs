//! `inlay trace`: where the time of a start goes.

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

/// Show where the time of a start goes
#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(subcommand)]
    word: TraceWord,
}

#[derive(Debug, Subcommand)]
enum TraceWord {
    Run(Box<run::RunArgs>),
    Record(record::RecordArgs),
    Show(show::ShowArgs),
}

pub(super) fn trace(global: &Global, args: &TraceArgs) -> Result<(), CliError> {
    match &args.word {
        TraceWord::Run(args) => run::run(global, args),
        TraceWord::Record(args) => record::record(global, args),
        TraceWord::Show(args) => show::show(global, args),
    }
}
