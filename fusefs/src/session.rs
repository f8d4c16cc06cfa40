//! A mounted snapshot: from `mount(2)` to the last thread's end.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use inlay_store::format::{Index, InodeIdx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::content::ContentSource;
use crate::control::{cut_connection, device_minor, raise_read_ahead};
use crate::counters::RequestCounters;
use crate::ended::{EndOnDrop, Ended};
use crate::error::MountError;
use crate::fs::SnapshotFs;
use crate::fuse::Adapter;
use crate::host::Host;
use crate::kind::ConnectionKind;

/// What `mount` and `df` show as the source of this program's mounts.
pub const SOURCE: &str = "inlay";
/// The filesystem type; what follows the dot is the subtype that `mount` shows.
pub(crate) const FS_TYPE: &str = "fuse.inlay";
/// How long a forced unmount may take before its threads are left behind. The kernel wakes them at
/// once when the connection ends; what takes time is a request that is being served.
pub(crate) const END_WITHIN: Duration = Duration::from_secs(10);
/// How long an unmounted filesystem is given to end by itself, before the connection is cut.
pub(crate) const END_BY_ITSELF: Duration = Duration::from_secs(1);

/// Whether a mount honours what gives its programs rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Privileges {
    /// setuid and setgid bits, file capabilities and device nodes work, as a root filesystem needs.
    #[default]
    Honoured,
    /// They don't (`nosuid`, `nodev`).
    Ignored,
}

/// What to do about a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfBusy {
    /// Leave it mounted and say so.
    Refuse,
    /// Take it out of the tree and end it: processes that use it get errors.
    Force,
}

/// How to mount a snapshot.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Threads that answer the kernel. More than cores, because a page fault in the index may wait
    /// for the disk.
    pub threads: NonZeroUsize,
    /// Whether setuid bits and device nodes work.
    pub privileges: Privileges,
    /// How far the kernel reads ahead in a file that is read in order, in KiB.
    pub read_ahead_kib: u32,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = NonZeroUsize::new((2 * cores).min(8)).unwrap_or(NonZeroUsize::MIN);
        Self { threads, privileges: Privileges::default(), read_ahead_kib: 1024 }
    }
}

/// A snapshot that is mounted and served. Dropping it unmounts, by force if it is in use.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    counters: Arc<RequestCounters>,
    ended: Arc<Ended>,
    server: Option<JoinHandle<io::Result<()>>>,
    device: Option<u32>,
}

impl Mount {
    /// Mounts the snapshot read-only on `mountpoint`, an existing directory, and serves it on
    /// threads of its own. Needs root. When this returns, the files are there.
    pub fn new(
        index: Index,
        source: Arc<dyn ContentSource>,
        mountpoint: &Path,
        options: &MountOptions,
    ) -> Result<Self, MountError> {
        index.dir(InodeIdx::ROOT)?;
        let mountpoint = existing_directory(mountpoint)?;
        let counters = Arc::new(RequestCounters::default());
        let host = Host::of_one(SnapshotFs::new(index, source), Arc::clone(&counters));
        let adapter = Adapter::new(Arc::new(host), ConnectionKind::General);
        let device = open_device(&mountpoint, options.privileges)?;
        let ended = Arc::new(Ended::default());
        let server = start(adapter, device, options.threads, Arc::clone(&ended));
        let server = server.map_err(|source| {
            if let Err(error) = unmount(&mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            {
                tracing::warn!(mountpoint = %mountpoint.display(), %error, "left mounted");
            }
            MountError::Session { path: mountpoint.clone(), source }
        })?;
        let device = device_minor(&mountpoint);
        if let Some(minor) = device {
            raise_read_ahead(minor, options.read_ahead_kib);
        }
        Ok(Self { mountpoint, counters, ended, server: Some(server), device })
    }

    /// Where it is mounted: absolute, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The requests of the kernel so far.
    pub fn counters(&self) -> &Arc<RequestCounters> {
        &self.counters
    }

    /// Tells when the filesystem is no longer mounted anywhere, whoever unmounted it.
    pub fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }

