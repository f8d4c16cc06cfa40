//! Resets the signal mask and dispositions that this process inherited.
//!
//! Children inherit blocked and ignored signals: the keeper blocks signals in order to read them,
//! shells ignore some in background jobs, and nohup(1) ignores SIGHUP. A process that waits for
//! SIGCHLD must not inherit these, and the programs of a sandbox expect the defaults of a freshly
//! booted host.
#![allow(unsafe_code, reason = "no safe crate here sets a process's mask and dispositions")]

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Last standard signal; those after it are real-time signals.
const LAST_STANDARD: libc::c_int = 31;

/// Unblocks all signals in this thread and the threads it starts.
pub fn unblock_all() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set, and `pthread_sigmask` only reads it. Neither can
    // fail with these arguments.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), null_mut());
    }
}

/// Restores the default disposition of SIGCHLD if it is ignored: otherwise the kernel reaps
/// children before the process can wait for them.
pub fn unignore_child() {
    unignore(libc::SIGCHLD);
}

/// Restores the default disposition of all ignored standard signals but SIGPIPE, which Rust
/// programs ignore and restore in their children.
pub fn unignore_all() {
    (1..=LAST_STANDARD).filter(|signal| *signal != libc::SIGPIPE).for_each(unignore);
}

/// Restores the default action of these signals, which ends the process.
pub fn end_by(signals: &[libc::c_int]) {
    for signal in signals {
        // SAFETY: the default action runs no code of this process. An invalid number fails without
        // effect.
        unsafe { libc::signal(*signal, libc::SIG_DFL) };
    }
}

fn unignore(signal: libc::c_int) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: an all-zero `sigaction` is valid: no flags, an empty mask, the default action. It is
    // valid for both calls, the one that writes it and the one that reads it. A signal without a
    // settable disposition, such as SIGKILL, is rejected with an error and unchanged.
    unsafe {
        if libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init_ref().sa_sigaction == libc::SIG_IGN
        {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
