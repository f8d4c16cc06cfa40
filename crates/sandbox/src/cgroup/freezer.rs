//! Freezes all processes of a cgroup; see the kernel documents `cgroup-v1/freezer-subsystem` and
//! `cgroup-v2`, "Core Interface Files".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use inlay_mounts::name_and_fields;

use super::super::error::{STUCK_MAX, SandboxError, Stuck};
use super::hierarchy::{Hierarchy, Version, hierarchies};

/// The maximum number of processes, and of threads per process, examined to explain a failed
/// freeze.
const PROCESSES_MAX: usize = 256;
const THREADS_MAX: usize = 64;

/// A cgroup that can be frozen.
#[derive(Debug, Clone)]
pub(in super::super) struct Freezer {
    version: Version,
    dir: PathBuf,
}

impl Freezer {
    /// Returns the freezer of the cgroup that contains process `pid`. Fails if it would freeze this
    /// process too.
    pub(in super::super) fn of_process(pid: u32) -> Result<Self, SandboxError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let lines = fs::read_to_string(&path).map_err(SandboxError::io("read", &path))?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let all = hierarchies()?;
        let v1 = all.iter().find(|of| of.version == Version::V1 && of.controls("freezer"));
        let v2 = all.iter().find(|of| of.version == Version::V2);
        for hierarchy in v1.into_iter().chain(v2) {
            let Some(of_process) = hierarchy.path_in(&lines) else { continue };
            // Freezing this cgroup or one of its ancestors would freeze the caller itself.
            let above =
                hierarchy.path_in(&own).is_some_and(|own| Path::new(own).starts_with(of_process));
            if above {
                continue;
            }
            if let Some(dir) = hierarchy.dir_of(of_process.as_ref()) {
                let freezer = Self { version: hierarchy.version, dir };
                if freezer.control().exists() {
                    return Ok(freezer);
                }
            }
        }
        let why = io::Error::other("it is in no cgroup of its own that can be frozen");
        Err(SandboxError::io("freeze the process of", &path)(why))
    }

    /// Returns the freezer of the cgroup `dir`.
    pub(super) fn at(hierarchy: &Hierarchy, dir: &Path) -> Self {
        Self { version: hierarchy.version, dir: dir.to_owned() }
    }

    fn control(&self) -> PathBuf {
        self.dir.join(match self.version {
            Version::V1 => "freezer.state",
            Version::V2 => "cgroup.freeze",
        })
    }

    /// Requests a freeze and returns immediately. With v1, repeat the request until
    /// [`Freezer::is_frozen`]: it may miss a process that is being forked.
    pub(in super::super) fn freeze(&self) -> io::Result<()> {
        fs::write(
            self.control(),
            match self.version {
                Version::V1 => "FROZEN",
                Version::V2 => "1",
            },
        )
    }

    /// Thaws the processes. No-op if the cgroup does not exist.
    pub(in super::super) fn thaw(&self) -> io::Result<()> {
        let path = self.control();
        if !path.exists() {
            return Ok(());
        }
        fs::write(
            path,
            match self.version {
                Version::V1 => "THAWED",
                Version::V2 => "0",
            },
        )
    }

    /// Reports whether a freeze was requested for this very cgroup, not an ancestor.
    pub(in super::super) fn is_told_to(&self) -> io::Result<bool> {
        let name = match self.version {
            Version::V1 => "freezer.self_freezing",
            Version::V2 => "cgroup.freeze",
        };
        Ok(fs::read_to_string(self.dir.join(name))?.trim() == "1")
    }

    /// Returns up to [`STUCK_MAX`] processes in uninterruptible sleep, which can't be frozen. Call
    /// it when the cgroup is thawed: frozen processes look the same.
    pub(in super::super) fn stuck(&self) -> Vec<Stuck> {
        let mut found = Vec::new();
        let dirs = super::tree(&self.dir).unwrap_or_default();
        let lists = dirs.iter().filter_map(|dir| fs::read_to_string(dir.join("cgroup.procs")).ok());
        let pids: Vec<u32> = lists
            .flat_map(|list| list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>())
            .take(PROCESSES_MAX)
            .collect();
        for pid in pids {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            let threads = threads.flatten().take(THREADS_MAX).map(|thread| thread.path());
            found.extend(threads.filter_map(|thread| stuck_thread(pid, &thread)).take(1));
            if found.len() >= STUCK_MAX {
                break;
            }
        }
        found
    }

    /// Reports whether all processes are frozen.
    pub(in super::super) fn is_frozen(&self) -> io::Result<bool> {
        match self.version {
            Version::V1 => Ok(fs::read_to_string(self.control())?.trim() == "FROZEN"),
            Version::V2 => {
                let events = fs::read_to_string(self.dir.join("cgroup.events"))?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            }
        }
    }
}

