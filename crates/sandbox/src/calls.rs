//! Kills OCI runtime invocations that outlived their monitor.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::error::SandboxError;
use super::layout::Layout;

/// Deadline for all killed invocations to exit.
const END_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Kills every running invocation of the sandbox's runtime, with its process group. Fails with
/// [`SandboxError::DoNotEnd`] if any is left after [`END_WITHIN`].
pub(super) fn kill_all(layout: &Layout) -> Result<(), SandboxError> {
    let deadline = Instant::now() + END_WITHIN;
    loop {
        let calls = find(layout)?;
        if calls.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(SandboxError::DoNotEnd(layout.id().to_string()));
        }
        for pid in calls {
            kill(layout, pid);
        }
        thread::sleep(PAUSE);
    }
}

fn kill(layout: &Layout, number: i32) {
    let Some(pid) = Pid::from_raw(number) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    // Check after opening the pidfd: from here on, reuse of the pid can't go unnoticed.
    if is_call(layout, number) {
        // An invocation leads a process group of its own. If it does not, no group has this id, and
        // the call is a no-op.
        kill_process_group(pid, Signal::KILL).ok();
        pidfd_send_signal(handle, Signal::KILL).ok();
    }
}

fn find(layout: &Layout) -> Result<Vec<i32>, SandboxError> {
    let entries = fs::read_dir("/proc").map_err(SandboxError::io("list", "/proc".as_ref()))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| is_call(layout, *pid)).collect())
}

/// Reports whether `pid` is a runtime invocation for this sandbox: its arguments name the runtime's
/// state directory, which is unique to the sandbox. The arguments of an exited process are empty.
fn is_call(layout: &Layout, pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let root = layout.runtime_root();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    // At any position: for a script, the interpreter comes first.
    words.windows(2).any(|pair| *pair == [b"--root".as_slice(), root.as_os_str().as_bytes()])
}
