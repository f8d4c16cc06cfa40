//! Takes a directory of this machine.
//!
//! The walk goes from descriptor to descriptor and never follows a symbolic link, so nothing that
//! others do meanwhile leads it out of the directory. It uses a bounded number of descriptors and no
//! recursion, whatever the depth.

pub(crate) mod content;
mod object;
#[cfg(test)]
mod tests;
mod walk;

use std::path::Path;

use inlay_store::pack::FileSink;
use inlay_store::tree::Tree;

use super::{ImportError, ImportOptions, Phase, Progress};
use walk::Walk;

/// Takes the tree in the directory `path`, everything in it in the order of the names. `path` itself
/// may be a symbolic link to a directory; no other link is followed.
pub fn import_dir(
    path: &Path,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Tree, ImportError> {
    progress.phase(Phase::Reading, &path.display().to_string());
    Walk::new(path, options, sink, progress)?.run()
}
