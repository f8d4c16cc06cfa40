//! Drops this machine's kernel caches before cold and warm starts.

use std::fs;
use std::path::Path;

use super::error::BenchError;

const CONTROL: &str = "/proc/sys/vm/drop_caches";
/// Page cache, dentries and inodes.
const EVERYTHING: &str = "3";

/// Writes back dirty pages, then drops clean caches.
pub(super) fn drop_caches() -> Result<(), BenchError> {
    rustix::fs::sync();
    fs::write(CONTROL, EVERYTHING).map_err(BenchError::path("drop caches by", Path::new(CONTROL)))
}
