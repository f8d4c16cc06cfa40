//! `inlay verify`: verifies all objects of a snapshot in the store.

use clap::Args;
use inlay_snapshots::{resolve, verify as verify_snapshot};
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output;

/// Verify every byte of a snapshot in the store.
///
/// Verifies the record, the index, all groups and all chunk tables. Reads everything from the store and
/// nothing from the cache. Lists missing and damaged objects, and exits with 1 if there are any. 'inlay
/// import --repair' with the same source rewrites damaged objects.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay verify base
  inlay verify --json img-3f9c")]
pub(super) struct VerifyArgs {
    /// Name or id of the snapshot
    snapshot: String,
}

#[derive(Serialize)]
struct VerifyAnswer {
    id: String,
    #[serde(flatten)]
    report: verify_snapshot::Report,
}

pub(super) fn verify(global: &Global, args: &VerifyArgs) -> Result<(), CliError> {
    let host = global.host_of_store()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    let progress = global.progress();
    let report = verify_snapshot::verify(&host, id, &mut |step| match step {
        verify_snapshot::Step::Expect(bytes) => progress.begin("verifying", bytes),
        verify_snapshot::Step::Done(bytes) => {
            inlay_images::import::Progress::advance(&progress, 1, bytes);
        }
    })?;
    progress.finish();
    let damage = report.damage.len() as u64 + report.damage_left_out;
    let answer = VerifyAnswer { id: id.to_string(), report };
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
            "{id}: damaged or missing: {damage}; import its source again with 'inlay import --repair', \
             or restore these objects from another copy of the store"
        )));
    }
    Ok(())
}
