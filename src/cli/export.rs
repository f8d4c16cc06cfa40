//! `inlay export`: writes a snapshot to a tar archive, a directory or an OCI layout.

use clap::{Args, ValueEnum};
use inlay_base::text::Escaped;
use inlay_images::export::{Export, LayerCompression, Target};
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output;
use super::reader::Reader;

/// Write a snapshot to a tar archive, a directory or an OCI layout.
///
/// Atomic: a failed export leaves nothing behind. Objects that the target cannot represent, such as a
/// socket in a tar archive, are skipped with a warning on standard error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay export base tar:base.tar
  inlay export base tar:- | tar -t
  inlay export base dir:/srv/copy
  inlay export app oci:./layout --compression zstd")]
pub(super) struct ExportArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Target: tar:FILE (tar:- for standard output), dir:PATH (new or empty) or oci:DIR
    target: Target,
    /// Compression of the layer in an OCI layout
    #[arg(long, value_enum, default_value_t = CompressionArg::Gzip)]
    compression: CompressionArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    Gzip,
    Zstd,
}

#[derive(Serialize)]
struct ExportAnswer {
    entries: u64,
    bytes: u64,
    /// At most 1000; the rest is counted in `warnings_left_out`.
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
        output::note(format_args!("inlay: {}", Escaped(warning)));
    }
    if report.warnings.more > 0 {
        output::note(format_args!("inlay: and {} warnings more", report.warnings.more));
    }
    if args.target == Target::Stdout {
        return Ok(());
    }
    let answer = ExportAnswer {
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
