//! A mounted FUSE connection, as the keeper holds it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::error::KeeperError;
use crate::control::has_ended;
use crate::kind::ConnectionKind;

/// Source of this program's mounts, as shown by `mount` and `df`.
pub const SOURCE: &str = "inlay";
/// Filesystem type, with the subtype that `mount` shows after the dot.
const FS_TYPE: &str = "fuse.inlay";
/// Timeout for the kernel's INIT request on a new connection.
const INIT_WITHIN: Duration = Duration::from_secs(10);
/// INIT has 104 bytes today; the kernel requires a buffer of at least 8 KiB.
const INIT_ROOM: usize = 64 << 10;
/// Maximum number of stacked mounts of dead keepers that are removed.
const LEFTOVERS_MAX: usize = 16;

/// A mounted connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) kind: ConnectionKind,
    pub(super) device: OwnedFd,
    /// The kernel's INIT request. The first server answers it.
    pub(super) init: Vec<u8>,
    pub(super) mountpoint: PathBuf,
}

impl Connection {
    /// Mounts a connection of this kind below `dir`.
    pub(super) fn open(kind: ConnectionKind, dir: &Path) -> Result<Self, KeeperError> {
        let mountpoint = dir.join(kind.name());
        clear(&mountpoint);
        std::fs::create_dir_all(&mountpoint).map_err(failed("make", &mountpoint))?;
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(failed("open", Path::new("/dev/fuse")))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let data = CString::new(data).map_err(|_| KeeperError::Message("NUL".into()))?;
        mount(SOURCE, &mountpoint, FS_TYPE, MountFlags::RDONLY, data.as_c_str()).map_err(
            |errno| match errno {
                Errno::PERM => KeeperError::NotPermitted(mountpoint.clone()),
                other => failed("mount on", &mountpoint)(other.into()),
            },
        )?;
        let mut made = Self { kind, device: device.into(), init: Vec::new(), mountpoint };
        match first_request(&made.device) {
            Ok(init) => made.init = init,
            Err(source) => {
                let failure = failed("greet the kernel for", &made.mountpoint)(source);
                made.unmount();
                return Err(failure);
            }
        }
        Ok(made)
    }

    /// Returns whether the kernel has ended it: it is mounted nowhere any more.
    pub(super) fn has_ended(&self) -> bool {
        has_ended(&self.device)
    }

    /// Unmounts it lazily. Files in use keep it alive until they are closed.
    pub(super) fn unmount(&self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if let Err(error) = unmount(&self.mountpoint, flags)
            && !matches!(error, Errno::INVAL | Errno::NOENT)
        {
            tracing::warn!(%error, mountpoint = %self.mountpoint.display(), "left mounted");
        }
    }
}

/// Unmounts the leftovers of a killed keeper at `mountpoint`.
fn clear(mountpoint: &Path) {
    // `MNT_FORCE` aborts the connection. A thread of the killed server may wait for a request to its own
    // mount, e.g. while it copied files from there: it can't be killed, and its process holds the device.
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    for _ in 0..LEFTOVERS_MAX {
        if unmount(mountpoint, flags).is_err() {
            return;
        }
        tracing::info!(mountpoint = %mountpoint.display(), "removed the mount of a dead keeper");
    }
}

/// Reads the kernel's first request on a new connection.
pub(crate) fn first_request(device: impl AsFd) -> io::Result<Vec<u8>> {
    let mut fds = [PollFd::new(&device, PollFlags::IN)];
    let limit = Timespec::try_from(INIT_WITHIN).map_err(io::Error::other)?;
    if poll(&mut fds, Some(&limit))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut request = vec![0; INIT_ROOM];
    let len = rustix::io::read(&device, &mut request[..])?;
    request.truncate(len);
    Ok(request)
}

pub(super) fn failed<'p>(
    what: &'static str,
    path: &'p Path,
) -> impl FnOnce(io::Error) -> KeeperError + 'p {
    move |source| KeeperError::Start { what, path: path.to_owned(), source }
}
