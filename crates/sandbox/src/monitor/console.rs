//! Receives a pseudo-terminal from the runtime, which sends the master's descriptor to a socket.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// A socket for one terminal. Its file is removed on drop.
#[derive(Debug)]
pub(super) struct Console {
    listener: UnixListener,
    file: PathBuf,
    /// The directory. Its path through this descriptor fits into a socket address, however long the
    /// real path is.
    dir: File,
    name: String,
}

impl Console {
    /// Listens in `dir`, which must be private, under a name unique to `number`.
    pub(super) fn listen(dir: &Path, number: u64) -> io::Result<Self> {
        let name = format!("console-{number}.sock");
        let file = dir.join(&name);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let dir = File::open(dir)?;
        let listener = UnixListener::bind(short(&dir, &name))?;
        // By the time the runtime has exited, the message has arrived: never block for it.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, file, dir, name })
    }

    /// Returns the path of the socket, valid in other processes such as the runtime.
    pub(super) fn path(&self) -> PathBuf {
        short(&self.dir, &self.name)
    }

    /// Receives the master. Call it after the runtime has succeeded.
    pub(super) fn master(&self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        let mut name = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&socket, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message
                && let Some(fd) = fds.next()
            {
                return Ok(fd);
            }
        }
        Err(io::Error::other("the runtime has sent no terminal"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).ok();
    }
}

fn short(dir: &File, name: &str) -> PathBuf {
    format!("/proc/{}/fd/{}/{name}", std::process::id(), dir.as_raw_fd()).into()
}
