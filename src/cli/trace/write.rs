//! Writes traces to files and standard output.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use inlay_trace::{Trace, page};

use super::options::TraceOutputArgs;
use super::table;
use crate::cli::Global;
use crate::cli::error::CliError;
use crate::cli::output::{self, OutputFormat};

/// Writes a trace to the requested files, and prints it as a table or JSON.
pub(super) fn write(
    global: &Global,
    kept: &TraceOutputArgs,
    trace: &Trace,
) -> Result<(), CliError> {
    let json = trace.to_json()?;
    if let Some(path) = &kept.html {
        to_file(path, page(&json).as_bytes())?;
    }
    let to_stdout = kept.output.as_deref() == Some(Path::new("-"));
    if let Some(path) = kept.output.as_ref().filter(|_| !to_stdout) {
        to_file(path, format!("{json}\n").as_bytes())?;
    }
    if to_stdout || global.format() == OutputFormat::Json {
        let mut out = io::stdout().lock();
        writeln!(out, "{json}")?;
        return Ok(out.flush()?);
    }
    output::print(OutputFormat::Text, &(), |out| table::table(out, trace))?;
    Ok(())
}

/// Writes a file; `-` is standard output.
pub(super) fn to_file(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    if path == Path::new("-") {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        return Ok(out.flush()?);
    }
    let failed = |error| CliError::Trace(format!("{}: {error}", path.display()));
    fs::write(path, bytes).map_err(failed)
}

/// Writes a trace only to the requested files.
pub(super) fn only_files(kept: &TraceOutputArgs, trace: &Trace) -> Result<(), CliError> {
    let json = trace.to_json()?;
    if let Some(path) = &kept.html {
        to_file(path, page(&json).as_bytes())?;
    }
    match &kept.output {
        Some(path) => to_file(path, format!("{json}\n").as_bytes()),
        None => Ok(()),
    }
}
