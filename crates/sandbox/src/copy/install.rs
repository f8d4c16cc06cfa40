//! Puts an object in its place: complete and atomically, despite concurrent changes there.
//!
//! A file has no name until it is complete. On a filesystem without `O_TMPFILE`, it has a unique
//! temporary name until then: concurrent copies into one directory never collide, and the remains
//! of a killed one do no harm. Owner, permissions and times are set through descriptors, so that an
//! object that takes the name concurrently never receives them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use inlay_base::held::Held;
use inlay_store::format::Timestamp;
use inlay_store::tree::Meta;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    chmodat, chownat, fchmod, fchown, futimens, linkat, mkdirat, mknodat, openat, renameat, statx,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::error::CopyError;
use super::unpack::{Keep, Owners};
use super::xattrs::{self, FilePrivileges};

/// The prefix of temporary names.
const PREFIX: &str = ".inlay-copy-";
/// The maximum number of attempts to find an unused temporary name.
const TRIES: u32 = 128;

const SPECIAL_BITS: u16 = 0o6000;

/// A directory and a name in it.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    /// Its path, for messages.
    pub(super) shown: &'a Path,
}

/// A file that is being written.
pub(super) struct NewFile<'a> {
    slot: Slot<'a>,
    pub(super) file: File,
    /// Its temporary name, if it has one.
    named: Option<CString>,
}

impl<'a> NewFile<'a> {
    pub(super) fn new(slot: Slot<'a>) -> Result<Self, CopyError> {
        let failed = || CopyError::io("write", slot.shown);
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(slot.dir, c".", flags, mode) {
            Ok(file) => return Ok(Self { slot, file: file.into(), named: None }),
            // The filesystem does not support it.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(failed()(errno)),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let (file, name) =
            with_own_name(|name| openat(slot.dir, name, flags, mode)).map_err(failed())?;
        Ok(Self { slot, file: file.into(), named: Some(name) })
    }

    /// Sets the file's attributes and moves it to its name, replacing an existing object. Returns
    /// the number of attributes that could not be set.
    pub(super) fn commit(mut self, meta: &Meta, keep: Keep) -> Result<u64, CopyError> {
        let left_out =
            finish_open(self.file.as_fd(), FileType::RegularFile, meta, keep, self.slot.shown)?;
        let Slot { dir, name, shown } = self.slot;
        let failed = || CopyError::io("put in place", shown);
        if self.named.is_none() {
            match self.link(name) {
                Ok(()) => return Ok(left_out),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed()(errno)),
            }
        }
        if let Some(held) = mounted(self.slot)? {
            let file = held.open_to_replace().map_err(CopyError::io("replace", shown))?;
            let Some(mut mounted) = file.map(File::from) else { return Err(is_mounted(shown)) };
            self.file
                .seek(SeekFrom::Start(0))
                .and_then(|_| io::copy(&mut self.file, &mut mounted))
                .map_err(CopyError::io("write", shown))?;
            return finish_open(mounted.as_fd(), FileType::RegularFile, meta, keep, shown);
        }
        if self.named.is_none() {
            let ((), own) = with_own_name(|own| self.link(own)).map_err(failed())?;
            self.named = Some(own);
        }
        if let Some(own) = &self.named {
            renameat(dir, own.as_c_str(), dir, name).map_err(in_the_way(shown))?;
            self.named = None;
        }
        Ok(left_out)
    }

    fn link(&self, name: &CStr) -> Result<(), Errno> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, path, self.slot.dir, name, AtFlags::SYMLINK_FOLLOW)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(own) = &self.named {
            // The copy failed. If the file can't be removed, its name marks it as partial.
            unlinkat(self.slot.dir, own.as_c_str(), AtFlags::empty()).ok();
        }
    }
}

fn is_mounted(shown: &Path) -> CopyError {
    let why = "something is mounted there, and only a regular file can be copied to it";
    CopyError::InTheWay { path: shown.to_owned(), why }
}

