//! Non-blocking I/O on one end of a pipe or pseudo-terminal.
#![allow(unsafe_code, reason = "tokio has no safe way to wait for a terminal")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use super::super::protocol::WindowSize;

/// A descriptor set to non-blocking mode. Its open file description must not be shared with another
/// process, which would see the mode, too.
#[derive(Debug)]
pub(super) struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        // SAFETY: an `OwnedFd` returns the same open descriptor for as long as it lives, and it is
        // owned by the `AsyncFd` that it is registered with.
        let fd = unsafe { AsyncFd::register(fd) };
        Ok(Self(fd?))
    }

    /// Reads some bytes; 0 at the end of file. A terminal that no process has open any more is at
    /// its end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let outcome = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buffer)?));
            match outcome {
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return outcome,
                Err(_would_block) => {}
            }
        }
    }

    /// Returns the number of bytes that can be read without blocking.
    pub(super) fn waiting(&self) -> io::Result<usize> {
        let waiting = rustix::io::ioctl_fionread(self.0.get_ref())?;
        usize::try_from(waiting).map_err(io::Error::other)
    }

    /// Writes all bytes.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let outcome = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?));
            match outcome {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Sets the size of a terminal.
    pub(super) fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.get_ref(), size)?)
    }
}
