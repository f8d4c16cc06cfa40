//! Adopts a connection: the handshake that fuser requires, and the threads that serve it.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::fuse::Adapter;
use crate::raw::replace;

/// Maximum length of an INIT reply.
const REPLY_ROOM: usize = 4096;

/// A session with the kernel that is ready to run.
#[derive(Debug)]
pub(super) struct Adopted {
    session: Session<Adapter>,
    threads: NonZeroUsize,
}

impl Adopted {
    /// Performs fuser's handshake with a stand-in for the kernel that sends `init`, then replaces
    /// the stand-in with the real device. Sends the INIT reply to the kernel if it still waits for
    /// one.
    pub(super) fn new(
        adapter: Adapter,
        device: &Arc<OwnedFd>,
        init: &[u8],
        threads: NonZeroUsize,
    ) -> io::Result<Self> {
        let (stand_in, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::io::write(&stand_in, init)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(threads.get());
        let session = Session::from_fd(adapter, ours, SessionACL::All, config)?;
        let mut reply = [0; REPLY_ROOM];
        let len = rustix::io::read(&stand_in, &mut reply[..])?;
        replace(session.as_fd(), device.as_fd())?;
        match rustix::io::write(device, reply.get(..len).unwrap_or_default()) {
            // ENOENT: an earlier server has replied.
            Ok(_) | Err(Errno::NOENT) => Ok(Self { session, threads }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns the number of threads.
    pub(super) fn threads(&self) -> usize {
        self.threads.get()
    }

    /// Serves the kernel until the connection ends.
    pub(super) fn run(self) -> io::Result<()> {
        self.session.run()
    }
}
