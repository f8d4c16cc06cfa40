//! Where a snapshot is to be seen: a directory of whoever asks, found once and then held.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::process::{Pid, fchdir};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;
use super::ids::Space;
use super::kernel;
use super::namespace::{Namespace, root_of};
use super::path::{self, Made, MakePath, path_of};
use super::process::ProcessId;
use super::registry::{Announced, Registry};

/// `STATX_MNT_ID_UNIQUE`: since Linux 6.8.
const MOUNT_NUMBER: StatxFlags = StatxFlags::from_bits_retain(0x4000);
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// A directory that something can be mounted on.
#[derive(Debug)]
pub(crate) struct Target {
    dir: OwnedFd,
    path: PathBuf,
    namespace: Namespace,
    namespace_number: u64,
    space: Space,
    made: Vec<Made>,
    _announced: Option<Announced>,
}

/// A mount, by what the kernel never uses again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Seen {
    /// The mount's number.
    mount: u64,
    /// The number of the namespace that it is in.
    namespace: u64,
    /// The number of the namespace's file in `/proc`, to find a process inside.
    namespace_file: u64,
    /// Since when these numbers count.
    boot: String,
}

/// Whose paths are meant.
#[derive(Debug, Clone, Copy)]
pub enum Caller {
    /// Those of a process that may be in another mount namespace, or below another root directory.
    Process(Pid),
    /// The same, but of no later process that has its number.
    Exactly(ProcessId),
    /// Those of this process itself.
    This,
}

impl Caller {
    fn pid(self) -> Result<Pid, MountError> {
        match self {
            Self::Process(pid) => Ok(pid),
            Self::This => Ok(rustix::process::getpid()),
            Self::Exactly(process) => i32::try_from(process.pid)
                .ok()
                .and_then(Pid::from_raw)
                .ok_or(MountError::NoProcess(process.pid)),
        }
    }

