//! Checks the system: container runtime, cgroups, clock, disk space and resource limits.

use std::path::{Path, PathBuf};

use inlay_base::programs;
use inlay_sandbox;
use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use super::{Check, clock};

/// Free bytes below which disk space counts as degraded.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Free inodes below which disk space counts as degraded.
const FREE_INODES_MIN: u64 = 10_000;
/// Limit of open files below which the daemon can manage only few sandboxes.
const OPEN_FILES_MIN: u64 = 65_536;

pub(super) fn checks(state: &Path) -> Vec<Check> {
    let mut checks = vec![runtime(), cgroups(), disk_tool(), clock()];
    checks.extend(space(state));
    checks.push(open_files());
    checks
}

fn runtime() -> Check {
    let found: Vec<_> =
        inlay_sandbox::RUNTIMES.iter().filter_map(|name| programs::find(name)).collect();
    match found.first() {
        Some(path) => Check::ok("runtime", path.display().to_string()),
        None => Check::missing(
            "runtime",
            format!("none of {} is installed: no sandboxes", inlay_sandbox::RUNTIMES.join(", ")),
            "apt-get install runc",
        ),
    }
}

fn cgroups() -> Check {
    const FIX: &str = "boot with systemd.unified_cgroup_hierarchy=1 and mount /sys/fs/cgroup";
    match inlay_sandbox::missing_controllers() {
        Ok(missing) if missing.is_empty() => {
            Check::ok("cgroups", "memory, cpu and pids are limited")
        }
        Ok(missing) => {
            let found = format!("sandboxes can't limit {}", missing.join(", "));
            Check::degraded("cgroups", found, FIX)
        }
        Err(error) => Check::missing("cgroups", format!("{error}: no sandboxes"), FIX),
    }
}

fn disk_tool() -> Check {
    match programs::find("mkfs.ext4") {
        Some(path) => Check::ok("disk-limits", path.display().to_string()),
        None => Check::missing(
            "disk-limits",
            "mkfs.ext4 is not installed: no --disk",
            "apt-get install e2fsprogs",
        ),
    }
}

fn clock() -> Check {
    match clock::is_synchronized() {
        Ok(true) => Check::ok("clock", "synchronized"),
        Ok(false) => Check::degraded(
            "clock",
            "not known to be right: stores refuse requests from a clock that is 15 minutes off",
            "run a time service, such as systemd-timesyncd or chrony",
        ),
        Err(error) => {
            Check::degraded("clock", format!("unknown: {error}"), "allow adjtimex(2) for reading")
        }
    }
}

/// Returns the state directory, or its nearest existing ancestor.
fn existing(state: &Path) -> Option<PathBuf> {
    let state = std::path::absolute(state).ok()?;
    state.ancestors().find(|dir| dir.is_dir()).map(Path::to_owned)
}

fn space(state: &Path) -> Vec<Check> {
    let shown = state.display();
    let Some(stat) = existing(state).and_then(|dir| statvfs(dir).ok()) else {
        let found = format!("{shown}: nothing can be found out");
        return vec![Check::missing("state", found, "choose another with --state").required()];
    };
    let mut checks = Vec::new();
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let text = format!("{} MiB are free at {shown}", free >> 20);
    checks.push(if free >= FREE_BYTES_MIN {
        Check::ok("disk-space", text)
    } else {
        Check::degraded("disk-space", text, "make room, or choose another place with --state")
    });
    let text = format!("{} inodes are free at {shown}", stat.f_favail);
    // Filesystems that allocate inodes dynamically may report 0.
    checks.push(if stat.f_files == 0 || stat.f_favail >= FREE_INODES_MIN {
        Check::ok("disk-inodes", text)
    } else {
        Check::degraded("disk-inodes", text, "remove files, or choose another place with --state")
    });
    if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let found = format!("{shown} is on a read-only filesystem");
        checks.push(Check::missing("state", found, "choose another with --state").required());
    } else {
        checks.push(Check::ok("state", shown.to_string()).required());
    }
    checks
}

fn open_files() -> Check {
    let most = getrlimit(Resource::Nofile).maximum;
    match most {
        Some(most) if most < OPEN_FILES_MIN => Check::degraded(
            "open-files",
            format!("{most} at most"),
            format!("raise the hard limit to {OPEN_FILES_MIN} or more (LimitNOFILE=, ulimit -Hn)"),
        ),
        Some(most) => Check::ok("open-files", format!("{most} at most")),
        None => Check::ok("open-files", "unlimited"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Health, Need};

    #[test]
    fn a_state_that_is_not_there_yet_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        assert_eq!(existing(&state).as_deref(), Some(dir.path()));
        assert!(space(&state).iter().all(|check| check.health != Health::Missing));
    }

    #[test]
    fn a_read_only_state_is_missing() {
        // Exists on every Linux, and is read-only for all users.
        let checks = space(Path::new("/sys/fs/cgroup/../../../proc/self"));
        assert!(checks.iter().any(|check| check.name == "disk-space"));
        assert!(checks.iter().all(|check| check.need == Need::Optional || check.name == "state"));
    }
}
