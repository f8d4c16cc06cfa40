//! `inlay verify`: every byte of a snapshot, as the store has it.

use clap::Args;
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output;
use crate::snapshots::{resolve, verify as verify_snapshot};

/// Check every byte of a snapshot in the store.
///
/// That is the index, every group and every table of chunks. Reads everything from the store, nothing from the cache. Exits with 1 if anything is missing or
/// damaged, and names it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay verify base
  inlay verify --json img-3f9c")]
pub(super) struct VerifyArgs {
    /// Name or id
    snapshot: String,
}

#[derive(Serialize)]
struct Answer {
    id: String,
    #[serde(flatten)]
    report: verify_snapshot::Report,
}

pub(super) fn verify(global: &Global, args: &VerifyArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    let progress = global.progress();
    let report = verify_snapshot::verify(&host, id, &mut |step| match step {
        verify_snapshot::Step::Expect(bytes) => progress.begin("verifying", bytes),
        verify_snapshot::Step::Done(bytes) => crate::import::Progress::advance(&progress, 1, bytes),
    })?;
    progress.finish();
    let damage = report.damage.len() as u64 + report.damage_left_out;
    let answer = Answer { id: id.to_string(), report };
    output::print(global.format(), &answer, |out| {
        for line in &answer.report.damage {
            writeln!(out, "{line}")?;
        }
        writeln!(
            out,
            "{}: {} groups in {} blobs, {} read, {} damaged or missing",
            answer.id,
            answer.report.groups,
            answer.report.blobs,
            output::bytes(answer.report.bytes_read),
            damage
        )
    })?;
    if damage > 0 {
        return Err(CliError::Damaged(format!(
            "{id}: damaged or missing: {damage}; restore it from another copy of the store, or import \
             the source again"
        )));
    }
    Ok(())
}