/// Returns the object at `slot` if it is a mount point. This process may be in another mount
/// namespace than the mount, where replacing the object would detach it.
fn mounted(slot: Slot<'_>) -> Result<Option<Held>, CopyError> {
    let failed = || CopyError::io("replace", slot.shown);
    let held = match Held::at(slot.dir, slot.name) {
        Ok(held) => held,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed()(errno)),
    };
    let mount = |fd: BorrowedFd<'_>| {
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        Ok((stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id))
    };
    if mount(held.as_fd()).map_err(failed())? == mount(slot.dir).map_err(failed())? {
        return Ok(None);
    }
    Ok(Some(held))
}

fn in_the_way(shown: &Path) -> impl FnOnce(Errno) -> CopyError {
    let path = shown.to_owned();
    move |errno| match errno {
        Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST => {
            let why = "a directory is in the way; remove it, or copy to another name";
            CopyError::InTheWay { path, why }
        }
        errno => CopyError::io("put in place", &path)(errno),
    }
}

/// Creates an object under an unused temporary name.
fn with_own_name<T>(make: impl Fn(&CStr) -> Result<T, Errno>) -> Result<(T, CString), Errno> {
    for _ in 0..TRIES {
        let name = format!("{PREFIX}{:016x}", fastrand::u64(..));
        // It contains no NUL.
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        match make(&name) {
            Err(Errno::EXIST) => {}
            other => return other.map(|made| (made, name)),
        }
    }
    Err(Errno::EXIST)
}

/// Creates an object other than a file or directory under a temporary name, and renames it into
/// place.
pub(super) fn put(
    slot: Slot<'_>,
    meta: Option<(FileType, &Meta, Keep)>,
    make: impl Fn(&CStr) -> Result<(), Errno>,
) -> Result<u64, CopyError> {
    if mounted(slot)?.is_some() {
        return Err(is_mounted(slot.shown));
    }
    let ((), own) = with_own_name(make).map_err(CopyError::io("make", slot.shown))?;
    let placed = meta
        .map_or(Ok(0), |(kind, meta, keep)| {
            let held = Held::at(slot.dir, &own).map_err(CopyError::io("look at", slot.shown))?;
            // Another program may have replaced it with a hard link to someone else's file.
            if held.kind() != kind || held.stat().st_nlink != 1 {
                return Err(CopyError::Moved(slot.shown.to_owned()));
            }
            finish_held(&held, meta, keep, slot.shown)
        })
        .and_then(|left_out| {
            renameat(slot.dir, own.as_c_str(), slot.dir, slot.name)
                .map_err(in_the_way(slot.shown))?;
            Ok(left_out)
        });
    // The copy failed, or both names were links to the same file already, which makes a rename a
    // no-op.
    unlinkat(slot.dir, own.as_c_str(), AtFlags::empty()).ok();
    placed
}

pub(super) fn put_symlink(
    slot: Slot<'_>,
    target: &[u8],
    meta: &Meta,
    keep: Keep,
) -> Result<u64, CopyError> {
    put(slot, Some((FileType::Symlink, meta, keep)), |name| symlinkat(target, slot.dir, name))
}

pub(super) fn put_fifo(slot: Slot<'_>, meta: &Meta, keep: Keep) -> Result<u64, CopyError> {
    let mode = Mode::RUSR | Mode::WUSR;
    let fifo = FileType::Fifo;
    put(slot, Some((fifo, meta, keep)), |name| mknodat(slot.dir, name, fifo, mode, 0))
}

/// Creates a hard link to `from` in `from_dir`.
pub(super) fn put_link(
    slot: Slot<'_>,
    from_dir: BorrowedFd<'_>,
    from: &CStr,
) -> Result<(), CopyError> {
    match linkat(from_dir, from, slot.dir, slot.name, AtFlags::empty()) {
        Err(Errno::EXIST) => {}
        other => return other.map_err(CopyError::io("link", slot.shown)),
    }
    put(slot, None, |name| linkat(from_dir, from, slot.dir, name, AtFlags::empty())).map(drop)
}

