//! The index: the file that describes a snapshot. `docs/FORMAT.md` draws its layout.

pub mod check;
pub mod error;
pub mod layout;
mod map;
pub mod model;
pub mod packed;
pub mod reader;
pub mod walk;
pub mod write;
#[cfg(test)]
mod write_tests;
pub mod xattrs;

pub use error::FormatError;
pub use model::{
    Attr, Blob, BlobIdx, Device, DirEntry, Extent, FileKind, Group, GroupIdx, InodeIdx, Timestamp,
};
pub use reader::{Dir, Extents, FileData, Index};
pub use xattrs::Xattrs;
