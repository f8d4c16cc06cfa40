//! Opens the directory at a path beneath an untrusted root, creating it if it is missing.
//!
//! The kernel resolves each path (`openat2`, `RESOLVE_IN_ROOT`), so that neither a symlink nor `..`
//! escapes the root, even if components are replaced concurrently. A missing directory is created by name
//! through its parent's descriptor and opened without following links.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use inlay_base::in_root;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, ResolveFlags, Uid, fchmod, fchown, mkdirat,
    openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;

/// The number of attempts to recreate a directory that vanishes in the meantime.
const TRIES: u32 = 8;
/// The maximum number of components in the path of a mount point.
const COMPONENTS_MAX: usize = 256;

/// The suffix of the kernel's path for a removed directory; an existing directory's name may have
/// it, too.
const REMOVED: &[u8] = b" (deleted)";
/// Buffer space for a directory entry with the longest name, in bytes.
const LIST_LEN: usize = 512;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

impl Owner {
    /// Root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// The treatment of a missing mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MakePath {
    /// An error.
    Never,
    /// An error, and the mount point is the caller's working directory. Its path is not resolved:
    /// for an automount point, the kernel blocks every process but the caller until something is
    /// mounted there.
    WorkingDirectory,
    /// Creates it and its missing parents, mode 0755. The ids are relative to the target's user
    /// namespace.
    OwnedBy(Owner),
}

/// Called with directories before they are created, parents first.
pub(super) type Announce<'a> = &'a mut dyn FnMut(&[PathBuf]) -> Result<(), MountError>;
type AnnounceOne<'a> = &'a mut dyn FnMut(&Path) -> Result<(), MountError>;

/// A directory created for a mount.
#[derive(Debug)]
pub(super) struct Made {
    parent: OwnedFd,
    name: PathBuf,
}

impl Made {
    /// Returns its current path in its namespace.
    pub(super) fn path(&self) -> Option<PathBuf> {
        path_of(&self.parent).ok().map(|parent| parent.join(&self.name))
    }
}

/// Removes created directories, deepest first, up to the first non-empty one.
pub(super) fn remove(made: &[Made]) {
    for made in made.iter().rev() {
        if unlinkat(&made.parent, &made.name, AtFlags::REMOVEDIR).is_err() {
            return;
        }
    }
}

/// Removes the directory at `path` below `root` if it is empty. Returns whether it is gone.
pub(super) fn remove_at(root: impl AsFd, path: &Path) -> bool {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match openat2(root, parent, DIRECTORY, Mode::empty(), resolve) {
        Ok(parent) => {
            matches!(unlinkat(parent, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT))
        }
        Err(errno) => errno == Errno::NOENT,
    }
}

/// Opens the existing directory at `path` below `root`.
pub(super) fn open(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    in_root::open(root, path, DIRECTORY)
}

/// Returns the current path of `dir` in its namespace; fails with `ENOENT` if it was removed.
pub(super) fn path_of(dir: &OwnedFd) -> io::Result<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
    if path.as_os_str().as_bytes().ends_with(REMOVED) && is_removed(dir) {
        return Err(Errno::NOENT.into());
    }
    Ok(path)
}

/// Reports whether `dir` was removed. Such a directory can still be opened, but not listed.
fn is_removed(dir: &OwnedFd) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut room = [MaybeUninit::uninit(); LIST_LEN];
    match openat(dir, ".", flags, Mode::empty()) {
        Ok(dir) => matches!(RawDir::new(dir, &mut room).next(), Some(Err(Errno::NOENT))),
        Err(errno) => errno == Errno::NOENT,
    }
}

/// Opens the directory at `path` below `root`, creating it for `owner` if it is missing. Also
/// returns its real path and the directories created. The ids of `owner` are relative to this
/// process. `announce` is called before each creation with all directories still missing, parents
/// first.
pub(super) fn open_or_make(
    root: impl AsFd,
    path: &Path,
    owner: Owner,
    announce: Announce<'_>,
) -> Result<(OwnedFd, PathBuf, Vec<Made>), MountError> {
    let mut tries = TRIES;
    loop {
        let mut made = Vec::new();
        let found = walk(root.as_fd(), path, owner, announce, &mut made).and_then(|dir| {
            let real = path_of(&dir).map_err(|why| failed(path, path, why))?;
            Ok((dir, real))
        });
        match found {
            Ok((dir, real)) => return Ok((dir, real, made)),
            Err(error) => {
                remove(&made);
                // A directory vanished in the meantime, e.g. together with the mount it was created
                // for.
                let gone = matches!(&error, MountError::MakePath { why, .. }
                    if why.kind() == io::ErrorKind::NotFound);
                if !gone || tries == 0 {
                    return Err(error);
                }
                tries -= 1;
            }
        }
    }
}

