//! Mount namespaces: whose a process sees, and doing something inside another one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::ScopedJoinHandle;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::error::MountError;
use super::kernel;

const OWN: &str = "/proc/self/ns/mnt";

/// A mount namespace, as a process that is in it shows it.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    /// The number of its file in `/proc`, which the kernel uses again when it is gone.
    inode: u64,
    /// The number that is never used again, if the kernel tells it.
    number: Option<u64>,
    /// A process inside; `None`: this process is.
    member: Option<Arc<OwnedFd>>,
}

impl Namespace {
    /// The one that this process is in.
    pub(crate) fn own() -> Result<Self, MountError> {
        let (inode, number) = identify(OWN.as_ref())?;
        Ok(Self { inode, number, member: None })
    }

    /// The one that the process `pid` is in.
    pub(crate) fn of(pid: Pid) -> Result<Self, MountError> {
        let path = link(&pid.as_raw_nonzero().to_string());
        // First the handle, then the look: so the look is at the process that the handle is of,
        // unless the process is gone, and then the handle is of no use.
        let member = pidfd_open(pid, PidfdFlags::empty());
        let member = member.map_err(MountError::io("hold the process of", &path))?;
        let (inode, number) = identify(&path)?;
        let own = Self::own()?;
        if inode == own.inode {
            return Ok(own);
        }
        Ok(Self { inode, number, member: Some(Arc::new(member)) })
    }

    /// The one whose file has the number `inode`, if some process is in it.
    pub(crate) fn find(inode: u64) -> Result<Option<Self>, MountError> {
        let own = Self::own()?;
        if inode == own.inode {
            return Ok(Some(own));
        }
        let processes = fs::read_dir("/proc").map_err(MountError::io("list", "/proc".as_ref()))?;
        for process in processes.flatten() {
            let name = process.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let same =
                fs::metadata(link(&name.to_string_lossy())).is_ok_and(|meta| meta.ino() == inode);
            if same
                && let Some(pid) = Pid::from_raw(pid)
                && let Ok(found) = Self::of(pid)
                && found.inode == inode
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Its number, that of the mount `inside` if the kernel does not tell at once.
    pub(crate) fn number(&self, inside: u64) -> Result<u64, MountError> {
        let failed = || MountError::io("find the number of", "a mount namespace".as_ref());
        match self.number {
            Some(number) => Ok(number),
            None => self
                .inside(|| kernel::namespace_of(inside, 0).map_err(failed()))?
                .ok_or_else(|| failed()(io::Error::from(io::ErrorKind::NotFound))),
        }
    }

    /// The number of its file in `/proc`.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Does something inside, where paths begin at the namespace's root. In another namespace that
    /// takes a thread of its own, which ends with it.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, MountError> + Send,
    ) -> Result<T, MountError> {
        if self.member.is_some() { self.apart(work) } else { work() }
    }

    /// Does something inside, on a thread of its own, whose working directory is its own, too.
    pub(crate) fn apart<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, MountError> + Send,
    ) -> Result<T, MountError> {
        let enter = || {
            kernel::own_root_directory()?;
            match &self.member {
                Some(member) => {
                    move_into_thread_name_spaces(member.as_fd(), ThreadNameSpaceType::MOUNT)
                }
                None => Ok(()),
            }
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("inlay-inside".into());
            let inside = thread.spawn_scoped(scope, || {
                enter().map_err(MountError::io("enter", "the caller's namespace".as_ref()))?;
                work()
            });
            match inside.map(ScopedJoinHandle::join) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(MountError::Panicked),
                Err(error) => Err(MountError::io("start", "a thread".as_ref())(error)),
            }
        })
    }
}

/// The two numbers of the namespace whose file is at `path`.
fn identify(path: &Path) -> Result<(u64, Option<u64>), MountError> {
    let file = fs::File::open(path).map_err(MountError::io("open", path))?;
    let inode = file.metadata().map_err(MountError::io("look at", path))?.ino();
    Ok((inode, kernel::number_of(file.as_fd()).ok()))
}

fn link(process: &str) -> PathBuf {
    Path::new("/proc").join(process).join("ns/mnt")
}

/// What process `pid` sees as its root directory.
pub(super) fn root_of(pid: Pid) -> io::Result<OwnedFd> {
    let path = format!("/proc/{}/root", pid.as_raw_nonzero());
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_its_own_namespace() {
        let own = Namespace::own().unwrap();
        let same = Namespace::of(rustix::process::getpid()).unwrap();
        assert!(same.member.is_none() && same.inode() == own.inode());
        // Both ways to its number lead there.
        let root = super::super::target::mount_number(fs::File::open("/").unwrap()).unwrap();
        let asked = Namespace { number: None, ..own.clone() }.number(root).unwrap();
        assert_eq!(own.number(root).unwrap(), asked);
        assert!(Namespace::find(own.inode()).unwrap().is_some());
        assert!(Namespace::find(1).unwrap().is_none());
        assert_eq!(own.inside(|| Ok(7)).unwrap(), 7);
    }
}