/// Returns the thread in `/proc/PID/task/TID` if it is in uninterruptible sleep.
fn stuck_thread(pid: u32, thread: &Path) -> Option<Stuck> {
    let stat = fs::read(thread.join("stat")).ok()?;
    let waits_in = fs::read_to_string(thread.join("wchan")).unwrap_or_default();
    stuck(pid, &stat, &waits_in)
}

fn stuck(pid: u32, stat: &[u8], waits_in: &str) -> Option<Stuck> {
    let (name, mut fields) = name_and_fields(stat)?;
    // With v1, a frozen thread is in state D, too, but does not block the freeze.
    if fields.next() != Some("D") || waits_in.trim_start_matches('_') == "refrigerator" {
        return None;
    }
    // A program chooses its own name.
    let name = String::from_utf8_lossy(name).escape_debug().to_string();
    // Without the required privilege, the kernel reports "0".
    let waits_in = if waits_in.len() > 1 { waits_in } else { "an unknown place" };
    Some(Stuck { pid, name, waits_in: waits_in.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_frozen_thread_is_not_blamed_for_a_failed_freeze() {
        let waits = b"7 (a) b) D 1 7 7 0";
        for place in ["__refrigerator", "refrigerator"] {
            assert_eq!(stuck(7, waits, place), None);
        }
        let found = stuck(7, waits, "nfs_wait_bit").unwrap();
        assert_eq!((&*found.name, &*found.waits_in), ("a) b", "nfs_wait_bit"));
        assert_eq!(stuck(7, waits, "0").unwrap().waits_in, "an unknown place");
        assert_eq!(stuck(7, b"7 (a) S 1 7 7 0", "nfs_wait_bit"), None);
    }

    /// Covers every mounted hierarchy that supports freezing.
    #[test]
    fn a_process_stands_still_and_runs_on() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut tried = 0;
        for hierarchy in hierarchies().unwrap() {
            if hierarchy.version == Version::V1 && !hierarchy.controls("freezer") {
                continue;
            }
            let dir = hierarchy.mountpoint.join(format!("inlay-test-{}", child.id()));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            let freezer = Freezer::at(&hierarchy, &dir);
            assert!(!freezer.is_frozen().unwrap());
            freezer.freeze().unwrap();
            while !freezer.is_frozen().unwrap() {
                freezer.freeze().unwrap();
            }
            assert!(freezer.is_told_to().unwrap());
            freezer.thaw().unwrap();
            while freezer.is_frozen().unwrap() {}
            assert!(!freezer.is_told_to().unwrap());
            assert_eq!(freezer.stuck(), []);
            assert!(Freezer::of_process(child.id()).is_ok());
            fs::write(hierarchy.mountpoint.join("cgroup.procs"), child.id().to_string()).unwrap();
            fs::remove_dir(&dir).unwrap();
            assert!(freezer.thaw().is_ok());
            tried += 1;
        }
        assert!(tried > 0);
        // The caller's own cgroup can't be frozen.
        assert!(Freezer::of_process(std::process::id()).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
