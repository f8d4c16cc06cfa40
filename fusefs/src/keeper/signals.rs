//! Reads the keeper's signals through a pollable descriptor.
#![allow(unsafe_code, reason = "no safe crate here masks signals and reads them")]

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{FromRawFd, OwnedFd};

/// Effect of a signal on the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signalled {
    /// Stop the keeper.
    Stop,
    /// A child process has exited.
    Child,
    /// Ignored: the terminal is gone, or a key was pressed there.
    Nothing,
}

/// Signals blocked for the process and read from a signalfd.
#[derive(Debug)]
pub(super) struct Signals(File);

impl Signals {
    /// Blocks the signals for this thread, the threads it starts, and its child processes unless
    /// they unblock them.
    pub(super) fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set that the other calls then read; the numbers are
        // valid signals; `signalfd` returns a new descriptor without another owner.
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
        // SAFETY: just created, without another owner.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(made) })))
    }

    /// Returns the next pending signal, if any.
    pub(super) fn next(&mut self) -> Option<Signalled> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        self.0.read_exact(&mut info).ok()?;
        // The first field, 32 bits, is the signal number.
        let number = info.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
        Some(match i32::try_from(number) {
            Ok(libc::SIGTERM) => Signalled::Stop,
            Ok(libc::SIGCHLD) => Signalled::Child,
            _ => Signalled::Nothing,
        })
    }

    /// Returns the descriptor to poll.
    pub(super) fn file(&self) -> &File {
        &self.0
    }
}
