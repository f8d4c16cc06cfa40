//! Determines the privilege of a caller that lists attribute names.
//!
//! On a connection that allows idmapped mounts, the kernel does not pass the user of such a
//! request, only the thread. Below an overlay, the overlay makes the request with root's rights,
//! regardless of the calling thread: it sees all names of a part and hides privileged ones from
//! users itself.

use std::fs;

use crate::fs::{SnapshotFs, Viewer};

/// The user ID of a request without a user.
const NOBODY_NAMED: u32 = u32::MAX;

/// Returns the viewer for a request with the user `uid` and the thread `thread`.
pub(crate) fn viewer(fs: &SnapshotFs, uid: u32, thread: u32) -> Viewer {
    match uid {
        0 => Viewer::Root,
        NOBODY_NAMED if fs.is_part() || is_roots(thread) => Viewer::Root,
        _ => Viewer::User,
    }
}

fn is_roots(thread: u32) -> bool {
    fs::read_to_string(format!("/proc/{thread}/status"))
        .is_ok_and(|status| file_system_user(&status) == Some(0))
}

/// Parses the fourth number of the line `Uid:`, the fsuid.
fn file_system_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_uid_is_that_of_file_access() {
        let status = "Name:\tUid: 1\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t0\t0\t0\t0\n";
        assert_eq!(file_system_user(status), Some(4));
        assert_eq!(file_system_user("Uid:\t1\n"), None);
        assert_eq!(is_roots(std::process::id()), rustix::process::geteuid().is_root());
        assert!(!is_roots(u32::MAX));
    }
}
