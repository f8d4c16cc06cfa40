//! Records of a sandbox's mounts, present and past: `mounts/<number>.json`, next to the changes in
//! `mounts/<number>`.
//!
//! Unlike mount records of the host, these survive reboots: they tell which mount the changes
//! belong to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use inlay_base::durable;
use inlay_base::record::{self, Record, RecordError, Unknown};
use inlay_base::trash;
use inlay_mounts::{MountRecord, Owner, Owners, PathText, damaged_upper};
use inlay_sandbox::Layout;
use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};

use super::places::On;
use super::{Sandbox, Service};
use crate::daemon::api::{IntoView, StoreRef};
use crate::daemon::error::DaemonError;

/// Maximum number of mounts of a sandbox with kept changes.
const MOUNTS_MAX: u32 = 1024;

/// A mount, present or past, of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountFile {
    /// Number of the directory with its changes: [`Layout::mount_upper`].
    pub(super) number: u32,
    /// Path in the sandbox, current or at unmount: absolute, without symbolic links.
    pub(super) path: PathText,
    /// The mounted snapshot.
    pub(super) snapshot: SnapshotId,
    /// The store that holds it.
    pub(super) store: StoreRef,
    /// Read-only or writable.
    pub(super) view: IntoView,
    /// Requested owner of its root; none if owners are as in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) chown: Option<Owner>,
    /// The renumbering of owners that results from `chown`; known once mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) owners: Option<Owners>,
    /// State of the mount.
    pub(super) place: MountFileState,
    /// The directory it is mounted on, if that can be found again after the sandbox ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) on: Option<On>,
    /// Fields of newer versions, preserved on write.
    #[serde(skip)]
    pub(super) unknown: Unknown,
}

impl Record for MountFile {
    const VERSION: u32 = 1;
    const LEN_MAX: u64 = 64 << 10;

    fn unknown(&self) -> Option<&Unknown> {
        Some(&self.unknown)
    }

    fn keep_unknown(&mut self, unknown: Unknown) {
        self.unknown = unknown;
    }
}

/// State of a mount. While the sandbox runs, the kernel's mount table is authoritative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum MountFileState {
    /// Being mounted; its caller has no answer yet. Left by a crash, it counts as unmounted.
    Making,
    /// Mounted.
    Mounted,
    /// Unmounted; its changes are kept.
    Kept,
    /// Unmounted, or about to be. Its changes are removed once no program writes to them, at the
    /// latest with the sandbox.
    Discarded,
}

impl MountFile {
    fn file(layout: &Layout, number: u32) -> PathBuf {
        layout.mounts().join(format!("{number}.json"))
    }

    /// Returns the upper directory of its overlay; `None` if it is read-only.
    pub(super) fn upper(&self, layout: &Layout) -> Option<PathBuf> {
        (self.view == IntoView::Writable).then(|| layout.mount_upper(self.number).join("upper"))
    }

    pub(super) fn write(&self, layout: &Layout) -> Result<(), DaemonError> {
        let path = Self::file(layout, self.number);
        record::write(&path, self).map_err(DaemonError::io("write", &path))
    }

    /// Removes the record and the changes.
    pub(super) fn remove(&self, layout: &Layout) -> Result<(), DaemonError> {
        let upper = layout.mount_upper(self.number);
        trash::discard(layout.state(), &upper).map_err(DaemonError::io("remove", &upper))?;
        let path = Self::file(layout, self.number);
        durable::remove(&path).map_err(DaemonError::io("remove", &path))
    }

    /// Whether its upper directory has any entry.
    pub(super) fn is_changed(&self, layout: &Layout) -> bool {
        let upper = self.upper(layout);
        upper.and_then(|upper| fs::read_dir(upper).ok()).is_some_and(|mut dir| dir.next().is_some())
    }
}

/// Reads all mount records of a sandbox, ordered by number. Fails if one is damaged: without it,
/// its changes would look unclaimed.
pub(super) fn files(layout: &Layout) -> Result<Vec<MountFile>, DaemonError> {
    let dir = layout.mounts();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DaemonError::io("list", &dir)(error)),
    };
    let mut found: Vec<MountFile> = Vec::new();
    for entry in entries {
        let path = entry.map_err(DaemonError::io("list", &dir))?.path();
        // Others are unfinished writes.
        if path.extension().is_some_and(|extension| extension == "json") {
            found.extend(read(layout, &path)?);
        }
    }
    found.sort_by_key(|file| file.number);
    Ok(found)
}

fn read(layout: &Layout, path: &Path) -> Result<Option<MountFile>, RecordError> {
    let Some(file) = record::read::<MountFile>(path)? else { return Ok(None) };
    if MountFile::file(layout, file.number) == path {
        return Ok(Some(file));
    }
    let why = format!("it is that of mount {}", file.number);
    Err(RecordError::Damaged { path: path.to_owned(), why })
}

/// Returns why it is uncertain which mount or root some changes of a sandbox belong to; `None` if
/// all is well.
pub(super) fn damage(layout: &Layout) -> Result<Option<String>, DaemonError> {
    let files = match files(layout) {
        Err(DaemonError::Record(error)) => return Ok(Some(error.to_string())),
        files => files?,
    };
    let uppers = files.iter().map(|file| layout.mount_upper(file.number)).chain([layout.rw()]);
    for upper in uppers {
        if let Some(error) = damaged_upper(&upper) {
            return Ok(Some(error.to_string()));
        }
    }
    Ok(None)
}

