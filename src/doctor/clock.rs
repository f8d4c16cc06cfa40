//! Checks whether the clock is synchronized.
#![allow(unsafe_code, reason = "adjtimex(2) has no safe wrapper here")]

use std::io;

/// Whether a time service synchronizes the clock, i.e. the kernel's `STA_UNSYNC` is clear.
pub(super) fn is_synchronized() -> io::Result<bool> {
    // SAFETY: all-zero is a valid timex; with no modes set, the kernel changes nothing.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes only to `time`, which outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        super::is_synchronized().unwrap();
    }
}
