//! `inlay man`: generates manual pages, for packages.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::Cli;
use super::error::CliError;
use crate::version::VERSION;

/// Generate a manual page for each command.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay man target/man && man target/man/inlay-mount.1")]
pub(super) struct ManArgs {
    /// Output directory; created if missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn man(args: &ManArgs) -> Result<(), CliError> {
    let failed = |error| CliError::Written { path: args.dir.clone(), error };
    fs::create_dir_all(&args.dir).map_err(failed)?;
    // The short version: `inlay version` prints the long form.
    let command = Cli::command().long_version(VERSION);
    clap_mangen::generate_to(command, &args.dir).map_err(failed)
}