/// Returns an unused number for a mount. Fails at the limit.
pub(super) fn free_number(layout: &Layout, files: &[MountFile]) -> Result<u32, DaemonError> {
    let last = files.last().map_or(0, |file| file.number);
    if files.len() >= MOUNTS_MAX as usize {
        return Err(DaemonError::Request(format!(
            "the changes of {MOUNTS_MAX} mounts are kept, which is as many as there may be; \
             `inlay umount --discard` throws some away"
        )));
    }
    // A directory without a record is left over from a crash.
    let mut number = last.wrapping_add(1);
    while layout.mount_upper(number).exists() {
        number = number.wrapping_add(1);
    }
    Ok(number)
}

impl Service {
    /// Returns the live mounts of a sandbox, oldest first, with the host's records of them. Both
    /// have the current path.
    pub(super) fn live_mounts(
        &self,
        sandbox: &Sandbox,
    ) -> Result<Vec<(MountRecord, MountFile)>, DaemonError> {
        let files = files(sandbox.layout())?;
        let records = self.mount_table().owned_by(sandbox.id().as_str());
        let live = records.into_iter().filter_map(|record| {
            let is_it = |file: &&MountFile| match (record.file, record.upper()) {
                (Some(number), _) => file.number == number,
                // Mounted by an earlier version.
                (None, Some(upper)) => upper == sandbox.layout().mount_upper(file.number),
                (None, None) => {
                    file.view == IntoView::ReadOnly
                        && file.path == record.mountpoint
                        && file.snapshot == record.snapshot
                }
            };
            let file = files.iter().find(is_it)?;
            let file = MountFile { path: record.mountpoint.clone(), ..file.clone() };
            Some((record, file))
        });
        Ok(live.collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use inlay_snapshots::empty_id;

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(dir.path(), &"sb-0123456789ab".parse().unwrap());
        fs::create_dir_all(layout.mounts()).unwrap();
        (dir, layout)
    }

    /// A record with its number as its path.
    pub(in crate::daemon::sandboxes) fn file(number: u32) -> MountFile {
        MountFile {
            number,
            path: Path::new(&format!("/{number}")).into(),
            snapshot: empty_id(),
            store: StoreRef { url: None, plain_http: false },
            view: IntoView::Writable,
            chown: None,
            owners: None,
            place: MountFileState::Mounted,
            on: None,
            unknown: Unknown::default(),
        }
    }

    #[test]
    fn files_are_in_the_order_of_their_numbers_and_go_with_their_changes() {
        let (_dir, layout) = layout();
        assert!(files(&layout).unwrap().is_empty());
        for number in [10, 2] {
            file(number).write(&layout).unwrap();
            fs::create_dir_all(layout.mount_upper(number).join("upper")).unwrap();
        }
        // An unfinished file, which is not a record.
        fs::write(layout.mounts().join(".new-1"), "{").unwrap();
        let found = files(&layout).unwrap();
        assert_eq!(found, [file(2), file(10)]);
        assert!(!found[0].is_changed(&layout));
        fs::write(layout.mount_upper(2).join("upper/new"), "n").unwrap();
        assert!(found[0].is_changed(&layout));
        assert_eq!(free_number(&layout, &found).unwrap(), 11);
        fs::create_dir(layout.mount_upper(11)).unwrap();
        assert_eq!(free_number(&layout, &found).unwrap(), 12);
        found[0].remove(&layout).unwrap();
        found[0].remove(&layout).unwrap();
        assert!(!layout.mount_upper(2).exists());
        assert_eq!(files(&layout).unwrap(), [file(10)]);
        fs::remove_dir_all(layout.mounts()).unwrap();
        assert!(files(&layout).unwrap().is_empty() && damage(&layout).unwrap().is_none());
    }

    #[test]
    fn one_that_cannot_be_understood_is_an_error_and_stays() {
        let (_dir, layout) = layout();
        file(1).write(&layout).unwrap();
        let path = layout.mounts().join("1.json");
        let whole = fs::read_to_string(&path).unwrap();
        let newer = whole.replace("\"version\": 1", "\"version\": 2");
        let of_other = whole.replace("\"number\": 1", "\"number\": 2");
        let place = whole.replace("\"mounted\"", "\"elsewhere\"");
        assert!([&newer, &of_other, &place].iter().all(|text| **text != whole));
        for text in ["", "{", "\0", &whole[..40], &newer, &of_other, &place] {
            fs::write(&path, text).unwrap();
            assert!(matches!(files(&layout), Err(DaemonError::Record(_))), "{text}");
            let why = damage(&layout).unwrap().unwrap();
            assert!(why.contains(path.to_str().unwrap()), "{why}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, whole.replacen('{', "{\"later\": [1],", 1)).unwrap();
        let mut read = files(&layout).unwrap().remove(0);
        read.place = MountFileState::Kept;
        read.write(&layout).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("later"));
        // The note that says which snapshot the changes belong to is checked as well.
        for upper in [layout.mount_upper(1), layout.rw()] {
            fs::create_dir_all(upper.join("upper")).unwrap();
            fs::write(upper.join("snapshot"), "").unwrap();
            assert_eq!(damage(&layout).unwrap(), None);
            fs::write(upper.join("upper/new"), "n").unwrap();
            assert!(damage(&layout).unwrap().unwrap().contains("snapshot"));
            fs::write(upper.join("snapshot"), empty_id().to_string()).unwrap();
            assert_eq!(damage(&layout).unwrap(), None);
        }
    }
}
