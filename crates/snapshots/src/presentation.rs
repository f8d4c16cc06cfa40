//! Determines how a snapshot is presented below an overlay. The result is computed once per
//! snapshot and host, and cached next to the index, because it requires a scan of every entry.

use std::io::{self, Write};
use std::path::Path;

use inlay_base::record;
use inlay_fusefs::Findings;
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use super::open::{index_path, keep};
use crate::state::State;

/// Maximum size of a cached result, in bytes: four for each of four million directories.
const LEN_MAX: u64 = 16 << 20;

/// Returns the result for the snapshot `id`, whose index must be in `state`. Blocks on disk I/O,
/// the first time for a scan of every entry.
///
/// Never fails: a snapshot whose index cannot be scanned, e.g., a forged one, is presented as a
/// whole, and reads of its defective parts fail.
pub fn findings(state: &State, id: SnapshotId) -> Findings {
    let index = index_path(state, id);
    let path = index.with_extension("parts");
    if let Some(kept) = read(&path).ok().and_then(|bytes| Findings::from_bytes(&bytes, &id.index)) {
        return kept;
    }
    // Use a separate mapping, so that the pages touched by the scan are released.
    let found =
        Index::open(&index).and_then(|index| Findings::of(&index)).unwrap_or_else(|error| {
            tracing::warn!(%id, %error, "can't scan the index");
            Findings::of_damaged()
        });
    if let Err(error) = store(state, id, &found, &path) {
        tracing::warn!(%error, "it will be scanned again");
    }
    found
}

fn store(
    state: &State,
    id: SnapshotId,
    found: &Findings,
    path: &Path,
) -> Result<(), SnapshotError> {
    let scratch = state.scratch();
    let mut file = NamedTempFile::new_in(scratch).map_err(SnapshotError::at(scratch))?;
    file.write_all(&found.to_bytes(&id.index)).map_err(SnapshotError::at(path))?;
    keep(file, path)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let found = record::read_bytes(path, LEN_MAX).map_err(io::Error::other)?;
    found.ok_or(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_fusefs::{APART_LEN_MIN, Parts};
    use inlay_images::export::testing::{Builder, meta};
    use inlay_store::tree::NodeId;
    use std::fs;

    /// Creates a state with the index of a snapshot with a small and a large file.
    fn state(large: u64) -> (tempfile::TempDir, State, SnapshotId) {
        let mut builder = Builder::new();
        for (name, len) in [("small", 3000), ("large", large)] {
            let data = 0..len;
            let data = std::slice::from_ref(&data);
            builder.file(NodeId::ROOT, name.as_bytes(), meta(0o644), len, data);
        }
        let index = builder.finish(b"").index;
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let id = SnapshotId { kind: index.kind(), index: index.digest() };
        fs::write(index_path(&state, id), index.bytes()).unwrap();
        (dir, state, id)
    }

    #[test]
    fn findings_are_cached_and_computed_again_if_damaged() {
        let (_dir, state, id) = state(1 << 20);
        let path = index_path(&state, id).with_extension("parts");
        let found = findings(&state, id);
        assert!(matches!(found.parts, Parts::Two(_)));
        assert_eq!(found.longest_path, 6);
        let kept = fs::read(&path).unwrap();
        // The cached result counts: the index is not scanned again.
        let elsewhere = state.root().join("index");
        fs::rename(index_path(&state, id), &elsewhere).unwrap();
        assert_eq!(findings(&state, id), found);
        fs::rename(&elsewhere, index_path(&state, id)).unwrap();
        fs::write(&path, &kept[..kept.len() - 1]).unwrap();
        assert_eq!(findings(&state, id), found);
        assert_eq!(fs::read(&path).unwrap(), kept);
    }

    #[test]
    fn one_part_is_enough_without_files_to_set_apart() {
        let (_dir, state, id) = state(APART_LEN_MIN - 1);
        assert_eq!(findings(&state, id).parts, Parts::Common);
        assert_eq!(findings(&state, id).parts, Parts::Common);
    }
}
