//! Whether a snapshot is shown in two parts below an overlay: found once for each snapshot of a host,
//! and kept beside its index, because finding it looks at every entry.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use inlay_fusefs::Parts;
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use super::open::{index_path, keep};
use crate::state::State;

/// The longest finding that is read, in bytes: four for each of four million directories.
const LEN_MAX: u64 = 16 << 20;

/// The parts in which the snapshot `id`, whose index `state` holds, is shown below an overlay. Blocks
/// on the disk, the first time for as long as it takes to look at every entry.
///
/// Never fails: an index that can't be looked through, because whoever made it was up to no good, is
/// shown whole, with an error where it is wrong.
pub fn parts(state: &State, id: SnapshotId) -> Parts {
    let index = index_path(state, id);
    let path = index.with_extension("parts");
    if let Some(kept) = read(&path).ok().and_then(|bytes| Parts::from_bytes(&bytes, &id.index)) {
        return kept;
    }
    // Mapped a second time, so that the pages that this touches do not stay.
    let found = Index::open(&index).and_then(|index| Parts::of(&index)).unwrap_or_else(|error| {
        tracing::warn!(%id, %error, "the index can't be looked through");
        Parts::Whole
    });
    if let Err(error) = store(state, id, &found, &path) {
        tracing::warn!(%error, "it will be looked through again");
    }
    found
}

fn store(state: &State, id: SnapshotId, found: &Parts, path: &Path) -> Result<(), SnapshotError> {
    let scratch = state.scratch();
    let mut file = NamedTempFile::new_in(scratch).map_err(SnapshotError::at(scratch))?;
    file.write_all(&found.to_bytes(&id.index)).map_err(SnapshotError::at(path))?;
    keep(file, path)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing::{Builder, meta};
    use inlay_fusefs::APART_LEN_MIN;
    use inlay_store::tree::NodeId;

    /// A state that holds the index of a snapshot with a small and a large file.
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
    fn what_was_found_is_kept_and_found_again_when_it_is_damaged() {
        let (_dir, state, id) = state(1 << 20);
        let path = index_path(&state, id).with_extension("parts");
        let found = parts(&state, id);
        assert!(matches!(found, Parts::Two(_)));
        let kept = fs::read(&path).unwrap();
        // What is kept is what counts: the index is not looked at again.
        let elsewhere = state.root().join("index");
        fs::rename(index_path(&state, id), &elsewhere).unwrap();
        assert_eq!(parts(&state, id), found);
        fs::rename(&elsewhere, index_path(&state, id)).unwrap();
        fs::write(&path, &kept[..kept.len() - 1]).unwrap();
        assert_eq!(parts(&state, id), found);
        assert_eq!(fs::read(&path).unwrap(), kept);
    }

    #[test]
    fn one_part_is_enough_without_files_to_set_apart() {
        let (_dir, state, id) = state(APART_LEN_MIN - 1);
        assert_eq!(parts(&state, id), Parts::Common);
        assert_eq!(parts(&state, id), Parts::Common);
    }
}