/// Creates a directory unless it exists.
pub(super) fn make_directory(slot: Slot<'_>) -> Result<(), CopyError> {
    match mkdirat(slot.dir, slot.name, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let held = Held::at(slot.dir, slot.name);
            let held = held.map_err(CopyError::io("look at", slot.shown))?;
            if held.kind() == FileType::Directory {
                return Ok(());
            }
            let why = "not a directory, but a directory is to be copied there; remove it first";
            Err(CopyError::InTheWay { path: slot.shown.to_owned(), why })
        }
        Err(errno) => Err(CopyError::io("make the directory", slot.shown)(errno)),
    }
}

/// Returns the owner and group to set on the copy.
fn owner(meta: &Meta, keep: Keep) -> (Option<Uid>, Option<Gid>) {
    let (uid, gid) = match keep.owners {
        Owners::Kept => (meta.uid, meta.gid),
        Owners::Given { uid, gid } => (uid, gid),
    };
    // `u32::MAX` means no change.
    let (uid, gid) = (uid.min(u32::MAX - 1), gid.min(u32::MAX - 1));
    (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

/// Reports whether the change of owner was permitted. Without root, a copy belongs to this user.
fn owned(changed: Result<(), Errno>) -> Result<bool, Errno> {
    match changed {
        Ok(()) => Ok(true),
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn mode(meta: &Meta, kind: FileType, keep: Keep, owned: bool) -> Mode {
    let lends =
        kind == FileType::RegularFile && (keep.privileges == FilePrivileges::Dropped || !owned);
    let perm = if lends { meta.perm & !SPECIAL_BITS } else { meta.perm };
    Mode::from_raw_mode(perm.into())
}

fn times(mtime: Timestamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() },
    }
}

/// Sets owner, extended attributes, permissions and time, in this order: a change of owner clears
/// set-id bits and capabilities. Returns the number of attributes that could not be set.
pub(super) fn finish_open(
    fd: BorrowedFd<'_>,
    kind: FileType,
    meta: &Meta,
    keep: Keep,
    shown: &Path,
) -> Result<u64, CopyError> {
    let (uid, gid) = owner(meta, keep);
    let owned = owned(fchown(fd, uid, gid)).map_err(CopyError::io("set the owner of", shown))?;
    let left_out = xattrs::set_open(fd, &meta.xattrs, keep.privileges)
        .map_err(CopyError::io("set attributes of", shown))?;
    fchmod(fd, mode(meta, kind, keep, owned))
        .map_err(CopyError::io("set the permissions of", shown))?;
    set_time(fd, meta.mtime, shown)?;
    Ok(left_out)
}

/// Sets the modification time of an open file or directory.
pub(super) fn set_time(
    fd: BorrowedFd<'_>,
    mtime: Timestamp,
    shown: &Path,
) -> Result<(), CopyError> {
    futimens(fd, &times(mtime)).map_err(CopyError::io("set the time of", shown))
}

/// Like [`finish_open`], for an object that must not be opened.
fn finish_held(held: &Held, meta: &Meta, keep: Keep, shown: &Path) -> Result<u64, CopyError> {
    let (uid, gid) = owner(meta, keep);
    let changed = chownat(held, c"", uid, gid, AtFlags::EMPTY_PATH);
    let owned = owned(changed).map_err(CopyError::io("set the owner of", shown))?;
    let left_out = xattrs::set_held(held, &meta.xattrs, keep.privileges)
        .map_err(CopyError::io("set attributes of", shown))?;
    // On Linux, symlinks have no permissions of their own.
    if held.kind() != FileType::Symlink {
        chmodat(CWD, held.path(), mode(meta, held.kind(), keep, owned), AtFlags::empty())
            .map_err(CopyError::io("set the permissions of", shown))?;
    }
    utimensat(held, c"", &times(meta.mtime), AtFlags::EMPTY_PATH)
        .map_err(CopyError::io("set the time of", shown))?;
    Ok(left_out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn root_can_always_change_an_owner() {
        assert!(owned(Ok(())).unwrap());
        assert_eq!(owned(Err(Errno::NOSPC)), Err(Errno::NOSPC));
        let refused = owned(Err(Errno::PERM));
        assert_eq!(refused.is_err(), rustix::process::geteuid().is_root());
    }
}
