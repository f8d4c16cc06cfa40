//! A sandbox's cgroups on any host: v2, v1, or hybrid.

mod freezer;
mod hierarchy;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub(super) use freezer::Freezer;
pub use hierarchy::missing_controllers;
pub(super) use hierarchy::{Hierarchy, Version, can_limit, hierarchies};

use super::error::SandboxError;
use super::layout::Layout;

/// The maximum nesting depth of cgroups below a sandbox's own.
const DEPTH_MAX: usize = 64;
/// Deadline for killed processes to exit, and for emptied cgroups to become removable.
const END_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Resource usage of a sandbox. `None`: the kernel does not report it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Consumed CPU time.
    pub cpu: Option<Duration>,
    /// Memory in bytes, including the page cache charged to the sandbox.
    pub memory: Option<u64>,
}

/// The cgroups of one sandbox: at most one in each hierarchy.
#[derive(Debug)]
pub(super) struct Cgroups {
    sandbox: String,
    dirs: Vec<(Hierarchy, PathBuf)>,
}

impl Cgroups {
    /// Returns a sandbox's cgroups. They need not exist.
    pub(super) fn of(layout: &Layout) -> Result<Self, SandboxError> {
        let path = layout.cgroup();
        let dirs = hierarchies()?
            .into_iter()
            .map(|hierarchy| {
                let dir = hierarchy.mountpoint.join(path.trim_start_matches('/'));
                (hierarchy, dir)
            })
            .collect();
        Ok(Self { sandbox: layout.id().to_string(), dirs })
    }

    fn existing(&self) -> impl Iterator<Item = (&Hierarchy, &Path)> {
        self.dirs.iter().filter(|(_, dir)| dir.exists()).map(|(of, dir)| (of, dir.as_path()))
    }

    /// Returns the number of OOM kills.
    pub(super) fn oom_kills(&self) -> u64 {
        let count = |(hierarchy, dir): (&Hierarchy, &Path)| {
            let name = match hierarchy.version {
                Version::V2 => "memory.events",
                Version::V1 => "memory.oom_control",
            };
            let text = fs::read_to_string(dir.join(name)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        self.existing().filter_map(count).max().unwrap_or(0)
    }

    /// Returns the resource usage, as far as the kernel reports it.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (hierarchy, dir) in self.existing() {
            let number =
                |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
            let (cpu, memory) = match hierarchy.version {
                Version::V2 => {
                    let stat = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
                    let time = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
                    let time = time.and_then(|time| time.trim().parse().ok());
                    (time.map(Duration::from_micros), number("memory.current"))
                }
                Version::V1 => {
                    let time = number("cpuacct.usage").map(Duration::from_nanos);
                    (time, number("memory.usage_in_bytes"))
                }
            };
            usage.cpu = usage.cpu.or(cpu);
            usage.memory = usage.memory.or(memory);
        }
        usage
    }

    /// Returns the pids of all processes in the sandbox's cgroups.
    pub(super) fn processes(&self) -> Result<BTreeSet<i32>, SandboxError> {
        let mut found = BTreeSet::new();
        for (_, dir) in self.existing() {
            for dir in tree(dir)? {
                let path = dir.join("cgroup.procs");
                match fs::read_to_string(&path) {
                    Ok(text) => {
                        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
                    }
                    // The cgroup has just been removed, or it is threaded and an ancestor lists its
                    // processes.
                    Err(error)
                        if matches!(
                            error.raw_os_error(),
                            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
                        ) => {}
                    Err(error) => return Err(SandboxError::io("read", &path)(error)),
                }
            }
        }
        // Processes of other pid namespaces are listed as 0.
        found.retain(|pid| *pid > 0);
        Ok(found)
    }

    /// Thaws and kills all processes, and blocks until they are gone.
    pub(super) fn kill(&self) -> Result<(), SandboxError> {
        let deadline = Instant::now() + END_WITHIN;
        loop {
            self.thaw();
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(SandboxError::DoNotEnd(self.sandbox.clone()));
            }
            for pid in processes {
                self.kill_one(pid);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Kills `pid` if it still belongs to the sandbox. The check follows pidfd_open, so that a
    /// reused pid is never signalled.
    fn kill_one(&self, pid: i32) {
        let Some(handle) =
            Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            return;
        };
        let of_it = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if of_it.contains(&self.sandbox) {
            pidfd_send_signal(handle, Signal::KILL).ok();
        }
    }

    /// Thaws all processes, including those frozen by other programs. Best effort.
    pub(super) fn thaw(&self) {
        for (hierarchy, dir) in self.existing() {
            Freezer::at(hierarchy, dir).thaw().ok();
        }
    }

    /// Removes the cgroups. No process may be left in them.
    pub(super) fn remove(&self) -> Result<(), SandboxError> {
        let deadline = Instant::now() + END_WITHIN;
        for (_, dir) in self.existing() {
            for dir in tree(dir)?.iter().rev() {
                // A process that has just exited may still keep its cgroup busy.
                loop {
                    match fs::remove_dir(dir) {
                        Ok(()) => break,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                        Err(error)
                            if error.raw_os_error() == Some(libc::EBUSY)
                                && Instant::now() < deadline =>
                        {
                            thread::sleep(PAUSE);
                        }
                        Err(error) => {
                            return Err(SandboxError::io("remove the cgroup", dir)(error));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns `dir` and all directories below it, parents first.
fn tree(dir: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    let mut found = vec![(dir.to_owned(), 0)];
    let mut at = 0;
    while let Some((dir, depth)) = found.get(at).cloned() {
        at += 1;
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(SandboxError::io("list", &dir)(error)),
        };
        if depth > DEPTH_MAX {
            return Err(SandboxError::io("list", &dir)(io::Error::other("nested too deeply")));
        }
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(found.into_iter().map(|(dir, _)| dir).collect())
}
