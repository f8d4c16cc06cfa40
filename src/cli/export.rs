//! `inlay export`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output;
use super::reader::Reader;
use crate::export::{Export, LayerCompression, Target};

/// Write a snapshot to a tar archive, a directory or an OCI layout.
///
/// Either all of it is there afterwards, or nothing. What the target can't hold, such as a socket in
/// a tar, is left out and named on standard error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay export base tar:base.tar
  inlay export base tar:- | tar -t
  inlay export base dir:/srv/copy
  inlay export app oci:./layout --compression zstd")]
pub(super) struct ExportArgs {
    /// Name or id
    snapshot: String,
    /// tar:FILE (tar:- for standard output), dir:PATH (made, or empty) or oci:DIR
    target: Target,
    /// How the layer of an OCI layout is compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::Gzip)]
    compression: CompressionArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    Gzip,
    Zstd,
}

#[derive(Serialize)]
struct Answer {
    entries: u64,
    bytes: u64,
    /// The first thousand.
    warnings: Vec<String>,
    warnings_left_out: u64,
}

pub(super) fn export(global: &Global, args: &ExportArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let reader = Reader::open(&host, &args.snapshot)?;
    let progress = global.progress();
    let export = Export {
        index: reader.index(),
        bytes: reader.bytes(),
        progress: &progress,
        compression: match args.compression {
            CompressionArg::Gzip => LayerCompression::Gzip,
            CompressionArg::Zstd => LayerCompression::Zstd,
        },
    };
    let result = export.run(&args.target);
    progress.finish();
    reader.close();
    let report = result?;
    let warnings: Vec<String> = report.warnings.first.iter().map(ToString::to_string).collect();
    for warning in &warnings {
        eprintln!("inlay: {warning}");
    }
    if report.warnings.more > 0 {
        eprintln!("inlay: and {} warnings more", report.warnings.more);
    }
    if args.target == Target::Stdout {
        return Ok(());
    }
    let answer = Answer {
        entries: report.entries,
        bytes: report.bytes,
        warnings,
        warnings_left_out: report.warnings.more,
    };
    output::print(global.format(), &answer, |out| {
        writeln!(out, "{} objects, {} of contents", answer.entries, output::bytes(answer.bytes))
    })?;
    Ok(())
}
