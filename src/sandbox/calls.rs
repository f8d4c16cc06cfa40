//! Calls of the runtime that have outlived the monitor which made them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::error::SandboxError;
use super::layout::Layout;

/// How long a killed call may take to be gone.
const END_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Kills the calls of a sandbox's runtime that are under way, with what they have started.
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
    // Only now, the number can't pass to another process unseen.
    if is_call(layout, number) {
        // It leads a group; where it does not, there is none of its number.
        kill_process_group(pid, Signal::KILL).ok();
        pidfd_send_signal(handle, Signal::KILL).ok();
    }
}

fn find(layout: &Layout) -> Result<Vec<i32>, SandboxError> {
    let entries = fs::read_dir("/proc").map_err(SandboxError::io("list", "/proc".as_ref()))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| is_call(layout, *pid)).collect())
}

/// Whether the words of a process are those of a call: they name the directory of the runtime's
/// records, which is this sandbox's alone. A process that has ended has no words.
fn is_call(layout: &Layout, pid: i32) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let root = layout.runtime_root();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    // Not at a certain place: a script has its interpreter before it.
    words.windows(2).any(|pair| *pair == [b"--root".as_slice(), root.as_os_str().as_bytes()])
}
