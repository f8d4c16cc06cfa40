//! Reads extended attributes.

use std::borrow::Cow;

use inlay_store::format::InodeIdx;

use super::{SnapshotFs, damaged};
use crate::error::FsError;

/// Prefix of names visible to root only.
const TRUSTED: &[u8] = b"trusted.";

/// Privilege of a caller that lists attribute names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// root: sees all names.
    Root,
    /// Any other user: does not see `trusted.` names; the kernel denies their values as well.
    User,
}

/// Answer to a request for an attribute or for the list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrAnswer<'a> {
    /// Size in bytes; the caller asked for nothing else.
    Size(u32),
    /// The bytes.
    Bytes(Cow<'a, [u8]>),
}

impl SnapshotFs {
    /// Returns the value of the attribute `name`, for a buffer of `room` bytes; 0 requests its
    /// size. Fails with `BufferTooSmall` if it does not fit.
    pub fn xattr(
        &self,
        inode: InodeIdx,
        name: &[u8],
        room: u32,
    ) -> Result<XattrAnswer<'_>, FsError> {
        let xattrs = self.index.xattrs(inode).map_err(|e| damaged(inode, e))?;
        match xattrs.get(name).map_err(|e| damaged(inode, e))? {
            Some(value) => answer(self.shown_xattr(name, value), room),
            None => Err(FsError::NoAttribute),
        }
    }

    /// Returns the value of an attribute with the owner alias applied.
    pub(super) fn shown_xattr<'a>(&self, name: &[u8], value: &'a [u8]) -> Cow<'a, [u8]> {
        self.alias.map_or(Cow::Borrowed(value), |alias| alias.xattr(name, value))
    }

    /// Returns the names of all attributes, each NUL-terminated, for a buffer of `room` bytes; 0
    /// requests the size.
    pub fn xattr_names(
        &self,
        inode: InodeIdx,
        viewer: Viewer,
        room: u32,
    ) -> Result<XattrAnswer<'_>, FsError> {
        let mut names = Vec::new();
        for entry in self.index.xattrs(inode).map_err(|e| damaged(inode, e))?.iter() {
            let (name, _) = entry.map_err(|e| damaged(inode, e))?;
            if viewer == Viewer::Root || !name.starts_with(TRUSTED) {
                names.extend_from_slice(name);
                names.push(0);
            }
        }
        answer(Cow::Owned(names), room)
    }
}

fn answer(bytes: Cow<'_, [u8]>, room: u32) -> Result<XattrAnswer<'_>, FsError> {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if room == 0 {
        Ok(XattrAnswer::Size(len))
    } else if len > room {
        Err(FsError::BufferTooSmall(bytes.len()))
    } else {
        Ok(XattrAnswer::Bytes(bytes))
    }
}
