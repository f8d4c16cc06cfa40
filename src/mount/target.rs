//! Where a snapshot is to be seen: a directory of whoever asks, found once and then held.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::error::MountError;
use super::kernel;
use super::namespace::{Namespace, root_of};

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
}

/// A mount, by what the kernel never uses again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Caller {
    /// A process that may be in another mount namespace, or below another root directory.
    Process(Pid),
    /// This process itself.
    This,
}

impl Caller {
    pub(crate) fn namespace(self) -> Result<Namespace, MountError> {
        match self {
            Self::Process(pid) => Namespace::of(pid),
            Self::This => Namespace::own(),
        }
    }

    /// The directory at `path`, an absolute path as the caller means it: below its root, which its
    /// symbolic links do not leave.
    fn open(self, path: &Path) -> Result<OwnedFd, Errno> {
        let pid = match self {
            Self::Process(pid) => pid,
            Self::This => rustix::process::getpid(),
        };
        let root = root_of(pid).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(root, path, flags, Mode::empty(), resolve)
    }

    /// `path` without symbolic links, as its namespace has it. If nothing can be opened there, as
    /// with a mount that nobody serves, the directory that it is in is looked at.
    pub(crate) fn locate(self, path: &Path) -> PathBuf {
        let real = |path: &Path| self.open(path).ok().and_then(|dir| path_of(&dir).ok());
        real(path)
            .or_else(|| Some(real(path.parent()?)?.join(path.file_name()?)))
            .unwrap_or_else(|| path.to_owned())
    }
}

impl Target {
    /// The existing directory at `path`, as the caller sees it.
    pub(crate) fn find(caller: Caller, path: &Path) -> Result<Self, MountError> {
        let wrong = |why: io::Error| MountError::Mountpoint { path: path.to_owned(), why };
        let namespace = caller.namespace()?;
        let dir = caller.open(path).map_err(|errno| wrong(errno.into()))?;
        let real = path_of(&dir).map_err(wrong)?;
        let number = mount_number(&dir).map_err(|errno| wrong(errno.into()))?;
        let failed = || MountError::io("find the namespace of", &real);
        let namespace_number = namespace
            .inside(|| kernel::namespace_of(number, 0).map_err(failed()))?
            .ok_or_else(|| failed()(io::Error::from(Errno::NOENT)))?;
        Ok(Self { dir, path: real, namespace, namespace_number })
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

    /// Puts `tree` here.
    pub(crate) fn attach(&self, tree: &OwnedFd) -> Result<(), MountError> {
        let empty =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let attach = || {
            move_mount(tree, "", &self.dir, "", empty)
                .map_err(MountError::io("mount on", &self.path))
        };
        self.namespace.inside(attach)
    }
}

/// What to do about a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
        namespace.inside(|| {
            if mount_number_at(path) != Ok(self.mount) {
                let covered = self.is_mounted()?;
                return if covered { Err(MountError::Covered(path.to_owned())) } else { Ok(()) };
            }
            match unmount(path, flags) {
                // Unmounted by somebody else in the meantime.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
                Err(Errno::BUSY) => Err(MountError::Busy(path.to_owned())),
                Err(errno) => Err(MountError::io("unmount", path)(errno)),
            }
        })
    }
}

/// No request goes to who serves it.
const QUIET: AtFlags = AtFlags::STATX_DONT_SYNC;

fn mount_number(dir: impl AsFd) -> Result<u64, Errno> {
    statx(dir, "", AtFlags::EMPTY_PATH | QUIET, MOUNT_NUMBER).map(|stat| stat.stx_mnt_id)
}

fn mount_number_at(path: &Path) -> Result<u64, Errno> {
    let flags = QUIET | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(rustix::fs::CWD, path, flags, MOUNT_NUMBER).map(|stat| stat.stx_mnt_id)
}

fn path_of(dir: &OwnedFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
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
