//! Scratch directories, on the file system that the build is on, removed when dropped.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The root of the checked-out sources.
pub fn source_root() -> PathBuf {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.ancestors().nth(2).unwrap_or(kit).to_path_buf()
}

/// A new directory below `target/tmp`: a real file system (with `trusted.*` attributes and
/// holes), where `/tmp` may be a small one in memory.
pub fn scratch() -> io::Result<TempDir> {
    let parent = source_root().join("target/tmp");
    std::fs::create_dir_all(&parent)?;
    tempfile::Builder::new().prefix("inlay-test-").tempdir_in(parent)
}
