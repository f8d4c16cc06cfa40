//! Persists attached snapshots for the next daemon, in `STATE/attached/<slot>.json`.
//!
//! A slot is valid within one session of the keeper, so each file names its session; files of other
//! sessions are removed. A damaged file is kept: reads of its slot fail until it is repaired.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use inlay_base::boot::{ENDS_WITH_HOST, LastServed};
use inlay_base::durable;
use inlay_base::record::{self, Record, RecordError};
use inlay_mounts::{Alias, make_private_dirs};
use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};

use super::api::{CacheUse, LoadOptions, Part, StoreRef};
use super::error::DaemonError;
use inlay_api::Paths;

/// Identity of an attached snapshot: equal keys share a slot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct AttachKey {
    pub(super) snapshot: SnapshotId,
    pub(super) store: StoreRef,
    pub(super) cache: CacheUse,
    pub(super) part: Part,
    /// Renumbering of the owner of the root directory; none if owners are as in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) alias: Option<Alias>,
}

/// A slot and the snapshot attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AttachedFile {
    pub(super) session: String,
    pub(super) slot: u32,
    #[serde(flatten)]
    pub(super) key: AttachKey,
    #[serde(default)]
    pub(super) load: LoadOptions,
}

impl Record for AttachedFile {
    const VERSION: u32 = 1;
    const LEN_MAX: u64 = 64 << 10;
}

/// Result of loading all files.
#[derive(Debug, Default)]
pub(super) struct LoadedAttachments {
    /// Snapshots attached in this session.
    pub(super) files: Vec<AttachedFile>,
    /// Slots with damaged files, which may be of another session.
    pub(super) damaged: Vec<(u32, RecordError)>,
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

    /// Loads the files of this session. Removes files of other sessions, and sets damaged files
    /// aside if the daemon last served in an earlier boot.
    pub(super) fn load(&self, last: LastServed) -> Result<LoadedAttachments, DaemonError> {
        let failed = || DaemonError::io("list", &self.dir);
        let mut found = LoadedAttachments::default();
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let Some(slot) = self.slot(&path) else {
                if path.file_name().is_some_and(durable::is_unfinished) {
                    fs::remove_file(&path).map_err(DaemonError::io("remove", &path))?;
                }
                continue;
            };
            match record::read::<AttachedFile>(&path) {
                Ok(None) => {}
                Ok(Some(file)) if file.session != self.session => {
                    fs::remove_file(&path).map_err(DaemonError::io("remove", &path))?;
                }
                Ok(Some(file)) if file.slot == slot => found.files.push(file),
                Ok(Some(file)) => {
                    let why = format!("it is that of slot {}", file.slot);
                    found.damaged.push((slot, RecordError::Damaged { path, why }));
                }
                // It describes a slot of an earlier boot's kernel.
                Err(error) if last == LastServed::EarlierBoot => {
                    let aside =
                        record::set_aside(&path).map_err(DaemonError::io("rename", &path))?;
                    tracing::warn!(%error, aside = %aside.display(), "setting a damaged record aside");
                }
                Err(error) => found.damaged.push((slot, error)),
            }
        }
        Ok(found)
    }

    /// Reads the current file of a slot; `None` if it is missing or of another session or slot.
    pub(super) fn read(&self, slot: u32) -> Result<Option<AttachedFile>, RecordError> {
        let file = record::read::<AttachedFile>(&self.path(slot))?;
        Ok(file.filter(|file| file.session == self.session && file.slot == slot))
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
        record::write_volatile(&path, &file, ENDS_WITH_HOST)
            .map_err(DaemonError::io("write", &path))
    }

    /// Removes the file of a slot that the kernel has forgotten. A damaged file is renamed instead.
    pub(super) fn remove(&self, slot: u32) -> Result<(), DaemonError> {
        let path = self.path(slot);
        if let Err(error) = record::read::<AttachedFile>(&path) {
            tracing::warn!(%error, slot, "keeping the record of a released slot beside the others");
            let aside = record::set_aside(&path).map_err(DaemonError::io("rename", &path));
            return aside.map(drop);
        }
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

    /// Returns the slot of the file at `path`; `None` if the name is not that of a slot's file.
    fn slot(&self, path: &Path) -> Option<u32> {
        let slot = path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()?;
        (self.path(slot) == path).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_mounts::Owner;
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
            alias: Some(Alias { from: Owner::ROOT, to: Owner { uid: 7, gid: 8 } }),
        };
        let first = AttachedFiles::open(&paths, "first").unwrap();
        first.add(3, &key, &LoadOptions::default()).unwrap();
        let file = paths.attached().join("3.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(first.load(LastServed::ThisBoot).unwrap().files.len(), 1);
        let second = AttachedFiles::open(&paths, "second").unwrap();
        second.add(4, &key, &LoadOptions::default()).unwrap();
        let left = second.load(LastServed::ThisBoot).unwrap();
        assert_eq!(left.files.iter().map(|file| file.slot).collect::<Vec<_>>(), [4]);
        assert_eq!(left.files[0].key, key);
        assert!(!file.exists() && left.damaged.is_empty());
        assert_eq!(second.read(4).unwrap().unwrap().key, key);
        assert!(second.read(3).unwrap().is_none() && first.read(4).unwrap().is_none());
        second.remove(4).unwrap();
        second.remove(4).unwrap();
        assert!(second.load(LastServed::ThisBoot).unwrap().files.is_empty());
    }

    #[test]
    fn unreadable_records_are_kept_until_reboot() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::of(dir.path());
        let key = AttachKey {
            snapshot: format!("fs-{}", Digest::of(b"x").to_hex()).parse().unwrap(),
            store: StoreRef { url: None, plain_http: false },
            cache: CacheUse::Kept,
            part: Part::Whole,
            alias: None,
        };
        let files = AttachedFiles::open(&paths, "session").unwrap();
        files.add(5, &key, &LoadOptions::default()).unwrap();
        // An unfinished file of a crash, and a file of no slot.
        fs::write(paths.attached().join(".new-x"), "{").unwrap();
        let path = paths.attached().join("5.json");
        let whole = fs::read_to_string(&path).unwrap();
        let newer = whole.replace("\"version\": 1", "\"version\": 2");
        let of_other = whole.replace("\"slot\": 5", "\"slot\": 6");
        let unknown = whole.replacen('{', r#"{"later": 1,"#, 1);
        assert!(newer != whole && of_other != whole);
        for damage in ["", "{", "\0\0", &whole[..whole.len() / 2], &newer, &of_other] {
            fs::write(&path, damage).unwrap();
            let found = files.load(LastServed::ThisBoot).unwrap();
            assert!(found.files.is_empty(), "{damage:?}");
            assert_eq!(found.damaged.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [5]);
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
        fs::write(&path, unknown).unwrap();
        assert_eq!(files.load(LastServed::ThisBoot).unwrap().files[0].key, key);
        // The slot is gone: its name is free again.
        for number in 1..3 {
            fs::write(&path, "{").unwrap();
            files.remove(5).unwrap();
            assert!(!path.exists());
            let aside = paths.attached().join(format!("5.json.damaged-{number}"));
            assert_eq!(fs::read_to_string(aside).unwrap(), "{");
        }
        fs::write(&path, "{").unwrap();
        let found = files.load(LastServed::EarlierBoot).unwrap();
        assert!(found.damaged.is_empty() && !path.exists());
        assert_eq!(fs::read_dir(paths.attached()).unwrap().count(), 3);
    }
}