fn walk(
    root: impl AsFd,
    path: &Path,
    owner: Owner,
    announce: Announce<'_>,
    made: &mut Vec<Made>,
) -> Result<OwnedFd, MountError> {
    // Fast path: usually the directory exists.
    match open(&root, path) {
        Ok(dir) => return Ok(dir),
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(errno) => return Err(failed(path, path, errno)),
    }
    if path.components().count() > COMPONENTS_MAX {
        return Err(failed(path, path, Errno::NAMETOOLONG));
    }
    let mut prefix = PathBuf::from("/");
    let mut dir = open(&root, &prefix).map_err(|errno| failed(path, &prefix, errno))?;
    let mut rest = path.components();
    while let Some(component) = rest.next() {
        prefix.push(component);
        let Component::Normal(name) = component else {
            dir = open(&root, &prefix).map_err(|errno| failed(path, &prefix, errno))?;
            continue;
        };
        let mut all_missing = |dir: &Path| {
            let mut dirs = vec![dir.to_owned()];
            for next in rest.clone() {
                let (Component::Normal(name), Some(last)) = (next, dirs.last()) else { break };
                dirs.push(last.join(name));
            }
            announce(&dirs)
        };
        dir = step(&root, dir, name, (path, &prefix), (owner, &mut all_missing), made)?;
    }
    Ok(dir)
}

/// Advances by one component: opens the directory or creates it.
fn step(
    root: impl AsFd,
    dir: OwnedFd,
    name: &OsStr,
    (path, prefix): (&Path, &Path),
    (owner, announce): (Owner, AnnounceOne<'_>),
    made: &mut Vec<Made>,
) -> Result<OwnedFd, MountError> {
    for _ in 0..TRIES {
        match open(&root, prefix) {
            Ok(next) => return Ok(next),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => return Err(in_the_way(&dir, name, path, prefix)),
            Err(errno) => return Err(failed(path, prefix, errno)),
        }
        let real = path_of(&dir).map_err(|why| failed(path, prefix, why))?;
        announce(&real.join(name))?;
        match mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            // A dangling symlink, or a directory created concurrently.
            Err(Errno::EXIST) => match kind_at(&dir, name) {
                Some(FileType::Directory) | None => continue,
                Some(_) => return Err(in_the_way(&dir, name, path, prefix)),
            },
            Err(errno) => return Err(failed(path, prefix, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = match openat(&dir, name, flags, Mode::empty()) {
            Ok(next) => next,
            // It was replaced or removed concurrently.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(failed(path, prefix, errno)),
        };
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        let finished = fchown(&next, Some(uid), Some(gid))
            .and_then(|()| fchmod(&next, Mode::from_raw_mode(0o755)));
        made.push(Made { parent: dir, name: name.into() });
        return finished.map(|()| next).map_err(|errno| failed(path, prefix, errno));
    }
    Err(failed(path, prefix, Errno::AGAIN))
}

fn kind_at(dir: &OwnedFd, name: &OsStr) -> Option<FileType> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

fn in_the_way(dir: &OwnedFd, name: &OsStr, path: &Path, at: &Path) -> MountError {
    let what = match kind_at(dir, name) {
        Some(FileType::RegularFile) => "a file",
        Some(FileType::Fifo) => "a FIFO",
        Some(FileType::Socket) => "a socket",
        Some(FileType::CharacterDevice | FileType::BlockDevice) => "a device",
        Some(FileType::Symlink) => "a symbolic link that leads to no directory",
        _ => "no directory",
    };
    MountError::InTheWay { path: path.to_owned(), at: at.to_owned(), what }
}

fn failed(path: &Path, at: &Path, why: impl Into<io::Error>) -> MountError {
    MountError::MakePath { path: path.to_owned(), at: at.to_owned(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    fn handle(path: &Path) -> OwnedFd {
        openat(rustix::fs::CWD, path, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_removed_directory_is_told_from_one_of_that_name() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let named = dir.path().join("a (deleted)");
        fs::create_dir(&named).unwrap();
        let held = handle(&named);
        assert_eq!(path_of(&held).unwrap(), named);
        fs::remove_dir(&named).unwrap();
        assert_eq!(path_of(&held).unwrap_err().kind(), io::ErrorKind::NotFound);
        let plain = dir.path().join("a");
        fs::create_dir(&plain).unwrap();
        let held = handle(&plain);
        fs::remove_dir(&plain).unwrap();
        // Another directory has the name that the kernel reports.
        fs::create_dir(&named).unwrap();
        assert_eq!(path_of(&held).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn lookups_racing_with_removals_never_return_a_stale_path() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = handle(dir.path());
        let (wanted, over) = (dir.path().join("x"), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    drop(fs::create_dir(&wanted));
                    drop(fs::remove_dir(&wanted));
                }
            });
            let owner = Owner { uid: 0, gid: 0 };
            let find = || open_or_make(&root, "/x".as_ref(), owner, &mut |_| Ok(()));
            // One iteration at a time: the number of descriptors is limited.
            let found: Vec<_> = (0..20_000).map(|_| find().map(|(_, path, _)| path)).collect();
            over.store(true, Ordering::Relaxed);
            for path in found.iter().flatten() {
                assert_eq!(*path, wanted);
            }
            for error in found.iter().filter_map(|found| found.as_ref().err()) {
                assert!(matches!(error, MountError::MakePath { .. }), "{error}");
            }
            assert!(found.iter().any(Result::is_ok));
        });
    }
}
