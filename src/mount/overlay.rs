//! The overlay that makes a snapshot writable: what changes goes to a directory on local disk.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use inlay_fusefs::{Privileges, SOURCE};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::error::MountError;
use super::mountinfo;
use super::watch::Watch;

/// How the overlay is to behave:
/// - `redirect_dir`: a directory of the snapshot can be renamed, instead of `EXDEV`.
/// - `metacopy`: `chmod` and `chown` of a file copy its attributes, not its contents, which would
///   otherwise have to be fetched for that.
/// - `xino`: one device number for the whole tree, so that `find -xdev` and `tar
///   --one-file-system` see all of it. Inode numbers of snapshots leave the bits free that it needs.
/// - `index`: off. It would keep hard links together when they are changed, but needs a lower
///   filesystem that finds inodes by file handles after they were forgotten.
const OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "on"), ("metacopy", "on"), ("xino", "on"), ("index", "off")];

/// The directories that an overlay is made of.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) lower: PathBuf,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// How the kernel is told the lower directory.
#[derive(Debug, Clone, Copy)]
enum LowerOption {
    /// `lowerdir+`, one directory, taken as it is: since Linux 6.8.
    Plain,
    /// `lowerdir`, a list with colons, which are escaped in names.
    Escaped,
}

/// A mounted overlay. Not unmounted when dropped: its owner decides how.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    mountpoint: PathBuf,
    id: u64,
}

impl Overlay {
    /// Mounts `layers` on `mountpoint`.
    pub(crate) fn mount(
        layers: &Layers,
        mountpoint: &Path,
        privileges: Privileges,
    ) -> Result<Self, MountError> {
        let tree = match assemble(layers, LowerOption::Plain, privileges) {
            Err(Failed { source: Errno::INVAL, .. }) => {
                assemble(layers, LowerOption::Escaped, privileges)
            }
            other => other,
        };
        let failed = |Failed { step, source, kernel }| MountError::Overlay {
            mountpoint: mountpoint.to_owned(),
            step,
            source: source.into(),
            kernel,
        };
        let tree = tree.map_err(failed)?;
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        // The number is taken before others can see the mount.
        let id = mount_number(&tree, Path::new("")).map_err(|e| failed(Failed::at("number", e)))?;
        move_mount(&tree, "", CWD, mountpoint, empty)
            .map_err(|e| failed(Failed::at("attach", e)))?;
        Ok(Self { mountpoint: mountpoint.to_owned(), id })
    }

    /// Unmounts it, or takes it out of the tree if it is in use. Nothing if it is gone.
    pub(crate) fn unmount_or_detach(&self) -> Result<(), MountError> {
        if !self.is_mounted() {
            return Ok(());
        }
        let outcome = match unmount(&self.mountpoint, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                unmount(&self.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            }
            other => other,
        };
        match outcome {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(errno) => Err(MountError::io("unmount", &self.mountpoint)(errno)),
        }
    }

    /// Watches until it is no longer mounted where this process sees it.
    pub(crate) fn watch(&self) -> io::Result<Watch> {
        let overlay = self.clone();
        Watch::start(move || overlay.is_mounted())
    }

    fn is_mounted(&self) -> bool {
        if mount_number(CWD, &self.mountpoint).is_ok_and(|id| id == self.id) {
            return true;
        }
        // Something may be mounted above it. If the table can't be read, it counts as mounted:
        // to keep on serving is the lesser evil.
        mountinfo::mounts().map_or(true, |mounts| mounts.iter().any(|mount| mount.id == self.id))
    }
}

/// What failed, and what the kernel wrote about it.
struct Failed {
    step: &'static str,
    source: Errno,
    kernel: String,
}

impl Failed {
    fn at(step: &'static str, source: Errno) -> Self {
        Self { step, source, kernel: String::new() }
    }
}

/// Makes the overlay without attaching it anywhere. Each option is a value of its own, so that paths
/// may have commas and colons.
fn assemble(
    layers: &Layers,
    option: LowerOption,
    privileges: Privileges,
) -> Result<OwnedFd, Failed> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| Failed::at("is the kernel module `overlay` there?", e))?;
    let failed = |step| {
        let fs = &fs;
        move |source| Failed { step, source, kernel: kernel_log(fs) }
    };
    fsconfig_set_string(&fs, "source", SOURCE).map_err(failed("source"))?;
    match option {
        LowerOption::Plain => fsconfig_set_string(&fs, "lowerdir+", &layers.lower),
        LowerOption::Escaped => fsconfig_set_string(&fs, "lowerdir", escape(&layers.lower)),
    }
    .map_err(failed("lower directory"))?;
    // These two are one path each, but the kernel takes backslashes out of them nevertheless.
    let (upper, work) = (escape(&layers.upper), escape(&layers.work));
    fsconfig_set_string(&fs, "upperdir", upper).map_err(failed("upper directory"))?;
    fsconfig_set_string(&fs, "workdir", work).map_err(failed("work directory"))?;
    for (key, value) in OPTIONS {
        fsconfig_set_string(&fs, key, value).map_err(failed(key))?;
    }
    fsconfig_create(&fs).map_err(failed("create"))?;
    let attributes = match privileges {
        Privileges::Honoured => MountAttrFlags::empty(),
        Privileges::Ignored => MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    };
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount"))
}

/// The kernel's messages about a filesystem that is being made, each with ": " before it.
fn kernel_log(fs: &OwnedFd) -> String {
    let mut text = String::new();
    let mut message = [0; 512];
    for _ in 0..8 {
        // "e overlay: what is wrong": the first letter is the message's weight.
        let Ok(len) = rustix::io::read(fs, &mut message) else { break };
        let message = message.get(2..len).unwrap_or_default();
        text.push_str(": ");
        text.push_str(String::from_utf8_lossy(message).trim_end());
    }
    text
}

fn escape(path: &Path) -> OsString {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}

/// The kernel's number of the mount at `path`. No request goes to who serves it.
fn mount_number(dir: impl rustix::fd::AsFd, path: &Path) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    statx(dir, path, flags, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id)
}
