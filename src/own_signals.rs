//! This process's own signals: rid of what it has inherited from whoever has started it.
//!
//! What a process blocks or ignores, the programs that it starts block and ignore, too: the keeper blocks
//! signals to read them, shells ignore some for what runs in the background, nohup(1) another. A
//! process that waits for SIGCHLD must not inherit that, and a sandbox's programs are to find signals
//! as they are on a host that has just started.
#![allow(unsafe_code, reason = "no safe crate here sets a process's mask and dispositions")]

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// The last of the signals that have names. Those after it are real-time signals.
const LAST_STANDARD: libc::c_int = 31;

/// Blocks no signal any more in this thread, and in those that it starts.
pub(crate) fn unblock_all() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the set, which the other call only reads. Neither can fail with
    // these arguments.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), null_mut());
    }
}

/// Gives the signal that tells of a child's end its usual meaning again, if it is ignored: else ended
/// children vanish before anybody has waited for them.
pub(crate) fn unignore_child() {
    unignore(libc::SIGCHLD);
}

/// The same for all signals but SIGPIPE, which Rust's programs ignore, and give back to what they start.
pub(crate) fn unignore_all() {
    (1..=LAST_STANDARD).filter(|signal| *signal != libc::SIGPIPE).for_each(unignore);
}

fn unignore(signal: libc::c_int) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: zeroes are a `sigaction`: no flags, an empty mask, the default action. It is valid for
    // the call that writes and for the one that reads it. A signal that has no disposition, as SIGKILL,
    // is refused with an error and left as it is.
    unsafe {
        if libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init_ref().sa_sigaction == libc::SIG_IGN
        {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
