//! What is mounted in a sandbox, and what was: a small file for each, `mounts/<number>.json` beside the
//! changes in `mounts/<number>`.
//!
//! As with the records of mounts, the files are not synced: after a crash of the host nothing is
//! mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};

use super::{Sandbox, Service};
use crate::daemon::api::{IntoView, StoreRef};
use crate::daemon::error::DaemonError;
use crate::mount::{MountRecord, Owner, Owners, PathText, write_whole};
use crate::sandbox::Layout;

/// The longest file that is read, in bytes.
const LEN_MAX: u64 = 64 << 10;
/// How many mounts a sandbox may have had whose changes are kept.
const MOUNTS_MAX: u32 = 1024;

/// Something that is, or was, mounted in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountFile {
    /// Where its changes are: [`Layout::mount_upper`].
    pub(super) number: u32,
    /// Where it is in the sandbox: absolute, without symbolic links.
    pub(super) path: PathText,
    /// What is mounted.
    pub(super) snapshot: SnapshotId,
    /// Where that is stored.
    pub(super) store: StoreRef,
    /// How it is shown.
    pub(super) view: IntoView,
    /// Whose its root was wanted to be, if not as in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chown: Option<Owner>,
    /// As whose what it shows is shown because of that; known when it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) owners: Option<Owners>,
    /// Whether it is seen.
    pub(super) place: Place,
}

/// Whether a mount is seen. While the sandbox runs, what the kernel says counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    /// It was mounted, or was about to be.
    Mounted,
    /// It was unmounted, and its changes are kept.
    Kept,
    /// It was unmounted, or is about to be, and its changes are thrown away: when nobody writes there
    /// any more, or at the latest with the sandbox.
    Discarded,
}

impl MountFile {
    fn file(layout: &Layout, number: u32) -> PathBuf {
        layout.mounts().join(format!("{number}.json"))
    }

    /// The upper directory of its overlay.
    pub(super) fn upper(&self, layout: &Layout) -> Option<PathBuf> {
        (self.view == IntoView::Writable).then(|| layout.mount_upper(self.number).join("upper"))
    }

    pub(super) fn write(&self, layout: &Layout) -> Result<(), DaemonError> {
        let path = Self::file(layout, self.number);
        let failed = || DaemonError::io("write", &path);
        let json = serde_json::to_vec(self).map_err(|error| failed()(io::Error::other(error)))?;
        write_whole(&layout.mounts(), &path, &json).map_err(failed())
    }

    /// Forgets it, with its changes.
    pub(super) fn remove(&self, layout: &Layout) -> Result<(), DaemonError> {
        let upper = layout.mount_upper(self.number);
        match fs::remove_dir_all(&upper) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DaemonError::io("remove", &upper)(error));
            }
            _ => {}
        }
        let path = Self::file(layout, self.number);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DaemonError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether anything was changed in it.
    pub(super) fn is_changed(&self, layout: &Layout) -> bool {
        let upper = self.upper(layout);
        upper.and_then(|upper| fs::read_dir(upper).ok()).is_some_and(|mut dir| dir.next().is_some())
    }
}

/// All that is or was mounted in a sandbox, in the order of their numbers. What is damaged is left out
/// and logged.
pub(super) fn files(layout: &Layout) -> Result<Vec<MountFile>, DaemonError> {
    let dir = layout.mounts();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DaemonError::io("list", &dir)(error)),
    };
    let mut found: Vec<MountFile> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| read(&path))
        .collect();
    found.sort_by_key(|file| file.number);
    Ok(found)
}

fn read(path: &Path) -> Option<MountFile> {
    let text = match fs::metadata(path) {
        Ok(meta) if meta.len() <= LEN_MAX => fs::read(path),
        Ok(_) => Err(io::Error::other("it is too long")),
        Err(error) => Err(error),
    };
    let file = text.and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other));
    file.inspect_err(|error| {
        tracing::warn!(path = %path.display(), %error, "what was mounted in a sandbox is forgotten");
    })
    .ok()
}

/// A number for one more mount.
pub(super) fn free_number(layout: &Layout, files: &[MountFile]) -> Result<u32, DaemonError> {
    let last = files.last().map_or(0, |file| file.number);
    if files.len() >= MOUNTS_MAX as usize {
        return Err(DaemonError::Request(format!(
            "the changes of {MOUNTS_MAX} mounts are kept, which is as many as there may be; \
             `inlay umount --discard` throws some away"
        )));
    }
    // A directory without its file is what a crash has left.
    let mut number = last.wrapping_add(1);
    while layout.mount_upper(number).exists() {
        number = number.wrapping_add(1);
    }
    Ok(number)
}

impl Service {
    /// What is mounted in a sandbox now, the oldest first, with what the host has recorded of it.
    pub(super) fn live_mounts(
        &self,
        sandbox: &Sandbox,
    ) -> Result<Vec<(MountRecord, MountFile)>, DaemonError> {
        let files = files(sandbox.layout())?;
        let records = self.mount_table().owned_by(sandbox.id().as_str());
        let live = records.into_iter().filter_map(|record| {
            let file = files.iter().find(|file| {
                file.path == record.mountpoint
                    && file.snapshot == record.snapshot
                    && match record.upper() {
                        Some(upper) => upper == sandbox.layout().mount_upper(file.number),
                        None => file.view == IntoView::ReadOnly,
                    }
            })?;
            Some((record, file.clone()))
        });
        Ok(live.collect())
    }
}
