//! The mounts of a state directory: one small JSON file each, `STATE/mounts/<id>.json`.
//!
//! Records are written to a temporary file, synced and renamed; a lock on the directory orders those
//! who change it. A record whose process has died is stale: what it left behind is cleared away.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};

use super::error::MountError;
use super::mountinfo;
use super::record::{MountId, MountRecord, View};
use super::upper::Keep;

/// The longest record that is read, in bytes.
const RECORD_LEN_MAX: u64 = 64 << 10;

/// The mounts that one state directory knows of.
#[derive(Debug, Clone)]
pub struct Registry {
    dir: PathBuf,
}

/// Held by whoever changes records.
struct Exclusive(#[allow(dead_code, reason = "closing the file unlocks it")] File);

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

    /// The directory for what a mount needs besides its record.
    pub(crate) fn private_dir(&self, id: &MountId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// Records a mount that is about to be made. Refused if another is recorded at its mount point,
    /// unless that one is stale.
    pub(crate) fn add(&self, record: &MountRecord) -> Result<(), MountError> {
        let exclusive = self.lock()?;
        let mountpoint = record.mountpoint.to_path();
        if let Some(old) = self.find(&mountpoint)? {
            if old.server.is_alive() {
                return Err(MountError::AlreadyMounted { mountpoint, snapshot: old.snapshot });
            }
            self.clear(&exclusive, &old)?;
        }
        let path = self.path(&record.id());
        let json = serde_json::to_vec_pretty(record)
            .map_err(|e| MountError::Record { path: path.clone(), why: e.to_string() })?;
        write_synced(&self.dir, &path, &json).map_err(MountError::io("write", &path))
    }

    /// Forgets a mount that is gone, and removes its private directory.
    pub(crate) fn remove(&self, record: &MountRecord) -> Result<(), MountError> {
        let exclusive = self.lock()?;
        self.forget(&exclusive, record)
    }

    /// The mount on `mountpoint`, an absolute path without symbolic links.
    pub fn find(&self, mountpoint: &Path) -> Result<Option<MountRecord>, MountError> {
        read(&self.path(&MountId::of(mountpoint)))
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

    /// Clears away what mounts left behind whose process has died. Returns them.
    pub fn sweep(&self) -> Result<Vec<MountRecord>, MountError> {
        let exclusive = self.lock()?;
        let stale: Vec<_> =
            self.list()?.into_iter().filter(|record| !record.server.is_alive()).collect();
        for record in &stale {
            self.clear(&exclusive, record)?;
        }
        Ok(stale)
    }

    /// A server that died leaves a FUSE mount that answers nothing, maybe an overlay above it.
    fn clear(&self, exclusive: &Exclusive, record: &MountRecord) -> Result<(), MountError> {
        tracing::info!(
            mountpoint = %record.mountpoint.to_path().display(), pid = record.server.pid,
            "clearing away a mount whose process has died"
        );
        detach_ours(&record.mountpoint.to_path())?;
        if let View::Writable { lower, upper, keep } = &record.view {
            detach_ours(&lower.to_path())?;
            if *keep == Keep::Scratch {
                remove_all(&upper.to_path())?;
            }
        }
        self.forget(exclusive, record)
    }

    fn forget(&self, _: &Exclusive, record: &MountRecord) -> Result<(), MountError> {
        let id = record.id();
        let private = self.private_dir(&id);
        // Only empty directories: should something still be mounted there, it is not touched.
        for dir in [private.join("lower"), private] {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(MountError::io("remove", &dir)(error)),
            }
        }
        let path = self.path(&id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(MountError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, id: &MountId) -> PathBuf {
        self.dir.join(format!("{}.json", id.as_str()))
    }

    fn lock(&self) -> Result<Exclusive, MountError> {
        let path = self.dir.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(MountError::io("open", &path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(MountError::io("lock", &path))?;
        Ok(Exclusive(file))
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

/// Takes every mount that this program made at `mountpoint` out of the tree, unless something else is
/// mounted over it.
fn detach_ours(mountpoint: &Path) -> Result<(), MountError> {
    while let Some(top) = mountinfo::top(mountpoint)? {
        if !top.is_ours() {
            return Err(MountError::Covered(mountpoint.to_owned()));
        }
        unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(MountError::io("unmount", mountpoint))?;
    }
    Ok(())
}

fn write_synced(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}
