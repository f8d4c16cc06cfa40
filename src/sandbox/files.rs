//! Small files of a sandbox's directory: whole or not at all, and bounded.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::SandboxError;

/// The longest record that is read, in bytes.
const RECORD_LEN_MAX: u64 = 4 << 20;

/// Writes `value` as JSON, mode 0600: beside, synced, renamed, and the name synced, too.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SandboxError> {
    let json = serde_json::to_vec_pretty(value)
        .map_err(|e| SandboxError::Record { path: path.to_owned(), why: e.to_string() })?;
    write(path, &json)
}

/// Writes a file, mode 0600: beside, synced, renamed, and the name synced, too.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), SandboxError> {
    let write = || {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(SandboxError::io("write", path))
}

/// What [`write_json`] has written; `None` if there is no such file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SandboxError> {
    let Some(bytes) = read(path, RECORD_LEN_MAX)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| SandboxError::Record { path: path.to_owned(), why: e.to_string() })
}

/// A file of at most `limit` bytes; `None` if there is no such file.
pub(super) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, SandboxError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SandboxError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(SandboxError::io("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        let why = format!("longer than {limit} bytes");
        return Err(SandboxError::Record { path: path.to_owned(), why });
    }
    Ok(Some(bytes))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), SandboxError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SandboxError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory, and those it is in, for their owner alone.
pub(super) fn make_private_dirs(dir: &Path) -> Result<(), SandboxError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(SandboxError::io("make the directory", dir))
}

/// Writes a file that no crash has to leave whole, mode 0600.
pub(super) fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<(), SandboxError> {
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(path)?.write_all(bytes)
    };
    write().map_err(SandboxError::io("write", path))
}
