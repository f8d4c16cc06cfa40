//! `inlay trace show`: shows a recorded trace, or converts it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use inlay_trace::{Trace, TraceError, chrome, page};

use super::table;
use super::write::to_file;
use crate::cli::Global;
use crate::cli::error::CliError;
use crate::cli::output;

/// Maximum size of a trace file, in bytes.
const LEN_MAX: u64 = 256 << 20;

/// Show a recorded trace.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay trace show start.json
  inlay trace show start.json --format html -o start.html
  inlay trace show start.json --format chrome -o start.chrome.json    for chrome://tracing, Perfetto
  inlay trace show start.json --json | jq .totals")]
pub(super) struct TraceShowArgs {
    /// Trace file from 'trace run' or 'trace record'; '-' for standard input
    file: PathBuf,
    /// Output format [default: table; json with --json]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<ShowAs>,
    /// Write to a file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Output format of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ShowAs {
    /// Summary of the time spent, and the longest waits
    Table,
    /// Self-contained HTML page
    Html,
    /// Chrome trace format, for chrome://tracing and Perfetto
    Chrome,
    /// The trace itself, after validation
    Json,
}

pub(super) fn show(global: &Global, args: &TraceShowArgs) -> Result<(), CliError> {
    let trace = read(&args.file)?;
    let by_default =
        if global.format() == output::OutputFormat::Json { ShowAs::Json } else { ShowAs::Table };
    let bytes = match args.format.unwrap_or(by_default) {
        ShowAs::Table => {
            let mut out = Vec::new();
            table::table(&mut out, &trace)?;
            out
        }
        ShowAs::Html => page(&trace.to_json()?).into_bytes(),
        ShowAs::Chrome => format!("{}\n", chrome(&trace)).into_bytes(),
        ShowAs::Json => format!("{}\n", trace.to_json()?).into_bytes(),
    };
    to_file(args.output.as_deref().unwrap_or(Path::new("-")), &bytes)
}

fn read(path: &Path) -> Result<Trace, CliError> {
    let failed = |source| TraceError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let limit = LEN_MAX + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = File::open(path).map_err(failed)?;
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > LEN_MAX {
        return Err(TraceError::TooLong { path: path.to_owned(), max: LEN_MAX }.into());
    }
    Trace::parse(&bytes).map_err(|error| CliError::Trace(format!("{}: {error}", path.display())))
}
