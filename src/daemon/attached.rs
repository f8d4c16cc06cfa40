//! What is attached, in files that the next daemon reads: `STATE/attached/<slot>.json`.
//!
//! A slot means something within one life of the keeper, so each file names it; those of another life
//! are removed.

use std::fs;
use std::io;
use std::path::PathBuf;

use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api::{CacheUse, LoadOptions, StoreRef};
use super::error::DaemonError;
use super::paths::Paths;
use crate::mount::{make_private_dirs, write_whole};

/// The longest file that is read, in bytes.
const FILE_LEN_MAX: u64 = 64 << 10;

/// How much of a snapshot a slot shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// What most files are like.
    Common,
    /// The rest.
    Apart,
}

/// What makes two attached snapshots the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct AttachKey {
    pub(super) snapshot: SnapshotId,
    pub(super) store: StoreRef,
    pub(super) cache: CacheUse,
    pub(super) part: Part,
}

/// A slot and what is attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AttachedFile {
    pub(super) session: String,
    pub(super) slot: u32,
    #[serde(flatten)]
    pub(super) key: AttachKey,
    #[serde(default)]
    pub(super) load: LoadOptions,
}

/// The files of one state directory.
#[derive(Debug)]
pub(super) struct AttachedFiles {
    dir: PathBuf,
    session: String,
}

impl AttachedFiles {
    pub(super) fn open(paths: &Paths, session: &str) -> Result<Self, DaemonError> {
        let dir = paths.attached();
        make_private_dirs(&dir)?;
        Ok(Self { dir, session: session.to_owned() })
    }

    /// What this life of the keeper has attached. Everything else is removed.
    pub(super) fn load(&self) -> Result<Vec<AttachedFile>, DaemonError> {
        let failed = || DaemonError::io("list", &self.dir);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= FILE_LEN_MAX);
            let file = small.then(|| fs::read(&path).ok()).flatten();
            let file: Option<AttachedFile> =
                file.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match file {
                Some(file) if file.session == self.session && path == self.path(file.slot) => {
                    found.push(file);
                }
                // Of another life, or nothing that this program wrote whole.
                _ => fs::remove_file(&path).map_err(DaemonError::io("remove", &path))?,
            }
        }
        Ok(found)
    }

    pub(super) fn add(
        &self,
        slot: u32,
        key: &AttachKey,
        load: &LoadOptions,
    ) -> Result<(), DaemonError> {
        let path = self.path(slot);
        let session = self.session.clone();
        let file = AttachedFile { session, slot, key: key.clone(), load: load.clone() };
        serde_json::to_vec_pretty(&file)
            .map_err(io::Error::other)
            .and_then(|json| write_whole(&self.dir, &path, &json))
            .map_err(DaemonError::io("write", &path))
    }

    pub(super) fn remove(&self, slot: u32) -> Result<(), DaemonError> {
        let path = self.path(slot);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DaemonError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, slot: u32) -> PathBuf {
        self.dir.join(format!("{slot}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_store::ids::Digest;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_of_another_life_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::of(dir.path());
        let key = AttachKey {
            snapshot: format!("fs-{}", Digest::of(b"x").to_hex()).parse().unwrap(),
            store: StoreRef { url: None, plain_http: false },
            cache: CacheUse::Kept,
            part: Part::Apart,
        };
        let first = AttachedFiles::open(&paths, "first").unwrap();
        first.add(3, &key, &LoadOptions::default()).unwrap();
        let file = paths.attached().join("3.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(first.load().unwrap().len(), 1);
        let second = AttachedFiles::open(&paths, "second").unwrap();
        second.add(4, &key, &LoadOptions::default()).unwrap();
        fs::write(paths.attached().join("5.json"), "{").unwrap();
        let left = second.load().unwrap();
        assert_eq!(left.iter().map(|file| file.slot).collect::<Vec<_>>(), [4]);
        assert_eq!(left[0].key, key);
        assert!(!file.exists());
        second.remove(4).unwrap();
        second.remove(4).unwrap();
        assert!(second.load().unwrap().is_empty());
    }
}
