//! Identifies a mount by the kernel's unique ids, and finds it wherever it has been moved.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use inlay_base::boot::boot_id;
use inlay_base::mountinfo::MountLine;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::fchdir;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::MountError;
use super::kernel;
use super::namespace::Namespace;
use super::path;
use super::process::{Process, ProcessId};
use super::target::{QUIET, mount_number, mount_number_at};

/// The number of attempts to find a mount that is moved while it is being unmounted.
const TRIES: u32 = 16;
/// The maximum depth of nested mounts to follow. The kernel's own limit is far higher, but no user
/// stacks that many.
const DEPTH_MAX: u32 = 1000;

#[cfg(test)]
thread_local! {
    /// Called before each query of the kernel by this thread.
    pub(super) static BEFORE_QUERY: std::cell::RefCell<Option<Box<dyn Fn()>>> =
        const { std::cell::RefCell::new(None) };
}

/// The identity of a mount, made of ids that the kernel never reuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Seen {
    /// The unique mount id.
    mount: u64,
    /// The unique id of its namespace.
    namespace: u64,
    /// The inode of the namespace's file in `/proc`, to find a process inside.
    namespace_file: u64,
    /// The boot during which these ids are valid.
    boot: String,
    /// Its identity in `mountinfo`, for kernels without statmount(2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listed: Option<Listed>,
    /// The process through which it was mounted, if it is in another namespace than the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    member: Option<ProcessId>,
}

/// Identifies a line of `mountinfo`: the id alone is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
struct Listed {
    id: u64,
    major: u32,
    minor: u32,
}

/// The treatment of a mount that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Umount {
    /// Fail with an error.
    IfFree,
    /// Detach it; it ends with its last user.
    Lazily,
}

/// The current place of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// Its path in its namespace; `None` if it is unreachable.
    pub(crate) path: Option<PathBuf>,
    /// Its id in `mountinfo`.
    pub id: u64,
}

/// The outcome of one attempt to unmount.
enum Attempt {
    Done,
    /// Another mount is at the path.
    NotThere,
}

impl Seen {
    /// A hypothetical mount with this number.
    #[cfg(test)]
    pub(crate) fn for_tests(mount: u64) -> Self {
        let boot = boot().unwrap().to_owned();
        Self { mount, namespace: 0, namespace_file: 0, boot, listed: None, member: None }
    }

    /// Returns a placeholder for a mount that does not exist yet in this namespace.
    pub(super) fn nowhere(namespace: &Namespace) -> Result<Self, MountError> {
        let (namespace_file, boot) = (namespace.inode(), boot()?.to_owned());
        Ok(Self { mount: 0, namespace: 0, namespace_file, boot, listed: None, member: None })
    }

    /// Returns the identity of `tree`, a detached mount, once attached in `namespace` with the
    /// unique id `number`. `member` is a process inside.
    pub(super) fn of(
        tree: &OwnedFd,
        namespace: &Namespace,
        number: u64,
        member: Option<ProcessId>,
    ) -> io::Result<Self> {
        let stat = statx(tree, "", AtFlags::EMPTY_PATH | QUIET, StatxFlags::MNT_ID)?;
        let (major, minor) = (stat.stx_dev_major, stat.stx_dev_minor);
        Ok(Self {
            mount: mount_number(tree)?,
            namespace: number,
            namespace_file: namespace.inode(),
            boot: boot().map_err(io::Error::other)?.to_owned(),
            listed: Some(Listed { id: stat.stx_mnt_id, major, minor }),
            member,
        })
    }

    /// Returns the unique mount id.
    pub fn number(&self) -> u64 {
        self.mount
    }

    /// Returns the unique id of its namespace.
    pub(crate) fn namespace(&self) -> u64 {
        self.namespace
    }

    /// Returns a process in its namespace; `None` if that is this process's own namespace or has no
    /// process.
    pub fn process_inside(&self) -> Option<Process> {
        self.find_namespace().ok()??.member()
    }

    /// Reports whether it is still mounted. A lazily unmounted mount is not.
    pub fn is_mounted(&self) -> Result<bool, MountError> {
        Ok(self.now()?.is_some())
    }

    /// Reports whether it is mounted in this process's namespace.
    pub fn is_here(&self) -> Result<bool, MountError> {
        Ok(self.is_in(&Namespace::own()?) && self.is_mounted()?)
    }

    /// Reports whether it is in `namespace`.
    pub(crate) fn is_in(&self, namespace: &Namespace) -> bool {
        self.namespace_file == namespace.inode()
    }

    /// Returns its current place; `None` if it is gone. Its parent directories may have been
    /// renamed since it was created.
    pub fn now(&self) -> Result<Option<Now>, MountError> {
        #[cfg(test)]
        before_query();
        if self.boot != boot()? {
            return Ok(None);
        }
        match kernel::describe(self.mount, self.namespace) {
            Ok(found) => Ok(found.map(|found| Now { path: found.point, id: found.id })),
            Err(error) if kernel::is_unsupported(&error) => self.now_as_listed(),
            Err(error) => Err(MountError::io("look for", "a mount".as_ref())(error)),
        }
    }

    /// Like [`Seen::now`], from `mountinfo`.
    pub(super) fn now_as_listed(&self) -> Result<Option<Now>, MountError> {
        let Some(lines) = self.lines()? else { return Ok(None) };
        let line = self.line(&lines)?;
        Ok(line.map(|line| Now { path: Some(line.path.clone()), id: line.id }))
    }

