//! The hidden `inlay monitor`: supervises one sandbox.

use clap::Args;
use inlay_base::descriptors;
use inlay_sandbox::{SandboxId, run_monitor};

use super::Global;
use super::error::CliError;

/// Supervise a sandbox whose record and bundle exist.
#[derive(Debug, Args)]
pub(super) struct MonitorArgs {
    #[arg(long)]
    sandbox: SandboxId,
}

pub(super) fn monitor(global: &Global, args: &MonitorArgs) -> Result<(), CliError> {
    descriptors::close_inherited(0)?;
    let state = std::path::absolute(&global.state)?;
    Ok(run_monitor(&state, &args.sandbox)?)
}
