//! Imports a directory of this machine.
//!
//! The walk moves by descriptor and never follows a symbolic link, so concurrent changes cannot
//! lead it out of the directory. It uses a bounded number of descriptors and no recursion, at
//! any depth.

pub mod content;
mod object;
#[cfg(test)]
mod tests;
mod walk;

use std::path::Path;

use inlay_store::pack::FileSink;
use inlay_store::tree::Tree;
use walk::DirWalk;

use super::{ImportError, ImportOptions, Phase, Progress};

/// Imports the tree in the directory `path`, in the order of names. `path` may be a symbolic link
/// to a directory; no other link is followed.
pub fn import_dir(
    path: &Path,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Tree, ImportError> {
    progress.phase(Phase::Reading, &path.display().to_string());
    DirWalk::new(path, options, sink, progress)?.run()
}
