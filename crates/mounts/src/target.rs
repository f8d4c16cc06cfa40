//! Resolves the directory to mount on in the caller's view, and holds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, fstatfs, open, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::process::fchdir;

use super::error::MountError;
use super::ids::Space;
use super::mount_id::Seen;
use super::namespace::{Namespace, root_of};
use super::path::{self, Made, MakePath, path_of};
use super::process::{Process, ProcessId};
use super::registry::{Announced, Registry};

/// `STATX_MNT_ID_UNIQUE`: requires Linux 6.8.
pub(super) const MOUNT_NUMBER: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A directory to mount on.
#[derive(Debug)]
pub struct Target {
    dir: OwnedFd,
    path: PathBuf,
    namespace: Namespace,
    namespace_number: u64,
    found: Found,
    root_mount: u64,
    member: Option<ProcessId>,
    space: Space,
    made: Vec<Made>,
    _announced: Option<Announced>,
}

/// Whose view paths are resolved in.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A process, which may be in another mount namespace or have another root directory.
    Process(Process),
    /// This process.
    This,
}

/// The mount that a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its unique id.
    pub mount: u64,
    /// Whether the path leads to its root directory.
    pub at: Depth,
}

/// The position of a directory in its mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The root directory.
    Root,
    /// Below the root directory.
    Inside,
}

