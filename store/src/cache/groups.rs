//! Finds, verifies, stores and removes group files.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, Open};
use super::entry::{CacheFile, Identity, Reject, disk_cost, file_cost};
use super::open_files::Opening;
use super::stats::count;
use super::store::CacheInner;
use super::{CacheError, lease};
use crate::ids::GroupDigest;

/// The outcome of storing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    New,
    Before,
    NoRoom,
    /// Not stored in the content: another process writes it, or it holds different bytes at this
    /// position. The caller falls back to a group file.
    Elsewhere,
}

impl CacheInner {
    pub(super) fn group_path(&self, group: &GroupDigest) -> PathBuf {
        let name = group.0.to_hex();
        self.groups.join(name.get(..2).unwrap_or("")).join(&name)
    }

    /// Returns the open, verified file of `group`.
    pub(super) fn entry(&self, group: &GroupDigest) -> Option<Arc<CacheFile>> {
        if let Some(entry) = self.files.get(group) {
            return Some(entry);
        }
        let path = self.group_path(group);
        let opening = self.files.opening(group);
        if let Some(entry) = opening.get(group) {
            return Some(entry);
        }
        let (file, identity) = match self.open_group(&path) {
            Ok(opened) => opened?,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "opening a cache file");
                count(&self.counters.read_failures);
                return None;
            }
        };
        match self.prove(&opening, file, identity, group) {
            Ok(entry) => {
                let entry = Arc::new(entry);
                opening.put(*group, identity, Arc::clone(&entry));
                Some(entry)
            }
            Err(Reject::Wrong) => {
                tracing::warn!(path = %path.display(), "removing a damaged cache file");
                count(&self.counters.verify_failures);
                self.remove_group(&path, identity);
                None
            }
            Err(Reject::Io(error)) => {
                tracing::debug!(path = %path.display(), %error, "can't read a cache file");
                count(&self.counters.read_failures);
                self.remove_group(&path, identity);
                None
            }
        }
    }

    /// Returns `None` if the file is being evicted.
    fn open_group(&self, path: &Path) -> io::Result<Option<(File, Identity)>> {
        let file = self.disk.open(path, Open::Read)?;
        let shared = lease::share(&file)?;
        let stamp = self.disk.stamp(&file)?;
        Ok((shared && stamp.links > 0).then(|| (file, Identity::of(&stamp))))
    }

    fn prove(
        &self,
        opening: &Opening<'_>,
        file: File,
        identity: Identity,
        group: &GroupDigest,
    ) -> Result<CacheFile, Reject> {
        if opening.is_proved(group, identity) {
            return CacheFile::trusted(file, identity);
        }
        let entry = CacheFile::verified(&*self.disk, file, identity, *group)?;
        count(&self.counters.verified);
        Ok(entry)
    }

    /// Drops a verified file that could not be read: it was truncated, or the disk fails.
    pub(super) fn read_failed(&self, group: &GroupDigest, entry: &CacheFile, error: &io::Error) {
        let path = self.group_path(group);
        tracing::debug!(path = %path.display(), %error, "removing a cache file");
        count(&self.counters.read_failures);
        self.files.forget(group);
        if let Ok(identity) = entry.identity(&*self.disk) {
            self.remove_group(&path, identity);
        }
    }

    /// Removes the file `identity` if `path` still refers to it.
    fn remove_group(&self, path: &Path, identity: Identity) {
        let same = self
            .disk
            .stamp_at(path)
            .is_ok_and(|stamp| Identity::of(&stamp).inode() == identity.inode());
        // Race: a new file may take the name after the check and be removed instead. That only
        // costs another fetch.
        if same && self.disk.remove(path).is_ok() {
            self.room.release(file_cost(identity.file_len()));
        }
    }

    pub(super) fn store_group(
        &self,
        group: &GroupDigest,
        decoded: &[u8],
    ) -> Result<Stored, CacheError> {
        let Some(space) = self.room.reserve(disk_cost(decoded.len() as u64))? else {
            return Ok(Stored::NoRoom);
        };
        let (staged, file) = self
            .staging
            .create(&self.disk)
            .map_err(CacheError::io("creating a file in", &self.dir))?;
        lease::share(&file).map_err(CacheError::io("locking", staged.path()))?;
        let entry = CacheFile::write(&*self.disk, file, *group, decoded)
            .map_err(CacheError::io("writing", staged.path()))?;
        let identity =
            entry.identity(&*self.disk).map_err(CacheError::io("reading", staged.path()))?;
        let path = self.group_path(group);
        match link(&*self.disk, staged.path(), &path) {
            Ok(()) => {
                space.keep();
                self.files.put(*group, identity, Arc::new(entry));
                Ok(Stored::New)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Stored::Before),
            Err(error) => Err(CacheError::io("naming", path)(error)),
        }
    }
}

/// Creates the hard link `to`. Unlike a rename, it never replaces a file, so that of two concurrent
/// writers of a group exactly one counts its bytes.
fn link(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    match disk.link(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(dir) = to.parent() {
                disk.make_dir(dir)?;
            }
            disk.link(from, to)
        }
        done => done,
    }
}
