//! The directory for an overlay's changes: contains `upper`, `work`, and the id of the snapshot
//! that they were made to.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use inlay_base::durable::{self, Volatile};
use inlay_base::record::{self, RecordError};
use inlay_base::trash;
use inlay_store::ids::SnapshotId;
use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, flock,
    getxattr, listxattr, setxattr, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;
use super::overlay;
use super::record::PathText;
use super::registry::{make_private_dirs, remove_all};

/// The kernel's limits of an xattr name list and of a value, in bytes.
const XATTR_LEN_MAX: usize = 64 << 10;

/// The number of attempts to take a lock, and the pause between them.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The prefix of overlayfs's own attributes.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// Where changes are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpperPlace {
    /// In the state directory, discarded with the mount.
    Scratch,
    /// In the state directory, and reused by the next mount of the same snapshot on the same mount
    /// point.
    Beside,
    /// In this directory. They are kept, and the same snapshot can be mounted with them again.
    Kept(PathText),
}

/// The view of a snapshot that the caller requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WantedView {
    /// Read-only.
    ReadOnly,
    /// Writable; changes are stored on this host.
    Writable(UpperPlace),
}

/// The fate of kept changes when their mount ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Changes {
    /// The next mount sees them again.
    Stay,
    /// They are discarded, unless a user chose their place.
    Discard,
}

/// Whether changes outlive their mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// They are discarded.
    Scratch,
    /// They are kept.
    Kept,
}

/// The directory of an overlay's changes, locked for one mount.
#[derive(Debug)]
pub(crate) struct Upper {
    base: PathBuf,
    keep: Keep,
    _lock: File,
}

impl Upper {
    /// Prepares `base` for changes to `snapshot`, which is mounted at `lower`. A new upper
    /// directory gets the attributes of the snapshot's root, because it becomes the root of the
    /// mount.
    pub(crate) fn prepare(
        base: &Path,
        keep: Keep,
        snapshot: SnapshotId,
        lower: &Path,
    ) -> Result<Self, MountError> {
        if let Some(parent) = base.parent() {
            make_private_dirs(parent)?;
        }
        make_dir(base, 0o700)?;
        let lock = lock(base, LOCK_TRIES)?;
        let upper = Self { base: base.to_owned(), keep, _lock: lock };
        if upper.is_mounted()? {
            return Err(MountError::UpperInUse(base.to_owned()));
        }
        upper.claim(snapshot)?;
        upper.make_dirs(lower)?;
        if keep == Keep::Kept {
            upper.sync().map_err(MountError::io("sync", base))?;
        }
        Ok(upper)
    }

    /// Returns the directory that holds everything.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Returns whether it outlives its mount.
    pub(crate) fn keep(&self) -> Keep {
        self.keep
    }

    /// Returns overlayfs's upper directory.
    pub(crate) fn upper(&self) -> PathBuf {
        self.base.join("upper")
    }

    /// Returns overlayfs's work directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.base.join("work")
    }

    /// Locks `base` again for a mount created by an earlier process. Does not retry the lock.
    pub(crate) fn adopt(base: &Path, keep: Keep) -> Result<Self, MountError> {
        Ok(Self { base: base.to_owned(), keep, _lock: lock(base, 1)? })
    }

    /// Reports whether an overlay uses it: see [`is_mounted`].
    pub(crate) fn is_mounted(&self) -> Result<bool, MountError> {
        is_mounted(&self.base)
    }

    /// Discards everything.
    pub(crate) fn discard(self) -> Result<(), MountError> {
        throw_away(&self.base)
    }

    /// Releases it after the mount has ended; discards scratch changes.
    pub(crate) fn release(self) -> Result<(), MountError> {
        match self.keep {
            Keep::Scratch => throw_away(&self.base),
            Keep::Kept => Ok(()),
        }
    }

    /// Records that the changes are made to `snapshot`; fails if they were made to another one, as
    /// they make sense only above that.
    fn claim(&self, snapshot: SnapshotId) -> Result<(), MountError> {
        match read_claim(&self.base) {
            Ok(Some(found)) if found == snapshot => return Ok(()),
            Ok(Some(found)) => {
                return Err(MountError::UpperOfOther {
                    path: self.base.clone(),
                    found,
                    wanted: snapshot,
                });
            }
            Ok(None) => {}
            // Without changes, nothing can be misattributed.
            Err(RecordError::Damaged { .. }) if !self.holds_changes()? => {}
            Err(error) => return Err(MountError::UpperRecord(error)),
        }
        let (path, line) = (claim_path(&self.base), format!("{snapshot}\n"));
        let reason = match self.keep {
            Keep::Kept => Volatile("it is synced before there can be changes"),
            Keep::Scratch => Volatile("changes of a scratch mount are thrown away after a crash"),
        };
        durable::write_volatile(&path, line.as_bytes(), reason)
            .map_err(MountError::io("write", &path))
    }

    fn holds_changes(&self) -> Result<bool, MountError> {
        holds_changes(&self.base).map_err(MountError::io("list", &self.upper()))
    }

    /// Makes the preparation durable, with one sync for all of it, so that the filesystem commits
    /// once. No changes are made before this.
    fn sync(&self) -> io::Result<()> {
        File::open(claim_path(&self.base))?.sync_all()?;
        for dir in [&*self.upper(), &self.base] {
            durable::sync_dir(dir)?;
        }
        self.base.parent().map_or(Ok(()), durable::sync_dir)
    }

    /// Creates the directories that overlayfs requires. The upper one is created under another name
    /// and renamed when complete, so that it never exists without its attributes.
    fn make_dirs(&self, lower: &Path) -> Result<(), MountError> {
        make_dir(&self.work(), 0o700)?;
        if self.upper().exists() {
            return Ok(());
        }
        let new = self.base.join("upper.new");
        remove_all(&new)?;
        make_dir(&new, 0o755)?;
        copy_attributes(lower, &new)
            .map_err(MountError::io("copy the root's attributes to", &new))?;
        fs::rename(&new, self.upper()).map_err(MountError::io("rename", &new))
    }
}

