//! The hidden `inlay monitor`: looks after one sandbox.

use clap::Args;

use super::Global;
use super::error::CliError;
use crate::sandbox::{SandboxId, run_monitor};

/// Look after a sandbox, whose record and bundle are there.
#[derive(Debug, Args)]
pub(super) struct MonitorArgs {
    #[arg(long)]
    sandbox: SandboxId,
}

pub(super) fn monitor(global: &Global, args: &MonitorArgs) -> Result<(), CliError> {
    let state = std::path::absolute(&global.state)?;
    Ok(run_monitor(&state, &args.sandbox)?)
}