    /// Takes the mount out of the tree and returns at once. What is in use goes on being served:
    /// open files, and an overlay above it. [`Mount::ended`] tells when the last of it is gone.
    pub fn detach(&self) -> Result<(), MountError> {
        match unmount(&self.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.refused(errno)),
        }
    }

    /// Unmounts, and waits for the threads that served it. Does nothing if that was done before.
    ///
    /// With [`IfBusy::Force`], reads that still wait fail, and every wait here is bounded.
    pub fn unmount(&mut self, if_busy: IfBusy) -> Result<(), MountError> {
        if self.server.is_none() {
            return Ok(());
        }
        if !self.ended.within(Duration::ZERO) {
            match unmount(&self.mountpoint, UnmountFlags::NOFOLLOW) {
                // Somebody else took it out of the tree, lazily: it lives while it is used.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(Errno::BUSY) if if_busy == IfBusy::Force => self.cut_and_detach()?,
                Err(Errno::BUSY) => return Err(MountError::Busy(self.mountpoint.clone())),
                Err(errno) => return Err(self.refused(errno)),
            }
            self.end()?;
        }
        self.join();
        Ok(())
    }

    /// `MNT_FORCE` cuts the connection, so that all that waits fails; `MNT_DETACH` then takes the
    /// mount out of the tree, although files are open.
    fn cut_and_detach(&self) -> Result<(), MountError> {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        unmount(&self.mountpoint, flags).map_err(|errno| self.refused(errno))
    }

    fn end(&self) -> Result<(), MountError> {
        if self.ended.within(END_BY_ITSELF) {
            return Ok(());
        }
        // A copy of the mount lives in another mount namespace, or it was unmounted lazily before
        // and is still used.
        if let Some(Err(error)) = self.device.map(cut_connection) {
            tracing::warn!(%error, "can't cut the FUSE connection");
        }
        if self.ended.within(END_WITHIN) { Ok(()) } else { Err(self.refused(Errno::BUSY)) }
    }

    fn join(&mut self) {
        match self.server.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => tracing::warn!(%error, "the FUSE session ended with an error"),
            Some(Err(_)) => tracing::error!("a thread that served the kernel panicked"),
        }
    }

    fn refused(&self, errno: Errno) -> MountError {
        MountError::Unmount { path: self.mountpoint.clone(), source: errno.into() }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(IfBusy::Force) {
            tracing::error!(%error, "a mount could not be ended");
        }
    }
}

fn existing_directory(path: &Path) -> Result<PathBuf, MountError> {
    let wrong = |why| MountError::Mountpoint { path: path.to_owned(), why };
    let real = path.canonicalize().map_err(wrong)?;
    if real.metadata().map_err(wrong)?.is_dir() {
        Ok(real)
    } else {
        Err(wrong(io::ErrorKind::NotADirectory.into()))
    }
}

/// Opens the FUSE device and mounts it with `mount(2)`: `fusermount`, which does it for those who
/// are not root, would force `nosuid` and `nodev`.
fn open_device(mountpoint: &Path, privileges: Privileges) -> Result<OwnedFd, MountError> {
    let device =
        File::options().read(true).write(true).open("/dev/fuse").map_err(MountError::Device)?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    let refused = |errno: Errno| match errno {
        Errno::PERM => MountError::NotPermitted(mountpoint.to_owned()),
        other => MountError::Mount { path: mountpoint.to_owned(), source: other.into() },
    };
    let data = CString::new(data).map_err(|_| refused(Errno::INVAL))?;
    let flags = match privileges {
        Privileges::Honoured => MountFlags::RDONLY,
        Privileges::Ignored => MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
    };
    mount(SOURCE, mountpoint, FS_TYPE, flags, data.as_c_str()).map_err(refused)?;
    Ok(device.into())
}

fn start(
    adapter: Adapter,
    device: OwnedFd,
    threads: NonZeroUsize,
    ended: Arc<Ended>,
) -> io::Result<JoinHandle<io::Result<()>>> {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads.get());
    let session = Session::from_fd(adapter, device, SessionACL::All, config)?;
    std::thread::Builder::new().name("inlay-fuse".into()).spawn(move || {
        let _end = EndOnDrop::new(ended);
        session.run()
    })
}