    /// Lists all mounts of its namespace; `None` if no process is inside.
    fn lines(&self) -> Result<Option<Vec<MountLine>>, MountError> {
        self.find_namespace()?.map(|namespace| namespace.mounts()).transpose()
    }

    fn line<'l>(&self, lines: &'l [MountLine]) -> Result<Option<&'l MountLine>, MountError> {
        let Some(Listed { id, major, minor }) = self.listed else {
            let why = io::Error::other("its record is of a version that relies on statmount(2)");
            return Err(MountError::io("look for", "a mount".as_ref())(why));
        };
        Ok(lines.iter().find(|line| line.id == id && line.device == (major, minor)))
    }

    fn find_namespace(&self) -> Result<Option<Namespace>, MountError> {
        // Avoid a scan of all processes for a namespace that is gone.
        if self.namespace != 0 && matches!(kernel::is_namespace(self.namespace), Ok(false)) {
            return Ok(None);
        }
        Namespace::find(self.namespace_file, self.member)
    }

    /// Reports whether it is on the mount `other`, directly or through others in between.
    pub(crate) fn is_on(&self, other: &Self) -> bool {
        if self.namespace != other.namespace || self.mount == other.mount {
            return false;
        }
        let mut number = self.mount;
        for _ in 0..DEPTH_MAX {
            match kernel::describe(number, self.namespace) {
                Ok(Some(found)) if found.parent == other.mount => return true,
                Ok(Some(found)) if found.parent != number => number = found.parent,
                Err(error) if kernel::is_unsupported(&error) => {
                    return self.is_listed_on(other).unwrap_or(false);
                }
                _ => return false,
            }
        }
        false
    }

    /// Like [`Seen::is_on`], from `mountinfo`.
    fn is_listed_on(&self, other: &Self) -> Result<bool, MountError> {
        let Some(lines) = self.lines()? else { return Ok(false) };
        let Some(wanted) = other.line(&lines)?.map(|line| line.id) else { return Ok(false) };
        let mut at = self.line(&lines)?;
        for _ in 0..DEPTH_MAX {
            let Some(line) = at else { return Ok(false) };
            if line.parent == wanted {
                return Ok(true);
            }
            at = lines.iter().find(|other| other.id == line.parent && other.id != line.id);
        }
        Ok(false)
    }

    /// Unmounts it from its current place, without retries if it is busy; `path` is for messages.
    /// Fails with [`MountError::Covered`] if another mount covers it.
    pub(crate) fn unmount(&self, path: &Path, how: Umount) -> Result<(), MountError> {
        let mut last = None;
        for _ in 0..TRIES {
            let Some(now) = self.now()? else { return Ok(()) };
            let Some(namespace) = self.find_namespace()? else {
                // A descriptor keeps it alive, but no process is inside.
                return Err(MountError::NobodyInside(path.to_owned()));
            };
            // If it is still at the same path but not visible there, it is covered.
            let Some(at) = now.path.filter(|at| last.as_ref() != Some(at)) else { break };
            match self.unmount_at(&namespace, &at, how)? {
                Attempt::Done => return Ok(()),
                Attempt::NotThere => last = Some(at),
            }
        }
        Err(MountError::Covered(last.unwrap_or_else(|| path.to_owned())))
    }

    fn unmount_at(
        &self,
        namespace: &Namespace,
        path: &Path,
        how: Umount,
    ) -> Result<Attempt, MountError> {
        let flags = match how {
            Umount::IfFree => UnmountFlags::NOFOLLOW,
            Umount::Lazily => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        namespace.apart(|| {
            // Resolve the last component from its parent directory: a directory swapped for a
            // symlink concurrently must not get another mount unmounted.
            let name = match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => match enter(parent) {
                    Ok(()) => name,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                        return Ok(Attempt::NotThere);
                    }
                    Err(errno) => return Err(MountError::io("enter", parent)(errno)),
                },
                _ => path.as_os_str(),
            };
            if mount_number_at(name.as_ref()) != Ok(self.mount) {
                return Ok(Attempt::NotThere);
            }
            match unmount(name, flags) {
                Ok(()) => Ok(Attempt::Done),
                // Unmounted or moved concurrently.
                Err(Errno::INVAL | Errno::NOENT) => Ok(Attempt::NotThere),
                Err(Errno::BUSY) => Err(MountError::Busy(path.to_owned())),
                Err(errno) => Err(MountError::io("unmount", path)(errno)),
            }
        })
    }

    /// Removes the empty ones of the directories created for it, given parents first. Returns those
    /// that remain. If its namespace has no process left, they are forgotten.
    pub(super) fn remove_made(&self, made: &[PathBuf]) -> Result<Vec<PathBuf>, MountError> {
        if self.boot != boot()? {
            return Ok(Vec::new());
        }
        let Some(namespace) = self.find_namespace()? else { return Ok(Vec::new()) };
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

#[cfg(test)]
pub(super) fn before_query() {
    BEFORE_QUERY.with_borrow(|hook| hook.iter().for_each(|hook| hook()));
}

/// Changes this thread's working directory to `path`, which must not contain symlinks.
fn enter(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    fchdir(dir.as_fd())
}

/// Returns the boot during which the kernel's ids are valid.
fn boot() -> Result<&'static str, MountError> {
    boot_id().map_err(MountError::io("read", "the kernel's boot id".as_ref()))
}
