//! Keeps the mount records of a state directory: one small JSON file each,
//! `STATE/mounts/<number>.json`.
//!
//! They are not synced: after a host crash the mounts are gone, too. A damaged record is left in
//! place and reported to the caller that opens the registry. Only the daemon writes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use inlay_base::boot::{ENDS_WITH_HOST, LastServed};
use inlay_base::durable;
use inlay_base::record::{self, Record, RecordError};
use inlay_base::remove::remove_tree;
use serde::{Deserialize, Serialize};

use super::error::MountError;
use super::mount_id::Seen;
use super::record::{MountRecord, PathText};

/// The extension of files that announce directories to be created.
const MADE: &str = "made";

/// The mount records of one state directory.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// The content of a registry.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The mounts, including stale ones, in no particular order.
    pub mounts: Vec<MountRecord>,
    /// The damaged records.
    pub damaged: Vec<RecordError>,
}

impl Recorded {
    /// Sets aside the damaged records of an earlier boot: their mounts no longer exist.
    pub(crate) fn drop_of_earlier_boot(&mut self, last: LastServed) {
        self.damaged.retain(|error| keeps(error, last));
    }
}

impl Registry {
    /// Opens the registry of the state directory `state`. Creates its directory if it does not
    /// exist.
    pub fn open(state: &Path) -> Result<Self, MountError> {
        let dir = state.join("mounts");
        make_private_dirs(&dir)?;
        Ok(Self { dir })
    }

    /// Returns the directory that holds the records.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the record of a mount that is about to be created.
    pub(crate) fn add(&self, record: &MountRecord) -> Result<(), MountError> {
        let path = self.path(record);
        record::write_volatile(&path, record, ENDS_WITH_HOST)
            .map_err(MountError::io("write", &path))
    }

    /// Removes the record of a mount that is gone. Idempotent.
    pub(crate) fn remove(&self, record: &MountRecord) -> Result<(), MountError> {
        let path = self.path(record);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(MountError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Reads all records.
    pub fn list(&self) -> Result<Recorded, MountError> {
        let mut recorded = Recorded::default();
        for path in self.files("json")? {
            match record::read(&path) {
                Ok(record) => recorded.mounts.extend(record),
                Err(error) => recorded.damaged.push(error),
            }
        }
        Ok(recorded)
    }

    /// Starts an announcement of directories that are about to be created for a mount.
    pub(crate) fn announce(&self, place: Seen) -> Announced {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Relaxed);
            let path = self.dir.join(format!("{}-{number}.{MADE}", std::process::id()));
            // An earlier process with this pid may have left a damaged one.
            if fs::symlink_metadata(&path).is_err() {
                return Announced { path, said: Announcement { place, dirs: Vec::new() } };
            }
        }
    }

    /// Removes the empty directories of a daemon that died between creating them and recording
    /// their mount. Returns the damaged announcements, which are kept.
    pub(crate) fn sweep_announced(&self, last: LastServed) -> Result<Vec<RecordError>, MountError> {
        let mut damaged = Vec::new();
        self.remove_unfinished()?;
        for path in self.files(MADE)? {
            match record::read::<Announcement>(&path) {
                Ok(Some(Announcement { place, dirs })) => {
                    let dirs: Vec<PathBuf> = dirs.iter().map(PathText::to_path).collect();
                    if let Err(error) = place.remove_made(&dirs) {
                        tracing::warn!(%error, "can't remove the directories created for a mount; they stay");
                    }
                    if let Err(error) = fs::remove_file(&path) {
                        tracing::warn!(%error, path = %path.display(), "can't remove it; it stays on disk");
                    }
                }
                Err(error) if keeps(&error, last) => damaged.push(error),
                Ok(None) | Err(_) => {}
            }
        }
        Ok(damaged)
    }