/// Reports whether an overlay uses the directory `base`, either mounted or lazily unmounted and
/// still in use. The caller, or the mount table, holds its lock.
pub(super) fn is_mounted(base: &Path) -> Result<bool, MountError> {
    #[cfg(test)]
    super::mount_id::before_query();
    let (upper, work) = (base.join("upper"), base.join("work"));
    if !upper.exists() || !work.exists() {
        return Ok(false);
    }
    overlay::has_upper(&upper, &work).map_err(MountError::io("find out who uses", base))
}

/// Reports whether `base` holds any changes.
fn holds_changes(base: &Path) -> io::Result<bool> {
    match fs::read_dir(base.join("upper")) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The maximum size of an upper directory's claim file, in bytes.
const CLAIM_LEN_MAX: u64 = 4096;

/// Returns the path of the claim file: its first line is the id of the snapshot that the changes
/// below `base` were made to. Further lines are ignored.
fn claim_path(base: &Path) -> PathBuf {
    base.join("snapshot")
}

fn read_claim(base: &Path) -> Result<Option<SnapshotId>, RecordError> {
    let path = claim_path(base);
    let Some(bytes) = record::read_bytes(&path, CLAIM_LEN_MAX)? else { return Ok(None) };
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let id = std::str::from_utf8(line).ok().and_then(|line| line.trim().parse().ok());
    let why = || "its first line is not a snapshot's id".to_owned();
    id.map(Some).ok_or_else(|| RecordError::Damaged { path, why: why() })
}

/// Returns why the snapshot that the changes below `base` were made to is unknown; `None` if it is
/// known or there are no changes.
pub fn damaged_upper(base: &Path) -> Option<RecordError> {
    let error = read_claim(base).err()?;
    // A directory that can't be listed counts as changed.
    holds_changes(base).unwrap_or(true).then_some(error)
}

/// Discards changes. Those in `STATE/upper` are moved to the trash, so that the caller does not
/// wait.
pub(super) fn throw_away(base: &Path) -> Result<(), MountError> {
    let uppers = base.parent().filter(|dir| dir.file_name().is_some_and(|name| name == "upper"));
    match uppers.and_then(Path::parent) {
        Some(state) => trash::discard(state, base).map_err(MountError::io("remove", base)),
        None => remove_all(base),
    }
}

/// Locks the directory for one mount. A forked child of this process holds a lock that was just
/// released until it calls execve(2), so a lock that is taken is retried for a moment, `tries`
/// times in all.
fn lock(base: &Path, tries: u32) -> Result<File, MountError> {
    let path = base.join("lock");
    // Neither follow a symlink nor block on a FIFO.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(&path)
        .map_err(MountError::io("open", &path))?;
    for _ in 1..tries {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            Err(errno) => return Err(MountError::io("lock", &path)(errno)),
            Ok(()) => return Ok(file),
        }
    }
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(MountError::UpperInUse(base.to_owned())),
        Err(errno) => Err(MountError::io("lock", &path)(errno)),
    }
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), MountError> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(MountError::io("make the directory", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Copies owner, mode, extended attributes (including ACLs) and modification time.
pub(super) fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let stat = fs::metadata(from)?;
    chown(to, Some(stat.uid()), Some(stat.gid()))?;
    fs::set_permissions(to, Permissions::from_mode(stat.mode() & 0o7777))?;
    let mut names = Vec::with_capacity(XATTR_LEN_MAX);
    match listxattr(from, spare_capacity(&mut names)) {
        // The snapshot has no attributes, and its filesystem has told the kernel so.
        Ok(_) | Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(OVERLAY_XATTRS) {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = Vec::with_capacity(XATTR_LEN_MAX);
        getxattr(from, name, spare_capacity(&mut value))?;
        setxattr(to, name, &value, XattrFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() },
    };
    Ok(utimensat(CWD, to, &times, AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_store::ids::Digest;

    fn id(of: &[u8]) -> SnapshotId {
        format!("fs-{}", Digest::of(of).to_hex()).parse().unwrap()
    }

    fn claimed(base: &Path, keep: Keep, snapshot: SnapshotId) -> Result<(), MountError> {
        let upper = Upper { base: base.to_owned(), keep, _lock: lock(base, 1)? };
        upper.claim(snapshot)
    }

    #[test]
    fn changes_are_of_the_snapshot_that_claimed_them_first() {
        for keep in [Keep::Kept, Keep::Scratch] {
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path();
            claimed(base, keep, id(b"a")).unwrap();
            claimed(base, keep, id(b"a")).unwrap();
            assert_eq!(fs::read_to_string(claim_path(base)).unwrap(), format!("{}\n", id(b"a")));
            let other = claimed(base, keep, id(b"b")).unwrap_err();
            assert!(matches!(&other, MountError::UpperOfOther { found, .. } if *found == id(b"a")));
            assert!(damaged_upper(base).is_none());
        }
    }

    #[test]
    fn a_claim_that_cannot_be_understood_is_kept_with_the_changes_that_it_is_of() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let whole = format!("{}\n", id(b"a"));
        fs::create_dir_all(base.join("upper")).unwrap();
        for damage in ["", "fs-", &whole[..20], "\0\0\0", "{\"version\":2}", &"x".repeat(5000)] {
            fs::write(claim_path(base), damage).unwrap();
            // Nothing is lost: there are no changes.
            assert!(damaged_upper(base).is_none(), "{damage:?}");
            claimed(base, Keep::Kept, id(b"b")).unwrap();
            assert_eq!(read_claim(base).unwrap(), Some(id(b"b")));
            fs::write(claim_path(base), damage).unwrap();
            fs::write(base.join("upper/new"), "n").unwrap();
            assert!(damaged_upper(base).is_some(), "{damage:?}");
            let error = claimed(base, Keep::Kept, id(b"a")).unwrap_err();
            assert!(matches!(error, MountError::UpperRecord(_)), "{damage:?}: {error}");
            assert_eq!(fs::read_to_string(claim_path(base)).unwrap(), damage);
            fs::remove_file(base.join("upper/new")).unwrap();
        }
        // A newer version may append lines.
        fs::write(claim_path(base), format!("{whole}more\n")).unwrap();
        claimed(base, Keep::Kept, id(b"a")).unwrap();
        assert_eq!(read_claim(base).unwrap(), Some(id(b"a")));
    }

    #[test]
    fn directories_are_made_with_the_attributes_of_the_lower_one() {
        for keep in [Keep::Kept, Keep::Scratch] {
            let dir = tempfile::tempdir().unwrap();
            let (base, lower) = (dir.path().join("base"), dir.path().join("lower"));
            fs::create_dir(&lower).unwrap();
            fs::set_permissions(&lower, Permissions::from_mode(0o751)).unwrap();
            fs::create_dir_all(base.join("upper.new/left")).unwrap();
            let upper = Upper { base: base.clone(), keep, _lock: lock(&base, 1).unwrap() };
            upper.make_dirs(&lower).unwrap();
            assert_eq!(fs::metadata(upper.upper()).unwrap().mode() & 0o7777, 0o751);
            assert_eq!(fs::metadata(upper.work()).unwrap().mode() & 0o7777, 0o700);
            assert!(!base.join("upper.new").exists() && !upper.holds_changes().unwrap());
            fs::write(upper.upper().join("new"), "n").unwrap();
            upper.make_dirs(&lower).unwrap();
            assert!(upper.holds_changes().unwrap());
            upper.claim(id(b"a")).unwrap();
            upper.sync().unwrap();
        }
    }

    #[test]
    fn a_symlink_or_fifo_in_place_of_the_lock_is_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(dir.path(), 1).unwrap();
        assert!(matches!(lock(dir.path(), 1), Err(MountError::UpperInUse(_))));
        drop(held);
        drop(lock(dir.path(), 1).unwrap());
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(lock(dir.path(), 1).is_err() && !dir.path().join("elsewhere").exists());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(lock(dir.path(), 1).is_err());
    }
}
