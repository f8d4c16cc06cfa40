//! Owner, attributes, permissions and time of one object that an export has made, in this order:
//! a change of owner takes setuid bits and file capabilities away, and a read-only file takes no
//! attributes from a user who is not root.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use inlay_store::format::Attr;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// How an object is reached. What has a name here was just made by this process, in a directory
/// that nobody else may enter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Object<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A symbolic link.
    Link { dir: BorrowedFd<'a>, name: &'a OsStr },
    /// A device node, pipe or socket: opening it could wait or do something.
    Node { dir: BorrowedFd<'a>, name: &'a OsStr },
}

/// Whether the user's rights and the file system let it be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    NotAllowed,
}

/// Takes away what a new directory inherits from where it was made: default ACLs and the setgid
/// bit. All that is made in it would inherit them too.
pub(super) fn forget_inherited(root: impl AsFd) -> io::Result<()> {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(&root, name) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rustix::fs::fchmod(&root, Mode::RWXU)?)
}

pub(super) fn set_owner(object: &Object<'_>, attr: &Attr) -> io::Result<Outcome> {
    // The system takes -1 for "leave it as it is".
    if attr.uid == u32::MAX || attr.gid == u32::MAX {
        return Ok(Outcome::NotAllowed);
    }
    let (uid, gid) = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
    outcome(match object {
        Object::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        Object::Link { dir, name } | Object::Node { dir, name } => {
            rustix::fs::chownat(dir, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        }
    })
}

pub(super) fn set_xattr(object: &Object<'_>, key: &[u8], value: &[u8]) -> io::Result<Outcome> {
    let key = OsStr::from_bytes(key);
    outcome(match object {
        Object::Open(fd) => rustix::fs::fsetxattr(fd, key, value, XattrFlags::empty()),
        Object::Link { dir, name } | Object::Node { dir, name } => {
            // There is no call that takes a directory and a name; this path is the same thing.
            let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            path.push(name);
            rustix::fs::lsetxattr(&path, key, value, XattrFlags::empty())
        }
    })
}

/// Gives the permissions. An object that could not be given to its owner gets no setuid and no
/// setgid bit: they would lend this user's rights instead of the owner's.
pub(super) fn set_mode(object: &Object<'_>, attr: &Attr, owned: Outcome) -> io::Result<()> {
    let mut mode = Mode::from_raw_mode(u32::from(attr.perm));
    if owned == Outcome::NotAllowed {
        mode.remove(Mode::SUID | Mode::SGID);
    }
    match object {
        Object::Open(fd) => rustix::fs::fchmod(fd, mode)?,
        // It follows links, but this is none: see `Object`.
        Object::Node { dir, name } => rustix::fs::chmodat(dir, *name, mode, AtFlags::empty())?,
        // On Linux, all symbolic links have the same permissions.
        Object::Link { .. } => {}
    }
    Ok(())
}

/// Gives the time of modification, and the same as the time of access.
pub(super) fn set_time(object: &Object<'_>, attr: &Attr) -> io::Result<()> {
    let time = Timespec { tv_sec: attr.mtime.secs, tv_nsec: attr.mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    match object {
        Object::Open(fd) => rustix::fs::futimens(fd, &times)?,
        Object::Link { dir, name } | Object::Node { dir, name } => {
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