impl Caller {
    /// Ensures that anything just opened by the process's pid belongs to the process.
    fn confirm(&self) -> Result<(), MountError> {
        match self {
            Self::Process(process) if !process.is_alive() => {
                Err(MountError::NoProcess(process.pid()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn namespace(&self) -> Result<Namespace, MountError> {
        match self {
            Self::This => Namespace::own(),
            Self::Process(process) => Namespace::of(process),
        }
    }

    fn space(&self) -> Result<Space, MountError> {
        let space = match self {
            Self::This => Space::default(),
            Self::Process(process) => Space::of(process.pid())?,
        };
        self.confirm()?;
        Ok(space)
    }

    fn working_directory(&self) -> io::Result<OwnedFd> {
        let pid = match self {
            Self::This => std::process::id(),
            Self::Process(process) => process.pid(),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(open(format!("/proc/{pid}/cwd"), flags, Mode::empty())?)
    }

    /// Opens the caller's root directory, which symlinks in its paths can't escape.
    fn root(&self) -> Result<OwnedFd, MountError> {
        let pid = match self {
            Self::This => std::process::id(),
            Self::Process(process) => process.pid(),
        };
        let path = PathBuf::from(format!("/proc/{pid}/root"));
        let root = root_of(pid);
        self.confirm()?;
        root.map_err(MountError::io("open", &path))
    }

    /// Resolves `path` to a path without symlinks in its namespace. If it can't be opened, e.g. a
    /// mount that nothing serves, only its parent is resolved.
    pub fn locate(&self, path: &Path) -> PathBuf {
        let root = self.root().ok();
        let real = |path: &Path| {
            let dir = root.as_ref().and_then(|root| path::open(root, path).ok())?;
            path_of(&dir).ok()
        };
        real(path)
            .or_else(|| Some(real(path.parent()?)?.join(path.file_name()?)))
            .unwrap_or_else(|| path.to_owned())
    }

    /// Returns the mount that `path` leads to; `None` if no directory can be opened there.
    pub(crate) fn find_mount(&self, path: &Path) -> Result<Option<Found>, MountError> {
        let root = self.root()?;
        let Ok(dir) = path::open(&root, path) else { return Ok(None) };
        let found = find_mount(&dir).map_err(MountError::io("look at", path))?;
        Ok(Some(found))
    }
}

impl Target {
    /// Resolves the directory at `path` as the caller sees it; `make` decides whether it is
    /// created.
    pub(crate) fn find(
        caller: &Caller,
        path: &Path,
        make: MakePath,
        registry: &Registry,
    ) -> Result<Self, MountError> {
        let wrong = |why: io::Error| MountError::Mountpoint { path: path.to_owned(), why };
        let namespace = caller.namespace()?;
        let root = caller.root()?;
        let space = caller.space()?;
        let root_mount = mount_number(&root).map_err(|errno| wrong(errno.into()))?;
        let is_root = |real: &Path| path_of(&root).is_ok_and(|root| root == real);
        let mut announced = None;
        let (dir, real, made) = match make {
            MakePath::Never => {
                let dir = path::open(&root, path).map_err(|errno| wrong(errno.into()))?;
                let real = path_of(&dir).map_err(wrong)?;
                (dir, real, Vec::new())
            }
            MakePath::WorkingDirectory => {
                let dir = caller.working_directory().map_err(wrong)?;
                caller.confirm()?;
                let real = path_of(&dir).map_err(wrong)?;
                (dir, real, Vec::new())
            }
            MakePath::OwnedBy(owner) => {
                let owner = space.outside(owner).ok_or(MountError::NoSuchOwner(owner))?;
                let said = announced.insert(registry.announce(Seen::nowhere(&namespace)?));
                path::open_or_make(&root, path, owner, &mut |dirs| said.add(dirs))?
            }
        };
        if is_root(&real) {
            return Err(MountError::OnRoot(path.to_owned()));
        }
        let member = match caller {
            Caller::Process(process) if namespace.is_other() => Some(process.id()),
            _ => None,
        };
        // If anything fails from here on, the drop removes the directories created.
        let mut target = Self {
            dir,
            path: real,
            namespace,
            namespace_number: 0,
            found: Found { mount: 0, at: Depth::Inside },
            root_mount,
            member,
            space,
            made,
            _announced: announced,
        };
        target.found = find_mount(&target.dir).map_err(|errno| wrong(errno.into()))?;
        target.namespace_number = target.namespace.number(target.found.mount)?;
        Ok(target)
    }

    /// Returns the mount that contains it.
    pub fn found(&self) -> Found {
        self.found
    }

    /// Returns the unique id of the caller's root mount.
    pub fn root_mount(&self) -> u64 {
        self.root_mount
    }

    /// Returns the directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns the id maps of its user namespace.
    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    /// Returns the directories created for it, parents first.
    pub(super) fn made(&self) -> Vec<PathBuf> {
        self.made.iter().filter_map(Made::path).collect()
    }

    /// Removes the directories created, up to the first non-empty one.
    pub(super) fn remove_made_now(&mut self) {
        path::remove(&self.made);
        self.made.clear();
    }

    /// Reports whether the directory is still where it was found.
    pub(super) fn is_there(&self) -> bool {
        path_of(&self.dir).is_ok_and(|path| path == self.path)
    }

    /// Keeps the directories created when this is dropped.
    pub(super) fn keep_made(&mut self) {
        self.made.clear();
    }

    /// Returns its path in its namespace: absolute, without symlinks.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the unique id of its namespace.
    pub(crate) fn namespace(&self) -> u64 {
        self.namespace_number
    }

    /// Returns the identity that `tree`, a detached mount, will have once attached here.
    pub(crate) fn seen(&self, tree: &OwnedFd) -> Result<Seen, MountError> {
        Seen::of(tree, &self.namespace, self.namespace_number, self.member)
            .map_err(MountError::io("number the mount on", &self.path))
    }

    /// Attaches `tree` here. If it is not visible at the path afterwards, because directories were
    /// renamed concurrently, detaches it again and fails with [`MountError::Moved`].
    pub(crate) fn attach(&self, tree: &OwnedFd) -> Result<(), MountError> {
        let empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let failed = || MountError::io("mount on", &self.path);
        let seen = self.namespace.inside(|| {
            move_mount(tree, "", &self.dir, "", empty).map_err(failed())?;
            Ok(is_automount(&self.dir) || mount_number_at(&self.path) == mount_number(tree))
        })?;
        if seen {
            return Ok(());
        }
        self.namespace.apart(|| {
            fchdir(tree).map_err(failed())?;
            unmount(".", UnmountFlags::DETACH).map_err(failed())?;
            Err(MountError::Moved(self.path.clone()))
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        path::remove(&self.made);
    }
}

/// Reports whether a lookup of the path of `dir` blocks until something is mounted there.
fn is_automount(dir: &OwnedFd) -> bool {
    /// `AUTOFS_SUPER_MAGIC`
    const AUTOFS: u64 = 0x0187;
    fstatfs(dir).is_ok_and(|found| u64::try_from(found.f_type) == Ok(AUTOFS))
}

/// Avoids a request to the filesystem's server.
pub(super) const QUIET: AtFlags = AtFlags::STATX_DONT_SYNC;

pub(super) fn mount_number(dir: impl AsFd) -> Result<u64, Errno> {
    statx(dir, "", AtFlags::EMPTY_PATH | QUIET, MOUNT_NUMBER).map(|stat| stat.stx_mnt_id)
}

fn find_mount(dir: impl AsFd) -> Result<Found, Errno> {
    let stat = statx(dir, "", AtFlags::EMPTY_PATH | QUIET, MOUNT_NUMBER)?;
    let is_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let at = if is_root { Depth::Root } else { Depth::Inside };
    Ok(Found { mount: stat.stx_mnt_id, at })
}

pub(super) fn mount_number_at(path: &Path) -> Result<u64, Errno> {
    let flags = QUIET | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(CWD, path, flags, MOUNT_NUMBER).map(|stat| stat.stx_mnt_id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_mount_number_is_that_of_the_symlink_itself() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/proc", &link).unwrap();
        let of = |path: &Path| mount_number_at(path).unwrap();
        assert_eq!(of(&link), of(dir.path()));
        assert_ne!(of(&link), of("/proc".as_ref()));
    }

    #[test]
    fn an_ordinary_directory_is_not_an_automount() {
        let open = |path| OwnedFd::from(std::fs::File::open(path).unwrap());
        assert!(!is_automount(&open("/")) && !is_automount(&open("/proc")));
    }
}
