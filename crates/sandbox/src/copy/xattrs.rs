//! Selects, reads and sets the extended attributes that a copy keeps.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use inlay_base::held::Held;
use inlay_store::tree::Xattr;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, getxattr, listxattr};
use rustix::io::Errno;

/// The maximum size of a name list and of a value in Linux, in bytes.
const XATTR_BUFFER: usize = 64 << 10;
/// Values of up to this size, in bytes, fit on any filesystem with free space: half of ext4's usual
/// block.
const SMALL_MAX: usize = 2048;

/// Privileges that a file grants when executed, and attributes that only root can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePrivileges {
    /// They are kept.
    Kept,
    /// Files lose setuid and setgid bits and capabilities; `trusted` attributes are dropped.
    Dropped,
}

/// Reports whether an attribute belongs to the object rather than to its host. Labels of security
/// modules and overlayfs's own attributes belong to the host.
fn is_copied(name: &[u8]) -> bool {
    let own = name.starts_with(b"trusted.overlay.");
    name.starts_with(b"user.")
        || (name.starts_with(b"trusted.") && !own)
        || matches!(
            name,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

fn is_privileged(name: &[u8]) -> bool {
    name.starts_with(b"trusted.") || name == b"security.capability"
}

/// Buffers for attributes, reused for all objects.
pub(super) struct Buffers {
    names: Box<[u8]>,
    value: Box<[u8]>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { names: vec![0; XATTR_BUFFER].into(), value: vec![0; XATTR_BUFFER].into() }
    }

    /// Reads the attributes to copy of an open file or directory.
    pub(super) fn of_open(&mut self, fd: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
        let listed = flistxattr(fd, &mut *self.names);
        self.read(listed, |name, value| fgetxattr(fd, name, value))
    }

    /// Like [`Buffers::of_open`], for an object that must not be opened.
    pub(super) fn of_held(&mut self, held: &Held) -> Result<Vec<Xattr>, Errno> {
        let path = held.path();
        let listed = listxattr(&path, &mut *self.names);
        self.read(listed, |name, value| getxattr(&path, name, value))
    }

    fn read(
        &mut self,
        listed: Result<usize, Errno>,
        get: impl Fn(&CStr, &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Vec<Xattr>, Errno> {
        let len = match listed {
            Err(Errno::OPNOTSUPP) => 0,
            other => other?,
        };
        let mut xattrs = Vec::new();
        for name in self.names.get(..len).unwrap_or(&[]).split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            if !is_copied(name.to_bytes()) {
                continue;
            }
            match get(name, &mut self.value) {
                Ok(len) => {
                    let value = self.value.get(..len).unwrap_or(&[]);
                    xattrs.push((name.to_bytes().into(), value.into()));
                }
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(xattrs)
    }
}

/// Reports whether an attribute with a value of `len` bytes is rejected by the filesystem or for
/// lack of privileges, as opposed to a full or broken disk.
fn is_refused(errno: Errno, len: usize) -> bool {
    match errno {
        // The last two: it exceeds the filesystem's limits.
        Errno::PERM
        | Errno::ACCESS
        | Errno::OPNOTSUPP
        | Errno::INVAL
        | Errno::TOOBIG
        | Errno::RANGE => true,
        // On ext4: the value does not fit into the inode's attribute block.
        Errno::NOSPC => len > SMALL_MAX,
        _ => false,
    }
}

/// Sets attributes through `set`. Returns how many of them the filesystem or this user's privileges
/// do not allow.
fn set_all(
    xattrs: &[Xattr],
    privileges: FilePrivileges,
    set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>,
) -> Result<u64, Errno> {
    let mut left_out = 0;
    for (name, value) in xattrs {
        let dropped = privileges == FilePrivileges::Dropped && is_privileged(name);
        if dropped || !is_copied(name) {
            continue;
        }
        match set(OsStr::from_bytes(name), value) {
            Ok(()) => {}
            Err(errno) if is_refused(errno, value.len()) => left_out += 1,
            Err(errno) => return Err(errno),
        }
    }
    Ok(left_out)
}

pub(super) fn set_open(
    fd: BorrowedFd<'_>,
    xattrs: &[Xattr],
    privileges: FilePrivileges,
) -> Result<u64, Errno> {
    set_all(xattrs, privileges, |name, value| {
        fsetxattr(fd.as_fd(), name, value, XattrFlags::empty())
    })
}

pub(super) fn set_held(
    held: &Held,
    xattrs: &[Xattr],
    privileges: FilePrivileges,
) -> Result<u64, Errno> {
    let path = held.path();
    set_all(xattrs, privileges, |name, value| {
        rustix::fs::setxattr(&path, name, value, XattrFlags::empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_xattrs_are_not_copied() {
        for name in [
            &b"user.note"[..],
            b"user.overlay.opaque",
            b"trusted.note",
            b"security.capability",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ] {
            assert!(is_copied(name), "{}", name.escape_ascii());
        }
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"security.selinux",
            b"security.ima",
            b"system.nfs4_acl",
            b"users.x",
        ] {
            assert!(!is_copied(name), "{}", name.escape_ascii());
        }
        assert!(is_privileged(b"security.capability") && is_privileged(b"trusted.note"));
        assert!(!is_privileged(b"user.note") && !is_privileged(b"system.posix_acl_access"));
    }

    #[test]
    fn xattrs_that_cannot_be_set_are_counted_but_dropped_ones_are_not() {
        let xattrs: Vec<Xattr> = [&b"user.a"[..], b"trusted.b", b"security.capability"]
            .map(|name| (name.into(), b"v"[..].into()))
            .into();
        let refuse = |_: &OsStr, _: &[u8]| Err(Errno::OPNOTSUPP);
        assert_eq!(set_all(&xattrs, FilePrivileges::Kept, refuse), Ok(3));
        assert_eq!(set_all(&xattrs, FilePrivileges::Dropped, refuse), Ok(1));
        assert_eq!(set_all(&xattrs, FilePrivileges::Kept, |_, _| Ok(())), Ok(0));
        let broken = |_: &OsStr, _: &[u8]| Err(Errno::IO);
        assert_eq!(set_all(&xattrs, FilePrivileges::Kept, broken), Err(Errno::IO));
    }

    #[test]
    fn values_that_are_too_long_for_the_file_system_are_counted() {
        let of = |len: usize| -> Vec<Xattr> { vec![(b"user.a"[..].into(), vec![0; len].into())] };
        for errno in [Errno::TOOBIG, Errno::RANGE] {
            assert_eq!(set_all(&of(1), FilePrivileges::Kept, |_, _| Err(errno)), Ok(1));
        }
        let full = |_: &OsStr, _: &[u8]| Err(Errno::NOSPC);
        assert_eq!(set_all(&of(SMALL_MAX + 1), FilePrivileges::Kept, full), Ok(1));
        // A small value: the disk is full.
        assert_eq!(set_all(&of(SMALL_MAX), FilePrivileges::Kept, full), Err(Errno::NOSPC));
    }
}
