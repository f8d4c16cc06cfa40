//! Where an overlay's changes go: a directory that holds `upper`, `work`, and whose changes they are.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use inlay_store::ids::SnapshotId;
use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, Timespec, Timestamps, UTIME_OMIT, XattrFlags, flock, getxattr,
    listxattr, setxattr, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;
use super::overlay;
use super::record::PathText;
use super::registry::{make_private_dirs, remove_all};

/// The kernel's limits for a list of names and for a value, in bytes.
const XATTR_LEN_MAX: usize = 64 << 10;

/// What overlayfs keeps for itself.
const OVERLAY_XATTRS: &[u8] = b"trusted.overlay.";

/// Where the caller wants changes to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpperPlace {
    /// Into the state directory. They are thrown away with the mount.
    Scratch,
    /// Into the state directory, and they are there again for the same snapshot and mount point.
    Beside,
    /// Into this directory. They stay, and the same snapshot can be mounted above them again.
    Kept(PathText),
}

/// How the caller wants to see a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WantedView {
    /// As it is.
    ReadOnly,
    /// Writable; changes go to a place on this host.
    Writable(UpperPlace),
}

/// What becomes of changes that are kept, when their mount ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Changes {
    /// They are there again at the next mount.
    Stay,
    /// They are thrown away, unless a user chose where they are.
    Discard,
}

/// Whether changes outlive their mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// They are thrown away.
    Scratch,
    /// They stay.
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
    /// Takes `base` for changes to `snapshot`, which is mounted at `lower`. A new upper directory
    /// gets the attributes of the snapshot's root, because it is what stands at the mount point.
    pub(crate) fn prepare(
        base: &Path,
        keep: Keep,
        snapshot: SnapshotId,
        lower: &Path,
    ) -> Result<Self, MountError> {
        make_private_dirs(base)?;
        let lock = lock(base)?;
        let upper = Self { base: base.to_owned(), keep, _lock: lock };
        if upper.is_mounted()? {
            return Err(MountError::UpperInUse(base.to_owned()));
        }
        upper.claim(snapshot)?;
        make_dir(&upper.work(), 0o700)?;
        // Made under another name first: an upper directory without its attributes is never seen.
        let new = base.join("upper.new");
        if !upper.upper().exists() {
            remove_all(&new)?;
            make_dir(&new, 0o755)?;
            copy_attributes(lower, &new)
                .map_err(MountError::io("copy the root's attributes to", &new))?;
            fs::rename(&new, upper.upper()).map_err(MountError::io("rename", &new))?;
        }
        Ok(upper)
    }

    /// The directory that holds all of it.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Whether it outlives its mount.
    pub(crate) fn keep(&self) -> Keep {
        self.keep
    }

    /// What overlayfs calls the upper directory.
    pub(crate) fn upper(&self) -> PathBuf {
        self.base.join("upper")
    }

    /// What overlayfs calls the work directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.base.join("work")
    }

    /// Takes `base` again for a mount that was made before this process was there.
    pub(crate) fn adopt(base: &Path, keep: Keep) -> Result<Self, MountError> {
        Ok(Self { base: base.to_owned(), keep, _lock: lock(base)? })
    }

    /// Whether an overlay uses it, mounted or lazily unmounted but in use.
    pub(crate) fn is_mounted(&self) -> Result<bool, MountError> {
        if !self.upper().exists() || !self.work().exists() {
            return Ok(false);
        }
        overlay::has_upper(&self.upper(), &self.work())
            .map_err(MountError::io("find out who uses", &self.base))
    }

    /// Throws everything away.
    pub(crate) fn discard(self) -> Result<(), MountError> {
        remove_all(&self.base)
    }

    /// Gives it up after the mount is gone; throws scratch changes away.
    pub(crate) fn release(self) -> Result<(), MountError> {
        match self.keep {
            Keep::Scratch => remove_all(&self.base),
            Keep::Kept => Ok(()),
        }
    }

    /// Changes make sense only above the snapshot that they were made to.
    fn claim(&self, snapshot: SnapshotId) -> Result<(), MountError> {
        let path = self.base.join("snapshot");
        match fs::read_to_string(&path) {
            Ok(found) if found.trim() == snapshot.to_string() => Ok(()),
            Ok(found) => Err(MountError::UpperOfOther {
                path: self.base.clone(),
                found: found.trim().to_owned(),
                wanted: snapshot,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::write(&path, format!("{snapshot}\n")).map_err(MountError::io("write", &path))
            }
            Err(error) => Err(MountError::io("read", &path)(error)),
        }
    }
}

fn lock(base: &Path) -> Result<File, MountError> {
    let path = base.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(MountError::io("open", &path))?;
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

/// Owner, mode, extended attributes (access control lists among them) and time of modification.
pub(super) fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let stat = fs::metadata(from)?;
    chown(to, Some(stat.uid()), Some(stat.gid()))?;
    fs::set_permissions(to, Permissions::from_mode(stat.mode() & 0o7777))?;
    let mut names = Vec::with_capacity(XATTR_LEN_MAX);
    match listxattr(from, spare_capacity(&mut names)) {
        // The snapshot has none at all, and lives where the kernel was told so.
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
