//! Signals of the keeper's process, as something to poll.
#![allow(unsafe_code, reason = "no safe crate here masks signals and reads them")]

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{FromRawFd, OwnedFd};

/// What a signal asks the keeper to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signalled {
    /// End it all.
    Stop,
    /// A child has ended.
    Child,
    /// Nothing: the terminal is gone, or somebody pressed a key there.
    Nothing,
}

/// Signals that are kept from the process and read here instead.
#[derive(Debug)]
pub(super) struct Signals(File);

impl Signals {
    /// Blocks them for this thread, and so for those it starts, and for the programs that it starts
    /// unless they unblock them.
    pub(super) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set that the other calls then read; the numbers are
        // of signals; `signalfd` makes a new descriptor that nobody else owns.
        let made = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in [
                libc::SIGTERM,
                libc::SIGHUP,
                libc::SIGINT,
                libc::SIGQUIT,
                libc::SIGTSTP,
                libc::SIGUSR1,
                libc::SIGUSR2,
                libc::SIGCHLD,
            ] {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and owned by nobody else.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(made) })))
    }

    /// The next one, if there is one.
    pub(super) fn next(&mut self) -> Option<Signalled> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // The first field, 32 bits, is the signal's number.
        let number = info.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        Some(match i32::try_from(number) {
            Ok(libc::SIGTERM) => Signalled::Stop,
            Ok(libc::SIGCHLD) => Signalled::Child,
            _ => Signalled::Nothing,
        })
    }

    /// To poll.
    pub(super) fn file(&self) -> &File {
        &self.0
    }
}
