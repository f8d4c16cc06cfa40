//! Finds the host's mounted cgroup hierarchies.

use std::fs;
use std::path::{Path, PathBuf};

use inlay_base::mountinfo::{self, MountLine};

use super::super::error::SandboxError;

/// The cgroup interface version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Version {
    /// A hierarchy for some controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Hierarchy {
    pub(in super::super) version: Version,
    pub(in super::super) mountpoint: PathBuf,
    /// The cgroup mounted at `mountpoint`: `/` unless this process runs in a container.
    pub(super) root: PathBuf,
    /// The v1 controllers; empty for v2.
    pub(in super::super) controllers: Vec<String>,
}

impl Hierarchy {
    /// Reports whether it is a v1 hierarchy with `controller`.
    pub(in super::super) fn controls(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// Returns the directory of the cgroup `path`, given as in `/proc/PID/cgroup`; `None` if it
    /// lies outside the mounted subtree.
    pub(super) fn dir_of(&self, path: &Path) -> Option<PathBuf> {
        let inside = path.strip_prefix(&self.root).ok()?;
        Some(self.mountpoint.join(inside))
    }

    /// Returns the path from this hierarchy's line in `/proc/PID/cgroup`
    /// (`number:controllers:path`).
    pub(super) fn path_in<'t>(&self, lines: &'t str) -> Option<&'t str> {
        lines.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let mut of_line = controllers.split(',').filter(|name| !name.is_empty()).peekable();
            let same = match self.version {
                Version::V2 => of_line.peek().is_none(),
                Version::V1 => of_line.any(|name| self.controls(name)),
            };
            same.then_some(path)
        })
    }
}

/// Returns all mounted hierarchies, each once.
pub(in super::super) fn hierarchies() -> Result<Vec<Hierarchy>, SandboxError> {
    let text =
        fs::read(mountinfo::OWN).map_err(SandboxError::io("read", mountinfo::OWN.as_ref()))?;
    Ok(parse(&text))
}

/// Reports whether this host has `controller` in any hierarchy.
pub(in super::super) fn can_limit(controller: &str) -> Result<bool, SandboxError> {
    Ok(hierarchies()?.iter().any(|of| match of.version {
        Version::V1 => of.controls(controller),
        Version::V2 => fs::read_to_string(of.mountpoint.join("cgroup.controllers"))
            .is_ok_and(|text| text.split_whitespace().any(|known| known == controller)),
    }))
}

/// Returns the controllers that sandbox limits need and this host lacks.
pub fn missing_controllers() -> Result<Vec<&'static str>, SandboxError> {
    let mut missing = Vec::new();
    for controller in ["memory", "cpu", "pids"] {
        if !can_limit(controller)? {
            missing.push(controller);
        }
    }
    Ok(missing)
}

fn parse(table: &[u8]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mountinfo::parse(table).into_iter().filter_map(hierarchy_of) {
        let is_known = found.iter().any(|known| {
            known.version == hierarchy.version && known.controllers == hierarchy.controllers
        });
        if !is_known {
            found.push(hierarchy);
        }
    }
    found
}

fn hierarchy_of(line: MountLine) -> Option<Hierarchy> {
    let (version, controllers) = match &*line.kind {
        "cgroup" => {
            let names = line.super_options.split(',').filter(|name| !matches!(*name, "rw" | "ro"));
            (Version::V1, names.map(str::to_owned).collect())
        }
        "cgroup2" => (Version::V2, Vec::new()),
        _ => return None,
    };
    Some(Hierarchy { version, mountpoint: line.path, root: line.root, controllers })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"26 25 0:24 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        30 26 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        31 26 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        32 26 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        33 26 0:31 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n\
        34 26 0:31 / /again rw - cgroup2 cgroup2 rw\nbroken\n";
    const PROCESS: &str = "4:name=systemd:/a\n3:freezer:/f/g\n2:cpuacct,cpu:/c\n0::/u\n";

    #[test]
    fn a_hybrid_host_is_understood() {
        let found = parse(HYBRID);
        let paths: Vec<_> = found.iter().map(|of| of.path_in(PROCESS).unwrap()).collect();
        assert_eq!(paths, ["/c", "/f/g", "/a", "/u"]);
        assert!(found[1].controls("freezer") && !found[3].controls("freezer"));
        assert_eq!(found[3].mountpoint, Path::new("/sys/fs/cgroup/uni fied"));
        let dir = found[1].dir_of(Path::new("/f/g")).unwrap();
        assert_eq!(dir, Path::new("/sys/fs/cgroup/freezer/f/g"));
    }

    #[test]
    fn only_cgroups_below_the_mounted_root_are_visible() {
        let line = b"33 26 0:31 /docker/x /cg rw - cgroup2 cgroup2 rw";
        let found = parse(line);
        assert_eq!(found[0].dir_of(Path::new("/docker/x/y")).unwrap(), Path::new("/cg/y"));
        assert_eq!(found[0].dir_of(Path::new("/other")), None);
        assert!(hierarchies().is_ok());
    }
}
