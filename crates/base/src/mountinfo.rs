//! Parses the kernel's mount table, `mountinfo` of proc(5), and finds the mounts that paths can
//! reach.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Mount table of the calling process's mount namespace.
pub const OWN: &str = "/proc/self/mountinfo";

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// Mount id. The kernel reuses it after the mount is gone.
    pub id: u64,
    /// Id of the parent mount.
    pub parent: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Mounted directory of the filesystem: `/`, except for bind mounts.
    pub root: PathBuf,
    /// Mount point, relative to the root of the process that read the table.
    pub path: PathBuf,
    /// Filesystem type.
    pub kind: String,
    /// Options of the filesystem's superblock, separated by commas.
    pub super_options: String,
}

/// Parses the whole table. Skips malformed lines.
pub fn parse(table: &[u8]) -> Vec<MountLine> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `id parent major:minor root mountpoint options [tags] - type source super-options` (proc(5)).
fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (id, parent) = (text()?.parse().ok()?, text()?.parse().ok()?);
    let (major, minor) = text()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, path) = (unescape(fields.next()?), unescape(fields.next()?));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    let super_options = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    Some(MountLine { id, parent, device, root, path, kind, super_options })
}

/// Decodes spaces, tabs, newlines and backslashes, which are escaped as `\` and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
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

/// Keeps the mounts that their own paths reach, in the order of the table: those neither covered by
/// a mount at the same place nor inside a directory that another mount hides.
///
/// Parent ids decide which mount hides another, not the order of mounting: a directory that
/// contains a mount can be renamed.
pub fn visible(lines: Vec<MountLine>) -> Vec<MountLine> {
    let by_id: HashMap<u64, &MountLine> = lines.iter().map(|line| (line.id, line)).collect();
    let mut on: HashMap<u64, HashSet<&Path>> = HashMap::new();
    for line in &lines {
        on.entry(line.parent).or_default().insert(&line.path);
    }
    let is_covered = |line: &MountLine| on.get(&line.id).is_some_and(|on| on.contains(&*line.path));
    // Whether a sibling mount hides the directory that this mount is on.
    let is_beside = |line: &MountLine| {
        let siblings = on.get(&line.parent);
        siblings.is_some_and(|on| line.path.ancestors().skip(1).any(|above| on.contains(above)))
    };
    let mut hidden: HashMap<u64, bool> = HashMap::new();
    for line in &lines {
        let mut chain = Vec::new();
        let mut at = Some(line);
        let mut outcome = false;
        while let Some(mount) = at {
            if let Some(known) = hidden.get(&mount.id) {
                outcome = *known;
                break;
            }
            // The kernel's table has no cycle; this bounds the walk if a malformed one has.
            if chain.len() > lines.len() {
                outcome = true;
                break;
            }
            chain.push(mount);
            at = by_id.get(&mount.parent).copied().filter(|parent| parent.id != mount.id);
        }
        for mount in chain.into_iter().rev() {
            outcome = outcome || is_beside(mount);
            hidden.insert(mount.id, outcome);
        }
    }
    let seen = |line: &MountLine| hidden.get(&line.id) == Some(&false) && !is_covered(line);
    let seen: HashSet<u64> = lines.iter().filter(|line| seen(line)).map(|line| line.id).collect();
    lines.into_iter().filter(|line| seen.contains(&line.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(table: &[u8]) -> Vec<(u64, String)> {
        let seen = visible(parse(table)).into_iter();
        seen.map(|line| (line.id, line.path.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn covered_mounts_are_not_visible() {
        let table = b"21 1 0:5 / / rw - overlay inlay rw\n\
            22 21 0:6 / /proc rw shared:1 - proc proc rw\n\
            23 21 0:7 / /a rw - tmpfs tmpfs rw\n\
            24 23 0:8 / /a/b\\040c rw - tmpfs tmpfs rw\n\
            25 23 0:9 / /a rw - overlay inlay rw\n\
            26 25 0:9 / /a/d rw - ext4 /dev/x rw\n";
        let wanted = [(21, "/"), (22, "/proc"), (25, "/a"), (26, "/a/d")];
        assert_eq!(seen(table), wanted.map(|(id, path)| (id, path.to_owned())));
        let parsed = parse(table);
        assert_eq!((&*parsed[3].path, &*parsed[4].kind), (Path::new("/a/b c"), "overlay"));
        assert_eq!((parsed[3].parent, parsed[3].device), (23, (0, 8)));
        assert!(parse(b"damaged\n1 2 3").is_empty());
    }

    #[test]
    fn a_mount_moved_below_an_older_one_is_hidden() {
        // 6 was mounted after 5, in a directory that was then renamed into one that 5 hides.
        let table = b"4 1 0:5 / / rw - overlay inlay rw\n\
            5 4 0:6 / /b rw - overlay inlay rw\n\
            6 4 0:7 / /b/a/x rw - overlay inlay rw\n\
            7 6 0:8 / /b/a/x/y rw - overlay inlay rw\n\
            8 5 0:9 / /b/a rw - overlay inlay rw\n";
        let wanted = [(4, "/"), (5, "/b"), (8, "/b/a")];
        assert_eq!(seen(table), wanted.map(|(id, path)| (id, path.to_owned())));
    }
}
