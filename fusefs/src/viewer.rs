//! Who lists names of attributes, as far as the kernel tells.
//!
//! On a connection that allows mapped owners, the kernel names no user with such a request, only the
//! thread. Below an overlay it is the overlay that asks, with root's rights whoever the thread is of:
//! for it, parts of snapshots show all names, and it hides from users what is not theirs to see.

use std::fs;

use crate::fs::{SnapshotFs, Viewer};

/// The number of a user that the kernel does not name.
const NOBODY_NAMED: u32 = u32::MAX;

/// Whose request it is that names the user `uid` and the thread `thread`.
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

/// The fourth number of the line `Uid:`: the one that counts for files.
fn file_system_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_who_counts_for_files_is_the_fourth() {
        let status = "Name:\tUid: 1\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t0\t0\t0\t0\n";
        assert_eq!(file_system_user(status), Some(4));
        assert_eq!(file_system_user("Uid:\t1\n"), None);
        assert_eq!(is_roots(std::process::id()), rustix::process::geteuid().is_root());
        assert!(!is_roots(u32::MAX));
    }
}
