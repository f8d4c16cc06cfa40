//! Unix sockets, reachable however long their paths are.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The longest path that an address of a unix socket holds, with its final zero.
const ADDRESS_LEN_MAX: usize = 108;

/// Connects to who listens at `path`.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    with_short_path(path, |short| UnixStream::connect(short))
}

/// Does something with the socket at `path` under a name that an address can hold.
pub(crate) fn with_short_path<T>(
    path: &Path,
    act: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    if path.as_os_str().len() < ADDRESS_LEN_MAX {
        return act(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // The directory under a short name, for as long as it is open.
    let dir = File::open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    act(&short)
}
