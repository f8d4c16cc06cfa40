//! `inlay version`: prints version, commit, formats and features of this build.

use clap::Args;

use super::Global;
use super::error::CliError;
use super::output;
use crate::version::VersionInfo;

/// Show the version, commit, formats and features of this build.
///
/// A store or state directory with a format version above the readable ones was written by a newer
/// inlay. 'inlay -V' prints only the version.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay version
  inlay version --json | jq -r .commit")]
pub(super) struct VersionArgs {}

pub(super) fn version(global: &Global, _: &VersionArgs) -> Result<(), CliError> {
    let about = VersionInfo::this();
    output::print(global.format(), &about, |out| {
        write!(out, "inlay {}\n{}", about.version, about.lines())
    })?;
    Ok(())
}
