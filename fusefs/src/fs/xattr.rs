//! Extended attributes.

use std::borrow::Cow;

use inlay_store::format::InodeIdx;

use super::{SnapshotFs, damaged};
use crate::error::FsError;

/// Names that only the administrator sees.
const TRUSTED: &[u8] = b"trusted.";

/// Who lists names of attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// root: sees all.
    Root,
    /// Anybody else: does not see `trusted.` names, whose values the kernel refuses them, too.
    User,
}

/// The answer to a request for an attribute or for the list of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrAnswer<'a> {
    /// Only the size was asked for, in bytes.
    Size(u32),
    /// The bytes.
    Bytes(Cow<'a, [u8]>),
}

impl SnapshotFs {
    /// The value of the attribute `name`, for a buffer of `room` bytes; 0 asks for its size.
    pub fn xattr(
        &self,
        inode: InodeIdx,
        name: &[u8],
        room: u32,
    ) -> Result<XattrAnswer<'_>, FsError> {
        let xattrs = self.index.xattrs(inode).map_err(|e| damaged(inode, e))?;
        match xattrs.get(name).map_err(|e| damaged(inode, e))? {
            Some(value) => answer(Cow::Borrowed(value), room),
            None => Err(FsError::NoAttribute),
        }
    }

    /// The names of all attributes, each with a NUL after it, for a buffer of `room` bytes; 0 asks
    /// for the size.
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
