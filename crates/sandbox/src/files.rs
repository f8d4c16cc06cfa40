//! Reads and writes the small files of a sandbox's directory, with [`SandboxError`] as the error.

use std::fs;
use std::io;
use std::path::Path;

use inlay_base::durable::{self, Volatile};
use inlay_base::record::{self, Record, RecordError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::SandboxError;
use super::layout::Layout;

/// The maximum size of a record that holds a command line and environment variables, in bytes.
pub(super) const COMMAND_LEN_MAX: u64 = 32 << 20;

/// The runtime's `config.json`, as far as this program reads it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Config(Map<String, Value>);

impl Record for Config {
    const VERSION: u32 = 1;
    const LEN_MAX: u64 = COMMAND_LEN_MAX;
}

impl Config {
    pub(super) fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        read_record(&layout.config())
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field)
    }
}

/// Writes a record durably.
pub(super) fn write_record<T: Record>(path: &Path, record: &T) -> Result<(), SandboxError> {
    record::write(path, record).map_err(SandboxError::io("write", path))
}

/// Writes `value` durably as JSON for another program to read, mode 0600.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SandboxError> {
    let json = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    let written = json.and_then(|json| durable::write(path, &json));
    written.map_err(SandboxError::io("write", path))
}

/// Writes a file durably, mode 0600.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), SandboxError> {
    durable::write(path, bytes).map_err(SandboxError::io("write", path))
}

/// Writes a file without fsync, mode 0600: a power failure may lose it.
pub(super) fn write_volatile(
    path: &Path,
    bytes: &[u8],
    reason: Volatile,
) -> Result<(), SandboxError> {
    durable::write_volatile(path, bytes, reason).map_err(SandboxError::io("write", path))
}

/// Reads the record at `path`; `None` if the file does not exist.
pub(super) fn read_record<T: Record>(path: &Path) -> Result<Option<T>, SandboxError> {
    record::read(path).map_err(SandboxError::Record)
}

/// Reads a regular file of at most `limit` bytes; `None` if it does not exist.
pub(super) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, SandboxError> {
    record::read_bytes(path, limit).map_err(SandboxError::Record)
}

/// Removes a file that belongs to a running process. Idempotent. Not synced: after a power failure
/// that process no longer exists, and nothing reads the file.
pub(super) fn remove(path: &Path) -> Result<(), SandboxError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SandboxError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Creates a directory and its parents durably, mode 0700.
pub(super) fn make_private_dirs(dir: &Path) -> Result<(), SandboxError> {
    durable::create_dirs(dir).map_err(SandboxError::io("make the directory", dir))
}

/// Returns why a record is damaged; `None` if it is intact or missing.
pub(super) fn damage<T>(
    read: Result<T, SandboxError>,
) -> Result<Option<RecordError>, SandboxError> {
    match read {
        Ok(_) => Ok(None),
        Err(SandboxError::Record(error)) => Ok(Some(error)),
        Err(error) => Err(error),
    }
}
