//! The records of a state directory's mounts: one small JSON file each, `STATE/mounts/<number>.json`.
//!
//! Records are written to a temporary file and renamed, so that a killed process leaves a whole one or
//! none. They are not synced: after a crash of the host no mount is there either. Only the daemon
//! writes them.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::error::MountError;
use super::record::{MountRecord, PathText};
use super::target::Seen;

/// The longest record that is read, in bytes.
const RECORD_LEN_MAX: u64 = 64 << 10;
/// How the names of files end that say which directories are made.
const MADE: &str = "made";

/// The mounts that one state directory has recorded.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The registry of the state directory `state`. Makes its directory if there is none.
    pub fn open(state: &Path) -> Result<Self, MountError> {
        let dir = state.join("mounts");
        make_private_dirs(&dir)?;
        Ok(Self { dir })
    }

    /// The directory that holds the records.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Records a mount that is about to be made.
    pub(crate) fn add(&self, record: &MountRecord) -> Result<(), MountError> {
        let path = self.path(record);
        let json = serde_json::to_vec_pretty(record)
            .map_err(|e| MountError::Record { path: path.clone(), why: e.to_string() })?;
        write_whole(&self.dir, &path, &json).map_err(MountError::io("write", &path))
    }

    /// Forgets a mount that is gone.
    pub(crate) fn remove(&self, record: &MountRecord) -> Result<(), MountError> {
        let path = self.path(record);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(MountError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// All mounts, stale ones too, in no order. A damaged record is left out and logged.
    pub fn list(&self) -> Result<Vec<MountRecord>, MountError> {
        let mut records = Vec::new();
        let failed = || MountError::io("list", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%error, "a mount record is left out"),
            }
        }
        Ok(records)
    }

    /// Begins to say which directories are about to be made for a mount.
    pub(crate) fn announce(&self, place: Seen) -> Announced {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let path = self.dir.join(format!("{}-{number}.{MADE}", std::process::id()));
        Announced { path, said: Announcement { place, dirs: Vec::new() } }
    }

    /// Removes the directories that a daemon has made which died before it could record what for, as
    /// far as nothing is in or on them.
    pub(crate) fn sweep_announced(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != MADE) {
                continue;
            }
            let said = fs::read(&path).ok();
            let said = said.and_then(|json| serde_json::from_slice::<Announcement>(&json).ok());
            if let Some(Announcement { place, dirs }) = said {
                let dirs: Vec<PathBuf> = dirs.iter().map(PathText::to_path).collect();
                if let Err(error) = place.remove_made(&dirs) {
                    tracing::warn!(%error, "directories that were made for a mount stay behind");
                }
            }
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "it stays behind");
            }
        }
    }

    fn path(&self, record: &MountRecord) -> PathBuf {
        self.dir.join(format!("{:x}.json", record.seen.number()))
    }
}

/// Says in a file which directories are made, before they are. Dropped when a record says it, or when
/// they are gone again.
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

impl Announced {
    /// These directories, as their namespace has them, are about to be made.
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
        let dir = self.path.parent().unwrap_or(&self.path);
        let written = serde_json::to_vec(&self.said)
            .map_err(io::Error::other)
            .and_then(|json| write_whole(dir, &self.path, &json));
        written.map_err(MountError::io("write", &self.path))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        if !self.said.dirs.is_empty()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "it stays behind");
        }
    }
}

fn read(path: &Path) -> Result<Option<MountRecord>, MountError> {
    let damaged = |why: String| MountError::Record { path: path.to_owned(), why };
    let text = match fs::metadata(path).map(|meta| meta.len()) {
        Ok(len) if len > RECORD_LEN_MAX => return Err(damaged(format!("{len} bytes long"))),
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    match text {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| damaged(e.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(MountError::io("read", path)(error)),
    }
}

/// Makes a directory, and those it is in, for their owner alone.
pub(crate) fn make_private_dirs(dir: &Path) -> Result<(), MountError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(MountError::io("make the directory", dir))
}

/// Removes a directory and all that is in it, if it is there.
pub(crate) fn remove_all(dir: &Path) -> Result<(), MountError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(MountError::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Writes a small file, mode 0600, that others see whole or not at all.
pub(crate) fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}
