//! Applies owner, attributes, permissions and times to an exported object, in this order: changing
//! the owner clears setuid bits and file capabilities, and without root a read-only file rejects
//! attributes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use inlay_store::format::Attr;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Handle of an object. Objects addressed by name were just created by this process, in a directory
/// that no other user can enter.
#[derive(Debug, Clone, Copy)]
pub(super) enum ObjectRef<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A symbolic link.
    Link { dir: BorrowedFd<'a>, name: &'a OsStr },
    /// A device node, FIFO or socket, which is not opened because that could block or have side
    /// effects.
    Node { dir: BorrowedFd<'a>, name: &'a OsStr },
}

/// Whether the user's privileges and the filesystem permitted an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    NotAllowed,
}

/// Removes the default ACLs and the setgid bit that a new directory inherits from its parent.
/// Everything created in it would inherit them too.
pub(super) fn forget_inherited(root: impl AsFd) -> io::Result<()> {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(&root, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rustix::fs::fchmod(&root, Mode::RWXU)?)
}

pub(super) fn set_owner(object: &ObjectRef<'_>, attr: &Attr) -> io::Result<Outcome> {
    // The syscall interprets -1 as "do not change".
    if attr.uid == u32::MAX || attr.gid == u32::MAX {
        return Ok(Outcome::NotAllowed);
    }
    let (uid, gid) = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
    outcome(match object {
        ObjectRef::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        ObjectRef::Link { dir, name } | ObjectRef::Node { dir, name } => {
            rustix::fs::chownat(dir, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        }
    })
}

pub(super) fn set_xattr(object: &ObjectRef<'_>, key: &[u8], value: &[u8]) -> io::Result<Outcome> {
    let key = OsStr::from_bytes(key);
    outcome(match object {
        ObjectRef::Open(fd) => rustix::fs::fsetxattr(fd, key, value, XattrFlags::empty()),
        ObjectRef::Link { dir, name } | ObjectRef::Node { dir, name } => {
            // No syscall takes a directory descriptor and a name here; this path is equivalent.
            let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            path.push(name);
            rustix::fs::lsetxattr(&path, key, value, XattrFlags::empty())
        }
    })
}

/// Sets the permissions. Without the intended owner the setuid and setgid bits are dropped: they
/// would grant the privileges of this user instead.
pub(super) fn set_mode(object: &ObjectRef<'_>, attr: &Attr, owned: Outcome) -> io::Result<()> {
    let mut mode = Mode::from_raw_mode(u32::from(attr.perm));
    if owned == Outcome::NotAllowed {
        mode.remove(Mode::SUID | Mode::SGID);
    }
    match object {
        ObjectRef::Open(fd) => rustix::fs::fchmod(fd, mode)?,
        // `chmodat` follows links, but this object is not one: see `ObjectRef`.
        ObjectRef::Node { dir, name } => rustix::fs::chmodat(dir, *name, mode, AtFlags::empty())?,
        // On Linux all symbolic links have the same permissions.
        ObjectRef::Link { .. } => {}
    }
    Ok(())
}

/// Sets both the modification and the access time to the modification time.
pub(super) fn set_time(object: &ObjectRef<'_>, attr: &Attr) -> io::Result<()> {
    let time = Timespec { tv_sec: attr.mtime.secs, tv_nsec: attr.mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    match object {
        ObjectRef::Open(fd) => rustix::fs::futimens(fd, &times)?,
        ObjectRef::Link { dir, name } | ObjectRef::Node { dir, name } => {
            rustix::fs::utimensat(dir, *name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

fn outcome(result: Result<(), Errno>) -> io::Result<Outcome> {
    match result {
        Ok(()) => Ok(Outcome::Done),
        Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL) => Ok(Outcome::NotAllowed),
        Err(error) => Err(error.into()),
    }
}