    /// Removes the incomplete temporary files of a daemon that died.
    fn remove_unfinished(&self) -> Result<(), MountError> {
        let failed = || MountError::io("clear up in", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if durable::is_unfinished(&entry.file_name()) {
                fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        Ok(())
    }

    fn files(&self, extension: &str) -> Result<Vec<PathBuf>, MountError> {
        let failed = || MountError::io("list", &self.dir);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            if path.extension().is_some_and(|of| of == extension) {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn path(&self, record: &MountRecord) -> PathBuf {
        self.dir.join(format!("{:x}.json", record.seen.number()))
    }
}

/// Reports whether a damaged record counts as a mount. One of an earlier boot does not, as its
/// mount ended with the host: it is set aside.
fn keeps(error: &RecordError, last: LastServed) -> bool {
    if last == LastServed::EarlierBoot {
        match record::set_aside(error.path()) {
            Ok(aside) => {
                tracing::warn!(%error, aside = %aside.display(), "setting a damaged record aside");
                return false;
            }
            Err(why) => tracing::error!(%why, "can't set a damaged record aside"),
        }
    }
    tracing::error!(%error, "a mount record is damaged; leaving it unchanged");
    true
}

/// A file that announces directories before they are created. Drop it once a record lists them, or
/// when they have been removed again.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
    said: Announcement,
}

#[derive(Debug, Serialize, Deserialize)]
struct Announcement {
    place: Seen,
    dirs: Vec<PathText>,
}

impl Record for Announcement {
    const VERSION: u32 = 1;
}

impl Announced {
    /// Announces these directories, given as paths in their namespace, before they are created.
    pub(crate) fn add(&mut self, dirs: &[PathBuf]) -> Result<(), MountError> {
        let known = self.said.dirs.len();
        for dir in dirs.iter().map(|dir| PathText::from(&**dir)) {
            if !self.said.dirs.contains(&dir) {
                self.said.dirs.push(dir);
            }
        }
        if self.said.dirs.len() == known {
            return Ok(());
        }
        record::write_volatile(&self.path, &self.said, ENDS_WITH_HOST)
            .map_err(MountError::io("write", &self.path))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if !self.said.dirs.is_empty()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "can't remove it; it stays on disk");
        }
    }
}

/// Creates a directory and its parents durably, mode 0700.
pub fn make_private_dirs(dir: &Path) -> Result<(), MountError> {
    durable::create_dirs(dir).map_err(MountError::io("make the directory", dir))
}

/// Removes a directory tree, if it exists.
pub(crate) fn remove_all(dir: &Path) -> Result<(), MountError> {
    remove_tree(dir).map_err(MountError::io("remove", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Standing, View};
    use inlay_base::record::Unknown;
    use inlay_store::ids::Digest;

    fn registry() -> (tempfile::TempDir, Registry) {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        (dir, registry)
    }

    fn record(number: u64) -> MountRecord {
        MountRecord {
            mountpoint: Path::new("/mnt").into(),
            snapshot: format!("fs-{}", Digest::of(b"x").to_hex()).parse().unwrap(),
            slots: vec![1],
            session: "s".into(),
            seen: Seen::for_tests(number),
            view: View::ReadOnly,
            owner: None,
            owners: None,
            flags: crate::MountFlags::default(),
            made: Vec::new(),
            file: None,
            key: None,
            standing: Standing::Unconfirmed,
            unknown: Unknown::default(),
        }
    }

    /// Returns all kinds of damage that a record can have.
    fn damages(whole: &[u8]) -> Vec<Vec<u8>> {
        let newer = br#"{"version":2}"#.to_vec();
        let torn = [1, whole.len() / 2, whole.len() - 1].map(|len| whole[..len].to_vec());
        [vec![], vec![0; whole.len()], b"garbage".to_vec(), newer].into_iter().chain(torn).collect()
    }

    #[test]
    fn records_are_added_listed_and_removed() {
        let (_dir, registry) = registry();
        let (one, two) = (record(1), record(0xab));
        registry.add(&one).unwrap();
        registry.add(&two).unwrap();
        registry.add(&two).unwrap();
        assert!(registry.dir().join("ab.json").exists());
        // A foreign file, and an incomplete temporary file.
        fs::write(registry.dir().join("note.txt"), "x").unwrap();
        fs::write(registry.dir().join(".new-1"), "x").unwrap();
        let mut listed = registry.list().unwrap();
        listed.mounts.sort_by_key(|record| record.seen.number());
        assert_eq!(listed.mounts, [one.clone(), two]);
        assert!(listed.damaged.is_empty());
        registry.remove(&one).unwrap();
        registry.remove(&one).unwrap();
        assert_eq!(registry.list().unwrap().mounts.len(), 1);
        // Neither missing nor removable.
        fs::remove_file(registry.dir().join("ab.json")).unwrap();
        fs::create_dir(registry.dir().join("1.json")).unwrap();
        assert!(registry.remove(&one).is_err());
        assert!(registry.add(&one).is_err());
    }

    #[test]
    fn a_newer_version_s_fields_are_kept() {
        let (_dir, registry) = registry();
        registry.add(&record(1)).unwrap();
        let path = registry.dir().join("1.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen('{', r#"{"later": {"x": 1},"#, 1)).unwrap();
        let mut read = registry.list().unwrap().mounts.remove(0);
        read.standing = Standing::Confirmed;
        registry.add(&read).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("later") && text.contains("\"confirmed\""), "{text}");
    }

    #[test]
    fn a_damaged_record_stays_in_this_boot_and_is_set_aside_in_the_next() {
        let (_dir, registry) = registry();
        registry.add(&record(1)).unwrap();
        let path = registry.dir().join("1.json");
        for damage in damages(&fs::read(&path).unwrap()) {
            fs::write(&path, &damage).unwrap();
            let mut listed = registry.list().unwrap();
            assert!(listed.mounts.is_empty() && listed.damaged.len() == 1, "{damage:?}");
            listed.drop_of_earlier_boot(LastServed::ThisBoot);
            assert_eq!(listed.damaged[0].path(), path);
            assert_eq!(fs::read(&path).unwrap(), damage);
            listed.drop_of_earlier_boot(LastServed::EarlierBoot);
            assert!(listed.damaged.is_empty() && !path.exists(), "{damage:?}");
        }
        // Nothing is lost, even if it is a directory.
        fs::create_dir(&path).unwrap();
        let mut listed = registry.list().unwrap();
        listed.drop_of_earlier_boot(LastServed::EarlierBoot);
        assert!(listed.damaged.is_empty() && registry.dir().join("1.json.damaged-8").is_dir());
        assert!(registry.list().unwrap().damaged.is_empty());
    }

    #[test]
    fn notes_of_made_directories_go_when_they_are_understood_and_are_never_written_over() {
        let (dir, registry) = registry();
        let made = dir.path().join("made-for-it");
        fs::create_dir(&made).unwrap();
        let mut said = registry.announce(Seen::for_tests(0));
        said.add(std::slice::from_ref(&made)).unwrap();
        said.add(std::slice::from_ref(&made)).unwrap();
        let path = said.path.clone();
        std::mem::forget(said);
        let whole = fs::read(&path).unwrap();
        for damage in damages(&whole) {
            fs::write(&path, &damage).unwrap();
            let damaged = registry.sweep_announced(LastServed::ThisBoot).unwrap();
            assert_eq!(damaged.len(), 1, "{damage:?}");
            assert_eq!(fs::read(&path).unwrap(), damage);
            assert_ne!(registry.announce(Seen::for_tests(0)).path, path);
            assert!(registry.sweep_announced(LastServed::EarlierBoot).unwrap().is_empty());
            assert!(!path.exists());
        }
        fs::write(registry.dir().join(".new-x"), "{").unwrap();
        fs::write(&path, &whole).unwrap();
        assert!(registry.sweep_announced(LastServed::ThisBoot).unwrap().is_empty());
        assert!(!path.exists() && !registry.dir().join(".new-x").exists());
        // Dropping an announcement removes its file; an empty one never writes it.
        let mut said = registry.announce(Seen::for_tests(0));
        said.add(&[]).unwrap();
        assert!(!said.path.exists());
        said.add(&[made]).unwrap();
        let path = said.path.clone();
        assert!(path.exists());
        drop(said);
        assert!(!path.exists());
    }
}
