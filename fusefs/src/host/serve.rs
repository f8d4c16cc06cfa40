//! Adopting a connection: the handshake that fuser insists on, and the threads that answer.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::fuse::Adapter;
use crate::raw::replace;

/// The longest answer to INIT that is read.
const REPLY_ROOM: usize = 4096;

/// A session with the kernel that is ready to run.
#[derive(Debug)]
pub(super) struct Adopted {
    session: Session<Adapter>,
}

impl Adopted {
    /// Shakes hands with a stand-in for the kernel that sends `init`, then puts the real device in
    /// its place. If the kernel still waits for the answer to its INIT, it gets it.
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
            // An earlier server has answered.
            Ok(_) | Err(Errno::NOENT) => Ok(Self { session }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Answers the kernel until the connection ends.
    pub(super) fn run(self) -> io::Result<()> {
        self.session.run()
    }
}
