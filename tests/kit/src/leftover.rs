//! What a state directory's daemon and keeper have left: processes, mounts and loop devices, found by
//! the path of the state, which no other test has.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Processes and mounts of one state.
#[derive(Debug)]
pub struct Leftover {
    keepers: Vec<Pid>,
    daemons: Vec<Pid>,
    mounts: Vec<PathBuf>,
}

/// What there is of `state` now.
pub fn of(state: &Path) -> io::Result<Leftover> {
    let mut left = Leftover { keepers: Vec::new(), daemons: Vec::new(), mounts: Vec::new() };
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone in the meantime, or a zombie: nothing to end.
        let Ok(words) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        if !words.contains(&state.as_os_str().as_bytes()) {
            continue;
        }
        match words.get(1) {
            Some(&b"keeper") => left.keepers.extend(Pid::from_raw(pid)),
            Some(&b"daemon") => left.daemons.extend(Pid::from_raw(pid)),
            _ => {}
        }
    }
    for line in fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n') {
        let Some(path) = line.split(|byte| *byte == b' ').nth(4) else { continue };
        let path = PathBuf::from(OsString::from_vec(unescape(path)));
        if path.starts_with(state) {
            left.mounts.push(path);
        }
    }
    Ok(left)
}

impl Leftover {
    /// Whether there is nothing.
    pub fn is_nothing(&self) -> bool {
        self.keepers.is_empty() && self.daemons.is_empty() && self.mounts.is_empty()
    }

    /// Ends all of it, by force.
    pub fn end(&self) {
        // The keepers first: they would start new daemons.
        for pid in self.keepers.iter().chain(&self.daemons) {
            let Ok(process) = pidfd_open(*pid, PidfdFlags::empty()) else { continue };
            if pidfd_send_signal(&process, Signal::KILL).is_ok() {
                let limit = Timespec::try_from(Duration::from_secs(10)).ok();
                let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], limit.as_ref());
            }
        }
        for mount in self.mounts.iter().rev() {
            // FORCE aborts FUSE connections: a killed daemon may wait for a request of its own.
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = unmount(mount, flags);
        }
    }
}

/// How long what is given back may take to go on a busy machine.
const GONE_WITHIN: Duration = Duration::from_mins(1);

/// What `look` still finds after a minute in which it was to go; nothing as soon as nothing is found.
pub fn remaining_after_wait<T>(mut look: impl FnMut() -> Vec<T>) -> Vec<T> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let found = look();
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The files below `dir` that loop devices still stand on after a minute in which they were to go.
///
/// An unmounted disk's device goes with the last copy of its mount, and a mount namespace that a test
/// beside this one made in the meantime has one: its container's runtime, before it leaves the host's
/// root, or a program that it runs in a namespace of its own.
pub fn loop_devices(dir: &Path) -> Vec<PathBuf> {
    remaining_after_wait(|| {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let files = devices
            .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        files.map(PathBuf::from).filter(|file| file.starts_with(dir)).collect()
    })
}

/// Spaces and the like stand as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let byte =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(byte.unwrap_or(*first));
        let len = if byte.is_some() { 4 } else { 1 };
        rest = rest.get(len..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_digits_are_bytes() {
        assert_eq!(unescape(b"/a\\040b\\134c\\9"), b"/a b\\c\\9");
    }
}
