//! Provides the snapshot of an empty directory, available on every host: its index is generated on
//! demand and identical everywhere.

use std::sync::OnceLock;

use inlay_store::format::write::{IndexParts, WriteError, write_index};
use inlay_store::ids::{Digest, IndexDigest, Kind, SnapshotId};
use inlay_store::pack::PackedGroups;
use inlay_store::tree::{Tree, TreeLimits};
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use super::open::{index_path, keep};
use crate::state::State;

/// Reference to it wherever a snapshot can be mounted.
pub const EMPTY: &str = "empty";

/// Id of the empty snapshot.
pub fn empty_id() -> SnapshotId {
    static ID: OnceLock<SnapshotId> = OnceLock::new();
    *ID.get_or_init(|| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        // Writing a root directory to memory cannot fail; if it did, no store would know the id.
        let written = write(&mut bytes);
        debug_assert!(written.is_ok());
        SnapshotId { kind: Kind::Directory, index: IndexDigest(Digest::of(bytes.get_ref())) }
    })
}

/// Stores its index in the state directory, so that it need not be fetched.
pub fn keep_empty(state: &State) -> Result<SnapshotId, SnapshotError> {
    let id = empty_id();
    let path = index_path(state, id);
    if !path.exists() {
        let dir = state.scratch();
        let mut file = NamedTempFile::new_in(dir).map_err(SnapshotError::at(dir))?;
        write(file.as_file_mut())?;
        keep(file, &path)?;
    }
    Ok(id)
}

fn write(out: &mut dyn std::io::Write) -> Result<u64, WriteError> {
    let parts = IndexParts {
        kind: Kind::Directory,
        tree: &Tree::new(TreeLimits::default()),
        groups: &PackedGroups::default(),
        config: &[],
    };
    write_index(parts, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_store::format::Index;
    use inlay_store::format::check::check_index;

    #[test]
    fn it_is_one_directory_and_has_its_id_everywhere() {
        let dir = tempfile::TempDir::new().unwrap();
        let state = State::open(dir.path()).unwrap();
        let id = keep_empty(&state).unwrap();
        assert_eq!(id, keep_empty(&state).unwrap());
        let index = Index::open(&index_path(&state, id)).unwrap();
        assert_eq!((index.digest(), index.kind()), (id.index, Kind::Directory));
        let counts = check_index(&index).unwrap();
        assert_eq!((counts.files, counts.directories, counts.others), (0, 1, 0));
        // Fixed, because snapshots may refer to it.
        assert_eq!(
            id.to_string(),
            "dir-f9799760b57b4029552cede40a9895b7cea5a15ec711c9f96aa2aa9badbdc35b"
        );
    }
}
