//! `inlay doctor`: checks the requirements of mounts and sandboxes on this host.

use std::io::{self, Write};

use clap::Args;

use super::Global;
use super::error::CliError;
use super::output;
use crate::doctor::{Health, Report, examine};

/// Check this host for the requirements of mounts and sandboxes.
///
/// Checks the kernel, /dev/fuse, overlayfs, the container runtime, cgroups, the clock, disk space,
/// limits, and the store with its credentials. Exits with 1 if a requirement of every mount is missing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay doctor
  inlay --store s3://bucket/prefix doctor          also the store and its credentials
  inlay doctor --json | jq '.checks[] | select(.health != \"ok\")'")]
pub(super) struct DoctorArgs {}

pub(super) fn doctor(global: &Global, _: &DoctorArgs) -> Result<(), CliError> {
    let report = examine(&global.state, global.store.as_deref(), global.plain_http());
    output::print(global.format(), &report, |out| show(out, &report))?;
    CliError::ended(i32::from(report.is_unusable()))
}

fn show(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for check in &report.checks {
        let health = match check.health {
            Health::Ok => "ok",
            Health::Degraded => "degraded",
            Health::Missing => "missing",
        };
        writeln!(out, "{health:<9} {:<20} {}", check.name, check.found)?;
        if let Some(fix) = &check.fix {
            writeln!(out, "{:<30} -> {fix}", "")?;
        }
    }
    Ok(())
}
