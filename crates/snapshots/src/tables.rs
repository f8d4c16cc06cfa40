//! Caches chunk tables on this host, so that a snapshot can be compared with its parent without a
//! request to the store.
//!
//! Readers verify every table against its digest. A missing table costs a request, or storing
//! chunks twice.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use inlay_base::durable::{self, Volatile};
use inlay_store::ids::Digest;
use inlay_store::pack::TOC_LEN_MAX;

use crate::state::State;

/// Maximum tables kept. Beyond this, all but the newest half are evicted.
const TABLES_MAX: usize = 4096;

/// Returns the table with this digest, if cached. The caller verifies it.
pub(super) fn read(state: &State, digest: Digest) -> Option<Vec<u8>> {
    let path = path(state, digest);
    let len = fs::metadata(&path).ok()?.len();
    if len > TOC_LEN_MAX {
        return None;
    }
    fs::read(path).ok()
}

/// Caches a table. Best effort.
pub(super) fn keep(state: &State, digest: Digest, bytes: &[u8]) {
    let path = path(state, digest);
    if path.exists() {
        return;
    }
    let dir = dir(state);
    let reason = Volatile("a cache, verified whenever it is read");
    let kept = fs::create_dir_all(&dir)
        .and_then(|()| make_room(&dir, TABLES_MAX))
        .and_then(|()| durable::write_volatile(&path, bytes, reason));
    if let Err(error) = kept {
        tracing::warn!(path = %path.display(), %error, "can't keep a table of chunks");
    }
}

/// Removes a table that turned out to be damaged.
pub(super) fn forget(state: &State, digest: Digest) {
    fs::remove_file(path(state, digest)).ok();
}

fn make_room(dir: &Path, max: usize) -> io::Result<()> {
    // Read modification times only when an eviction is due.
    if fs::read_dir(dir)?.take(max).count() < max {
        return Ok(());
    }
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata().and_then(|meta| meta.modified()) {
            Ok(modified) => kept.push((modified, entry.path())),
            // Removed concurrently.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    kept.sort();
    for (_, path) in kept.iter().take(kept.len().saturating_sub(max / 2)) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn dir(state: &State) -> PathBuf {
    state.root().join("tables")
}

fn path(state: &State, digest: Digest) -> PathBuf {
    dir(state).join(digest.to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_table_is_read_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let digest = Digest::of(b"table");
        assert_eq!(read(&state, digest), None);
        keep(&state, digest, b"table");
        keep(&state, digest, b"other");
        assert_eq!(read(&state, digest).as_deref(), Some(&b"table"[..]));
        forget(&state, digest);
        assert_eq!(read(&state, digest), None);
    }

    #[test]
    fn the_older_half_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..5u64 {
            let file = fs::File::create(dir.path().join(number.to_string())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number))
                .unwrap();
        }
        make_room(dir.path(), 6).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
        make_room(dir.path(), 4).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["3", "4"]);
    }
}
