//! The kernel's caches of this machine, which are emptied before cold and warm starts.

use std::fs;
use std::path::Path;

use super::error::BenchError;

const CONTROL: &str = "/proc/sys/vm/drop_caches";
/// Pages, and names with attributes.
const EVERYTHING: &str = "3";

/// Writes back what is dirty, and drops what is clean.
pub(super) fn drop_caches() -> Result<(), BenchError> {
    rustix::fs::sync();
    fs::write(CONTROL, EVERYTHING).map_err(BenchError::path("drop caches by", Path::new(CONTROL)))
}
