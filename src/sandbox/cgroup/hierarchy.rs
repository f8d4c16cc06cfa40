//! The cgroup hierarchies that a host has mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::super::error::SandboxError;

const MOUNTS: &str = "/proc/self/mountinfo";

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Version {
    /// One for some controllers.
    V1,
    /// The unified one.
    V2,
}

/// A hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Hierarchy {
    pub(in super::super) version: Version,
    pub(in super::super) mountpoint: PathBuf,
    /// Which of its cgroups is mounted: `/` unless something confines this process.
    pub(super) root: PathBuf,
    /// What it controls; empty for v2.
    pub(in super::super) controllers: Vec<String>,
}

impl Hierarchy {
    /// Whether it is v1's and controls `controller`.
    pub(in super::super) fn controls(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// Where the cgroup `path`, as `/proc/PID/cgroup` has it, is seen.
    pub(super) fn dir_of(&self, path: &Path) -> Option<PathBuf> {
        let inside = path.strip_prefix(&self.root).ok()?;
        Some(self.mountpoint.join(inside))
    }

    /// Which of the lines of `/proc/PID/cgroup` is about it: `number:controllers:path`.
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

/// All that are mounted, each once.
pub(in super::super) fn hierarchies() -> Result<Vec<Hierarchy>, SandboxError> {
    let text = fs::read(MOUNTS).map_err(SandboxError::io("read", MOUNTS.as_ref()))?;
    Ok(parse(&text))
}

fn parse(mountinfo: &[u8]) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        if let Some(hierarchy) = parse_line(line)
            && !found.iter().any(|known| {
                known.version == hierarchy.version && known.controllers == hierarchy.controllers
            })
        {
            found.push(hierarchy);
        }
    }
    found
}

/// A line of `mountinfo` (proc(5)): `id parent major:minor root mountpoint options [tags] - type
/// source super-options`.
fn parse_line(line: &[u8]) -> Option<Hierarchy> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let version = match *fields.get(dash + 1)? {
        b"cgroup" => Version::V1,
        b"cgroup2" => Version::V2,
        _ => return None,
    };
    let controllers = match version {
        Version::V2 => Vec::new(),
        Version::V1 => {
            let options = String::from_utf8_lossy(fields.get(dash + 3)?);
            let names = options.split(',').filter(|name| !matches!(*name, "rw" | "ro"));
            names.map(str::to_owned).collect()
        }
    };
    Some(Hierarchy {
        version,
        mountpoint: unescape(fields.get(4)?),
        root: unescape(fields.get(3)?),
        controllers,
    })
}

/// Spaces, tabs, line ends and backslashes are `\` and three octal digits.
pub(crate) fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out).into()
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
    fn only_what_is_mounted_is_seen() {
        let line = b"33 26 0:31 /docker/x /cg rw - cgroup2 cgroup2 rw";
        let found = parse(line);
        assert_eq!(found[0].dir_of(Path::new("/docker/x/y")).unwrap(), Path::new("/cg/y"));
        assert_eq!(found[0].dir_of(Path::new("/other")), None);
        assert!(hierarchies().is_ok());
    }
}