    /// That what was just opened by the process's number is of the process that is meant.
    fn confirm(self) -> Result<(), MountError> {
        match self {
            Self::Exactly(process) if !process.is_alive() => {
                Err(MountError::NoProcess(process.pid))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn namespace(self) -> Result<Namespace, MountError> {
        let namespace = match self {
            Self::This => return Namespace::own(),
            Self::Process(_) | Self::Exactly(_) => Namespace::of(self.pid()?)?,
        };
        self.confirm()?;
        Ok(namespace)
    }

    /// What the caller has as its root directory, which symbolic links of its paths do not leave.
    fn root(self) -> Result<OwnedFd, MountError> {
        let pid = self.pid()?;
        let path = PathBuf::from(format!("/proc/{}/root", pid.as_raw_nonzero()));
        let root = root_of(pid).map_err(MountError::io("open", &path))?;
        self.confirm()?;
        Ok(root)
    }

    /// `path` without symbolic links, as its namespace has it. If nothing can be opened there, as
    /// with a mount that nobody serves, the directory that it is in is looked at.
    pub(crate) fn locate(self, path: &Path) -> PathBuf {
        let root = self.root().ok();
        let real = |path: &Path| {
            let dir = root.as_ref().and_then(|root| path::open(root, path).ok())?;
            path_of(&dir).ok()
        };
        real(path)
            .or_else(|| Some(real(path.parent()?)?.join(path.file_name()?)))
            .unwrap_or_else(|| path.to_owned())
    }
}

impl Target {
    /// The directory at `path`, as the caller sees it, which is made if `make` says so.
    pub(crate) fn find(
        caller: Caller,
        path: &Path,
        make: MakePath,
        registry: &Registry,
    ) -> Result<Self, MountError> {
        let wrong = |why: io::Error| MountError::Mountpoint { path: path.to_owned(), why };
        let namespace = caller.namespace()?;
        let root = caller.root()?;
        let space = match caller {
            Caller::This => Space::default(),
            Caller::Process(_) | Caller::Exactly(_) => Space::of(caller.pid()?)?,
        };
        caller.confirm()?;
        let mut announced = None;
        let (dir, real, made) = match make {
            MakePath::Never => {
                let dir = path::open(&root, path).map_err(|errno| wrong(errno.into()))?;
                let real = path_of(&dir).map_err(wrong)?;
                (dir, real, Vec::new())
            }
            MakePath::OwnedBy(owner) => {
                let owner = space.outside(owner).ok_or(MountError::NoSuchOwner(owner))?;
                let said = announced.insert(registry.announce(Seen::nowhere(&namespace)?));
                path::open_or_make(&root, path, owner, &mut |dirs| said.add(dirs))?
            }
        };
        // Should anything fail from here on, dropping it removes what was made.
        let mut found = Self {
            dir,
            path: real,
            namespace,
            namespace_number: 0,
            space,
            made,
            _announced: announced,
        };
        let number = mount_number(&found.dir).map_err(|errno| wrong(errno.into()))?;
        found.namespace_number = found.namespace.number(number)?;
        Ok(found)
    }

    /// The numbers that users and groups have there.
    pub(super) fn space(&self) -> &Space {
        &self.space
    }

    /// The directories that were made for it, those above first.
    pub(super) fn made(&self) -> Vec<PathBuf> {
        self.made.iter().filter_map(Made::path).collect()
    }

    /// Removes what was made, as far as nothing is in it.
    pub(super) fn remove_made_now(&mut self) {
        path::remove(&self.made);
        self.made.clear();
    }

    /// Whether the directory is still where it was found.
    pub(super) fn is_there(&self) -> bool {
        path_of(&self.dir).is_ok_and(|path| path == self.path)
    }

    /// From now on what was made stays when this is dropped.
    pub(super) fn keep_made(&mut self) {
        self.made.clear();
    }

    /// Where it is: absolute, without symbolic links, as its namespace has it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the namespace that it is in.
    pub(crate) fn namespace(&self) -> u64 {
        self.namespace_number
    }

    /// What `tree`, a mount that is nowhere yet, will be when it is here.
    pub(crate) fn seen(&self, tree: &OwnedFd) -> Result<Seen, MountError> {
        let mount =
            mount_number(tree).map_err(MountError::io("number the mount on", &self.path))?;
        Ok(Seen {
            mount,
            namespace: self.namespace_number,
            namespace_file: self.namespace.inode(),
            boot: boot()?.to_owned(),
        })
    }

    /// Puts `tree` here. If it is not seen at the path then, because directories were renamed in
    /// the meantime, it is taken away again.
    pub(crate) fn attach(&self, tree: &OwnedFd) -> Result<(), MountError> {
        let empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let failed = || MountError::io("mount on", &self.path);
        let seen = self.namespace.inside(|| {
            move_mount(tree, "", &self.dir, "", empty).map_err(failed())?;
            Ok(mount_number_at(&self.path) == mount_number(tree))
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

/// What to do about a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Umount {
    /// Leave it and say so.
    IfFree,
    /// Take it out of the tree; it ends when its last user does.
    Lazily,
}

impl Seen {
    /// The mount with this number, if ever there is one.
    #[cfg(test)]
    pub(crate) fn for_tests(mount: u64) -> Self {
        Self { mount, namespace: 0, namespace_file: 0, boot: boot().unwrap().to_owned() }
    }

    /// No mount yet, in this namespace.
    fn nowhere(namespace: &Namespace) -> Result<Self, MountError> {
        let (namespace_file, boot) = (namespace.inode(), boot()?.to_owned());
        Ok(Self { mount: 0, namespace: 0, namespace_file, boot })
    }

    /// The mount's number.
    pub fn number(&self) -> u64 {
        self.mount
    }

    /// The number of the namespace that it is in.
    pub(crate) fn namespace(&self) -> u64 {
        self.namespace
    }

    /// Whether it is still mounted. A mount that was taken out of the tree lazily is not.
    pub fn is_mounted(&self) -> Result<bool, MountError> {
        if self.boot != boot()? {
            return Ok(false);
        }
        let found = kernel::namespace_of(self.mount, self.namespace);
        Ok(found.map_err(MountError::io("look for", "a mount".as_ref()))?.is_some())
    }

    /// Whether it is in the namespace that this process is in.
    pub(crate) fn is_in(&self, namespace: &Namespace) -> bool {
        self.namespace_file == namespace.inode()
    }

    /// Whether it is on the mount `other`, at once or by others between.
    pub(crate) fn is_on(&self, other: &Self) -> bool {
        // The kernel's own bound for mounts is far higher, but nobody piles them up like that.
        const DEPTH_MAX: u32 = 1000;
        let mut number = self.mount;
        for _ in 0..DEPTH_MAX {
            match kernel::parent_of(number, self.namespace) {
                Ok(Some(parent)) if parent == other.mount => return true,
                Ok(Some(parent)) if parent != number => number = parent,
                _ => return false,
            }
        }
        false
    }

    /// Tries once to unmount it from `path`. Something that lies over it is left alone.
    pub(crate) fn unmount(&self, path: &Path, how: Umount) -> Result<(), MountError> {
        let Some(namespace) = Namespace::find(self.namespace_file)? else {
            // Held by a descriptor somewhere, but with nobody inside.
            return Err(MountError::NobodyInside(path.to_owned()));
        };
        let flags = match how {
            Umount::IfFree => UnmountFlags::NOFOLLOW,
            Umount::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        namespace.apart(|| {
            // From the directory that it is in: whoever swaps one for a symbolic link meanwhile does
            // not get something else unmounted.
            let name = match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => {
                    enter(parent).map(|()| name).map_err(MountError::io("enter", parent))
                }
                _ => Ok(path.as_os_str()),
            };
            let name = match name {
                Ok(name) if mount_number_at(name.as_ref()) == Ok(self.mount) => name,
                _ => {
                    let covered = self.is_mounted()?;
                    return if covered {
                        Err(MountError::Covered(path.to_owned()))
                    } else {
                        Ok(())
                    };
                }
            };
            match unmount(name, flags) {
                // Unmounted by somebody else in the meantime.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                Err(Errno::BUSY) => Err(MountError::Busy(path.to_owned())),
                Err(errno) => Err(MountError::io("unmount", path)(errno)),
            }
        })
    }

    /// Removes directories that were made for it, given with those above first, as far as nothing is
    /// in them. Returns those that stay. If nobody is in its namespace any more, they are forgotten.
    pub(super) fn remove_made(&self, made: &[PathBuf]) -> Result<Vec<PathBuf>, MountError> {
        if self.boot != boot()? {
            return Ok(Vec::new());
        }
        let Some(namespace) = Namespace::find(self.namespace_file)? else { return Ok(Vec::new()) };
        namespace.inside(|| {
            let root = path::open(CWD, "/".as_ref());
            let root = root.map_err(MountError::io("open", "/".as_ref()))?;
            let mut left = made.to_vec();
            while left.last().is_some_and(|deepest| path::remove_at(&root, deepest)) {
                left.pop();
            }
            Ok(left)
        })
    }
}

/// Makes the directory at `path`, which has no symbolic links, the working one of this thread.
fn enter(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    fchdir(dir)
}

/// No request goes to who serves it.
const QUIET: AtFlags = AtFlags::STATX_DONT_SYNC;

pub(super) fn mount_number(dir: impl AsFd) -> Result<u64, Errno> {
    statx(dir, "", AtFlags::EMPTY_PATH | QUIET, MOUNT_NUMBER).map(|stat| stat.stx_mnt_id)
}

fn mount_number_at(path: &Path) -> Result<u64, Errno> {
    let flags = QUIET | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(CWD, path, flags, MOUNT_NUMBER).map(|stat| stat.stx_mnt_id)
}

/// Since when the kernel's numbers count; read once.
fn boot() -> Result<&'static str, MountError> {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let text = std::fs::read_to_string(BOOT).map_err(MountError::io("read", BOOT.as_ref()))?;
    Ok(ID.get_or_init(|| text.trim().to_owned()))
}
