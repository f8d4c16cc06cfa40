//! Which mounts this process sees: `/proc/self/mountinfo`, as proc(5) describes it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use inlay_fusefs::SOURCE;

use super::error::MountError;

/// Where the kernel tells.
pub(crate) const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The kernel's number; used again after the mount is gone.
    pub(crate) id: u64,
    /// Where it is.
    pub(crate) mountpoint: PathBuf,
    /// What stands as its source.
    source: Vec<u8>,
}

impl MountEntry {
    /// Whether this program made it.
    pub(crate) fn is_ours(&self) -> bool {
        self.source == SOURCE.as_bytes()
    }
}

/// All of them, in the order in which they were made.
pub(crate) fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read(MOUNTINFO)?))
}

/// What is seen at `mountpoint`, an absolute path: the last mount that was made there.
pub(crate) fn top(mountpoint: &Path) -> Result<Option<MountEntry>, MountError> {
    let mounts = mounts().map_err(MountError::io("read", MOUNTINFO.as_ref()))?;
    Ok(mounts.into_iter().rfind(|mount| mount.mountpoint == mountpoint))
}

fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(entry).collect()
}

/// `36 35 98:0 /root /mount/point rw master:1 - ext3 /dev/root rw`, optional fields before the dash.
fn entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(3)?)));
    let source = unescape(fields.skip_while(|field| *field != b"-").nth(2)?);
    Some(MountEntry { id, mountpoint, source })
}

/// Spaces, tabs, newlines and backslashes stand as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        if let Some(byte) = octal(rest) {
            out.push(byte);
            rest = rest.get(4..).unwrap_or_default();
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.strip_prefix(b"\\")?.first_chunk::<3>()?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_odd_names_are_read_as_they_are() {
        let text =
            b"36 35 98:0 / /a\\040b\\134c\\\xff rw,noatime master:1 shared:2 - ext3 /dev/x rw\n\
                     37 35 0:9 / /mnt rw - fuse.inlay inlay ro\nnonsense\n\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        let odd = OsString::from_vec(b"/a b\\c\\\xff".to_vec());
        assert_eq!(mounts[0].mountpoint.as_os_str(), odd);
        assert!(!mounts[0].is_ours());
        assert_eq!((mounts[1].id, mounts[1].is_ours()), (37, true));
    }

    #[test]
    fn this_system_has_a_root() {
        assert!(mounts().unwrap().iter().any(|m| m.mountpoint.as_os_str() == "/"));
    }
}
