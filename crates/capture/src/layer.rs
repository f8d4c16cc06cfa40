//! Interprets the overlayfs metadata in an upper directory, and hides it as overlayfs does.
//!
//! Linux documents the attributes in Documentation/filesystems/overlayfs.rst; for odd ones see
//! fs/overlayfs/{namei,xattrs,util}.c.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use inlay_store::format::FileKind;
use inlay_store::tree::Xattr;
use rustix::fs::{lgetxattr, llistxattr, readlinkat};
use rustix::io::Errno;

use super::stat::Stat;

/// The maximum size of a name list and of a value in Linux, in bytes.
const XATTR_BUFFER: usize = 64 << 10;

/// The prefix of overlayfs's own attributes.
const OWN: &[u8] = b"trusted.overlay.";
/// The prefix that a nested overlay's own attributes have in this layer.
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";

/// The properties of an object that `stat` does not report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Extra {
    /// Its extended attributes as the overlay shows them.
    pub(super) xattrs: Vec<Xattr>,
    /// The target of a symlink.
    pub(super) target: Option<Box<[u8]>>,
    /// It is a directory that hides the lower layer's.
    pub(super) opaque: bool,
    /// It is an empty file that marks a deleted object.
    pub(super) whiteout: bool,
    /// It is a file with its content in the lower layer.
    pub(super) metacopy: bool,
    /// Its origin in the lower layer: a name in the same directory, or a path from the layer's
    /// root, which starts with a slash.
    pub(super) redirect: Option<Box<[u8]>>,
}

/// Returns the name under which the overlay shows the attribute `name` of a layer; `None` if it
/// hides it.
pub(super) fn visible_xattr(name: &[u8]) -> Option<Vec<u8>> {
    match name.strip_prefix(ESCAPED) {
        Some(rest) => Some([OWN, rest].concat()),
        None if name.starts_with(OWN) => None,
        None => Some(name.to_vec()),
    }
}

/// Buffers for names and values, reused for all objects.
pub(super) struct Buffers {
    names: Box<[u8]>,
    value: Box<[u8]>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self { names: vec![0; XATTR_BUFFER].into(), value: vec![0; XATTR_BUFFER].into() }
    }

    /// Reads the properties of `name` in `dir` beyond `stat`, without opening it or following a
    /// symlink. An empty name means `dir` itself. `None` if it has no such properties.
    pub(super) fn extra(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
    ) -> Result<Option<Extra>, (&'static str, Errno)> {
        let mut extra = Extra::default();
        if stat.kind() == Some(FileKind::Symlink) {
            let target = readlinkat(dir, name, Vec::new()).map_err(|e| ("read link", e))?;
            extra.target = Some(target.into_bytes().into());
        }
        // The kernel takes only a path for attributes. It consists of the directory's descriptor,
        // which can't be redirected, and a single component.
        let path = attribute_path(dir, name);
        let len = match llistxattr(path.as_slice(), &mut *self.names) {
            Err(Errno::OPNOTSUPP) => 0,
            other => other.map_err(|e| ("list attributes", e))?,
        };
        let names = self.names.get(..len).unwrap_or(&[]);
        for name in names.split_inclusive(|&b| b == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let value = match lgetxattr(path.as_slice(), name, &mut *self.value) {
                Ok(len) => self.value.get(..len).unwrap_or(&[]),
                // Removed since it was listed.
                Err(Errno::NODATA) => continue,
                Err(error) => return Err(("read attribute", error)),
            };
            take(&mut extra, stat, name.to_bytes(), value);
        }
        Ok((extra != Extra::default()).then_some(extra))
    }
}

fn attribute_path(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(if name.is_empty() { b"." } else { name.to_bytes() });
    path
}

fn take(extra: &mut Extra, stat: &Stat, name: &[u8], value: &[u8]) {
    if let Some(name) = visible_xattr(name) {
        extra.xattrs.push((name.into(), value.into()));
        return;
    }
    let regular = stat.kind() == Some(FileKind::Regular);
    match name.strip_prefix(OWN) {
        Some(b"opaque") => extra.opaque = stat.is_dir() && value == b"y",
        Some(b"whiteout") => extra.whiteout = regular && stat.stamp.size == 0,
        Some(b"metacopy") => extra.metacopy = regular,
        Some(b"redirect") => extra.redirect = Some(value.into()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_xattrs_are_hidden_and_nested_ones_are_unescaped() {
        assert_eq!(visible_xattr(b"trusted.overlay.opaque"), None);
        assert_eq!(visible_xattr(b"trusted.overlay.origin"), None);
        assert_eq!(
            visible_xattr(b"trusted.overlay.overlay.opaque").unwrap(),
            b"trusted.overlay.opaque"
        );
        let twice = b"trusted.overlay.overlay.overlay.x";
        assert_eq!(visible_xattr(twice).unwrap(), b"trusted.overlay.overlay.x");
        for plain in [&b"trusted.overlay"[..], b"user.overlay.opaque", b"security.capability"] {
            assert_eq!(visible_xattr(plain).unwrap(), plain);
        }
    }
}
