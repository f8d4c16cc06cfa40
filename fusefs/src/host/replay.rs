//! Replays requests that an earlier server left unanswered, on kernels that cannot resend them, and
//! those that this server left itself because a snapshot was not open yet.
//!
//! A separate fuser session reads the requests from a socket instead of the kernel's device. Its
//! replies come back through the socket and are forwarded to the device.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use super::Host;
use crate::fuse::{Adapter, Origin};
use crate::inflight::{InFlight, Unique};
use crate::kind::ConnectionKind;

/// Polling interval for waiting requests, in case no event reports that their snapshot is open.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Room for the longest reply that passes through the socket: a listing. Contents and entries go to
/// the device directly.
const ANSWER_ROOM: usize = 1 << 20;
const OUT_HEADER_LEN: usize = 16;

/// The thread that replays requests of one connection, and the fuser session that serves them.
#[derive(Debug)]
pub(super) struct Replayer {
    ours: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Replayer {
    /// Starts the replay for the connection `kind`, with the INIT request `init`. Requires a host
    /// that records requests in flight.
    pub(super) fn start(
        host: &Arc<Host>,
        kind: ConnectionKind,
        device: &Arc<OwnedFd>,
        init: &[u8],
    ) -> io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for end in [&ours, &theirs] {
            set_socket_send_buffer_size_force(end, 2 * ANSWER_ROOM)?;
        }
        write(&ours, init)?;
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(NonZeroUsize::MIN.get());
        let adapter = Adapter::new(Arc::clone(host), kind, Origin::Records);
        let session = Session::from_fd(adapter, theirs, SessionACL::All, config)?;
        let mut asker = Asker {
            host: Arc::clone(host),
            kind,
            device: Arc::clone(device),
            socket: Arc::new(ours),
            stop: Arc::default(),
            answer: vec![0; ANSWER_ROOM + OUT_HEADER_LEN],
        };
        // The INIT reply; the kernel already has one.
        read(&asker.socket, &mut asker.answer[..])?;
        let (ours, stop) = (Arc::clone(&asker.socket), Arc::clone(&asker.stop));
        let mut made = Self { ours, stop, threads: Vec::new() };
        let closing = Arc::clone(&made.stop);
        let serve = move || match session.run() {
            Err(error) if !closing.load(SeqCst) => {
                tracing::error!(%error, %kind, "can't ask the kernel to resend waiting requests");
            }
            _ => {}
        };
        made.spawn("inlay-replay-fuse", serve)?;
        made.spawn("inlay-replay", move || asker.run())?;
        Ok(made)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(run)?);
        Ok(())
    }
}

impl Drop for Replayer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        // Both threads read end-of-file from the socket and exit.
        let _ = shutdown(&self.ours, Shutdown::Both);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a replay thread panicked");
            }
        }
    }
}

struct Asker {
    host: Arc<Host>,
    kind: ConnectionKind,
    device: Arc<OwnedFd>,
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    answer: Vec<u8>,
}

impl Asker {
    fn run(mut self) {
        let host = Arc::clone(&self.host);
        let Some(in_flight) = host.shared.in_flight() else { return };
        while !self.stop.load(SeqCst) {
            if let Err(error) = self.turn(in_flight) {
                tracing::error!(%error, kind = %self.kind, "can't ask the kernel to resend waiting requests");
                return;
            }
        }
    }

    fn turn(&mut self, in_flight: &InFlight) -> io::Result<()> {
        let limit = in_flight
            .waits(self.kind)
            .then(|| Timespec::try_from(LOOK_AGAIN).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 }));
        let wake = in_flight.wake(self.kind).ok_or(io::ErrorKind::NotFound)?;
        let mut fds = [
            PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
        ];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [answered, woken] = fds.map(|fd| !fd.revents().is_empty());
        if answered {
            self.pass_on(in_flight)?;
        }
        if woken {
            read(wake, &mut [0u8; 8][..])?;
        }
        self.ask(in_flight)
    }

    /// Replays the requests that can be answered now.
    fn ask(&mut self, in_flight: &InFlight) -> io::Result<()> {
        let host = &self.host;
        let mut texts = in_flight.take_left(self.kind, |node| host.can_answer(node))?.into_iter();
        while let Some(text) = texts.next() {
            let flags = rustix::net::SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, text.bytes(), flags) {
                Ok(_) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => {
                    // fuser's queue is full.
                    in_flight.put_back(self.kind, text.unique());
                    texts.for_each(|text| in_flight.put_back(self.kind, text.unique()));
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Forwards a reply to the kernel.
    fn pass_on(&mut self, in_flight: &InFlight) -> io::Result<()> {
        let len = match read(&self.socket, &mut self.answer[..]) {
            Ok(len) => len,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let answer = self.answer.get(..len).unwrap_or_default();
        let Some(unique) = answer.get(8..OUT_HEADER_LEN).and_then(|bytes| bytes.first_chunk())
        else {
            // End of the socket.
            self.stop.store(true, SeqCst);
            return Ok(());
        };
        let unique = Unique(u64::from_ne_bytes(*unique));
        match write(&self.device, answer) {
            // ENOENT: it was answered before, or the caller was interrupted.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::warn!(%error, "the kernel rejected a reply"),
        }
        in_flight.answered(self.kind, unique, None);
        Ok(())
    }
}
