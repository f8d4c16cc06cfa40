//! Identifies mount namespaces and runs code inside them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use inlay_base::mountinfo::{self, MountLine};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, openat};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::error::MountError;
use super::kernel;
use super::process::{Process, ProcessId};

const OWN: &str = "/proc/self/ns/mnt";
/// The maximum number of cached namespace members.
const KNOWN_MAX: usize = 256;

/// A process found in each namespace by a full scan of /proc. It may have exited.
static KNOWN: Mutex<Option<HashMap<u64, ProcessId>>> = Mutex::new(None);

/// A mount namespace, reachable through a process inside.
#[derive(Debug, Clone)]
pub(crate) struct Namespace {
    /// The inode of its file in `/proc`, which the kernel reuses after the namespace is gone.
    inode: u64,
    /// Its unique id, never reused, if the kernel reports it.
    number: Option<u64>,
    /// A process inside; `None`: this process's own namespace.
    member: Option<Process>,
}

impl Namespace {
    /// Returns the namespace of this process.
    pub(crate) fn own() -> Result<Self, MountError> {
        let (inode, number) = identify(OWN.as_ref())?;
        Ok(Self { inode, number, member: None })
    }

    /// Returns the namespace of `process`.
    pub(crate) fn of(process: &Process) -> Result<Self, MountError> {
        let found = identify(&link(process.pid()));
        // If this process has exited, the file may have been another process's.
        if !process.is_alive() {
            return Err(MountError::NoProcess(process.pid()));
        }
        let (inode, number) = found?;
        let own = Self::own()?;
        if inode == own.inode {
            return Ok(own);
        }
        Ok(Self { inode, number, member: Some(process.clone()) })
    }

    /// Returns the namespace with this file inode if it has a process: `member` if it is still
    /// inside, else one found earlier, else one found by a scan of all processes.
    pub(crate) fn find(inode: u64, member: Option<ProcessId>) -> Result<Option<Self>, MountError> {
        let own = Self::own()?;
        if inode == own.inode {
            return Ok(Some(own));
        }
        let known = KNOWN.lock().as_ref().and_then(|known| known.get(&inode).copied());
        for process in member.into_iter().chain(known) {
            if let Some(found) = Self::with_member(inode, process.hold()) {
                return Ok(Some(found));
            }
        }
        let found = Self::search(inode)?;
        let mut known = KNOWN.lock();
        let known = known.get_or_insert_default();
        match found.as_ref().and_then(|found| found.member.as_ref()) {
            Some(process) => {
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                known.insert(inode, process.id());
            }
            None => drop(known.remove(&inode)),
        }
        Ok(found)
    }

    /// Returns the namespace if `process` is in it.
    fn with_member(inode: u64, process: io::Result<Option<Process>>) -> Option<Self> {
        let found = Self::of(&process.ok()??).ok()?;
        (found.inode == inode).then_some(found)
    }

    fn search(inode: u64) -> Result<Option<Self>, MountError> {
        #[cfg(test)]
        tests::SEARCHES.with(|searches| searches.set(searches.get() + 1));
        let processes = fs::read_dir("/proc").map_err(MountError::io("list", "/proc".as_ref()))?;
        for process in processes.flatten() {
            let name = process.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let same = fs::metadata(link(pid)).is_ok_and(|meta| meta.ino() == inode);
            if same && let Some(found) = Self::with_member(inode, Process::hold(pid)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns a process inside, unless it is this process's own namespace.
    pub(crate) fn member(self) -> Option<Process> {
        self.member
    }

    /// Reports whether it differs from this process's namespace.
    pub(crate) fn is_other(&self) -> bool {
        self.member.is_some()
    }

    /// Lists its mounts. Paths are relative to its root.
    pub(crate) fn mounts(&self) -> Result<Vec<MountLine>, MountError> {
        const LIST: &str = "thread-self/mountinfo";
        // Open /proc before entering: inside, it may be another one or missing.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open("/proc", flags, Mode::empty());
        let proc = proc.map_err(MountError::io("open", "/proc".as_ref()))?;
        self.inside(|| {
            let mut text = Vec::new();
            let list = openat(&proc, LIST, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            list.map_err(io::Error::from)
                .and_then(|list| fs::File::from(list).read_to_end(&mut text))
                .map_err(MountError::io("read", LIST.as_ref()))?;
            Ok(mountinfo::parse(&text))
        })
    }

    /// Returns its unique id. If the kernel does not report it directly, it is taken from the mount
    /// `inside`.
    pub(crate) fn number(&self, inside: u64) -> Result<u64, MountError> {
        let failed = || MountError::io("find the number of", "a mount namespace".as_ref());
        if let Some(number) = self.number {
            return Ok(number);
        }
        let asked = self.inside(|| match kernel::namespace_of(inside, 0) {
            // The file's inode is the best id that such a kernel has.
            Err(error) if kernel::is_unsupported(&error) => Ok(Some(self.inode)),
            other => other.map_err(failed()),
        })?;
        asked.ok_or_else(|| failed()(io::Error::from(io::ErrorKind::NotFound)))
    }

    /// Returns the inode of its file in `/proc`.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` inside, where paths start at the namespace's root. For another namespace, this
    /// takes a dedicated thread that ends with `work`.
    pub(crate) fn inside<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, MountError> + Send,
    ) -> Result<T, MountError> {
        if self.member.is_some() { self.apart(work) } else { work() }
    }

    /// Runs `work` inside on a dedicated thread, which also has its own working directory.
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

/// Returns the inode and the unique id of the namespace with the file `path`.
fn identify(path: &Path) -> Result<(u64, Option<u64>), MountError> {
    let file = fs::File::open(path).map_err(MountError::io("open", path))?;
    let inode = file.metadata().map_err(MountError::io("look at", path))?.ino();
    Ok((inode, kernel::number_of(file.as_fd()).ok()))
}

fn link(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/mnt"))
}

/// Opens the root directory of process `pid`.
pub(super) fn root_of(pid: u32) -> io::Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::{Command, Stdio};

    thread_local! {
        /// The number of full scans by this thread.
        pub(super) static SEARCHES: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn all_processes_are_looked_at_only_where_none_inside_is_known() {
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let process = Process::hold(child.id()).unwrap().unwrap();
        let inode = Namespace::of(&process).unwrap().inode();
        let searches = || SEARCHES.with(Cell::get);
        let before = searches();
        assert!(Namespace::find(inode, Some(process.id())).unwrap().is_some());
        assert_eq!(searches(), before);
        // Once found, the member is cached.
        for _ in 0..3 {
            assert!(Namespace::find(inode, None).unwrap().is_some());
        }
        assert_eq!(searches(), before + 1);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(Namespace::find(inode, Some(process.id())).unwrap().is_none());
        assert!(matches!(Namespace::of(&process), Err(MountError::NoProcess(_))));
    }

    #[test]
    fn this_process_is_in_its_own_namespace() {
        let own = Namespace::own().unwrap();
        let same = Namespace::of(&Process::hold(std::process::id()).unwrap().unwrap()).unwrap();
        assert!(same.member.is_none() && same.inode() == own.inode());
        // Both ways to its id agree.
        let root = super::super::target::mount_number(fs::File::open("/").unwrap()).unwrap();
        let asked = Namespace { number: None, ..own.clone() }.number(root).unwrap();
        assert_eq!(own.number(root).unwrap(), asked);
        assert!(Namespace::find(own.inode(), None).unwrap().is_some());
        assert!(Namespace::find(1, None).unwrap().is_none());
        assert_eq!(own.inside(|| Ok(7)).unwrap(), 7);
    }
}
