//! Freezing all processes of a cgroup: the kernel's documents `cgroup-v1/freezer-subsystem` and
//! `cgroup-v2`, "Core Interface Files".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::error::SandboxError;
use super::hierarchy::{Hierarchy, Version, hierarchies};

/// A cgroup that can be frozen.
#[derive(Debug, Clone)]
pub(in super::super) struct Freezer {
    version: Version,
    dir: PathBuf,
}

impl Freezer {
    /// That of the cgroup which the process `pid` is in. Refused if that is the host's own.
    pub(in super::super) fn of_process(pid: u32) -> Result<Self, SandboxError> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let lines = fs::read_to_string(&path).map_err(SandboxError::io("read", &path))?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let all = hierarchies()?;
        let v1 = all.iter().find(|of| of.version == Version::V1 && of.controls("freezer"));
        let v2 = all.iter().find(|of| of.version == Version::V2);
        for hierarchy in v1.into_iter().chain(v2) {
            let Some(of_process) = hierarchy.path_in(&lines) else { continue };
            // Whoever freezes must not be frozen, nor be above what is.
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

    /// That of a cgroup.
    pub(super) fn at(hierarchy: &Hierarchy, dir: &Path) -> Self {
        Self { version: hierarchy.version, dir: dir.to_owned() }
    }

    fn control(&self) -> PathBuf {
        self.dir.join(match self.version {
            Version::V1 => "freezer.state",
            Version::V2 => "cgroup.freeze",
        })
    }

    /// Begins to freeze. With v1, that has to be said again until it is done: a process that is being
    /// made may have been missed.
    pub(in super::super) fn freeze(&self) -> io::Result<()> {
        fs::write(
            self.control(),
            match self.version {
                Version::V1 => "FROZEN",
                Version::V2 => "1",
            },
        )
    }

    /// Lets the processes run again. Nothing to be done where there is no such cgroup.
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

    /// Whether all processes stand still.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// With every hierarchy that the host has and that can freeze.
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
            freezer.thaw().unwrap();
            while freezer.is_frozen().unwrap() {}
            assert!(Freezer::of_process(child.id()).is_ok());
            fs::write(hierarchy.mountpoint.join("cgroup.procs"), child.id().to_string()).unwrap();
            fs::remove_dir(&dir).unwrap();
            assert!(freezer.thaw().is_ok());
            tried += 1;
        }
        assert!(tried > 0);
        // Whoever freezes is never frozen.
        assert!(Freezer::of_process(std::process::id()).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
