//! What is to be fetched, and for whom.

use std::fmt;

use inlay_store::cache::Placement;
use inlay_store::format::Group;
use inlay_store::ids::{BlobId, GroupDigest};

/// A group, and the blob that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupRef {
    /// The object of the store.
    pub blob: BlobId,
    /// Where it is in the object, and what it must be.
    pub group: Group,
    /// The large file that its bytes belong to, if the cache is to keep them there.
    pub home: Option<Placement>,
}

/// Who wants a group. Strictly ordered: what comes first here is fetched first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A reader waits for it.
    Demand,
    /// A sequential reader will probably want it soon.
    ReadAhead,
    /// It belongs to a directory snapshot that is mounted.
    Directory,
    /// Earlier runs of its image wanted it, or it lies beside what a reader has just wanted.
    Profile,
    /// It belongs to an image, and will be wanted one day.
    Rest,
}

impl Class {
    /// All of them, in their order.
    pub const ALL: [Self; 5] =
        [Self::Demand, Self::ReadAhead, Self::Directory, Self::Profile, Self::Rest];

    /// How it is called in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::ReadAhead => "read-ahead",
            Self::Directory => "directory",
            Self::Profile => "profile",
            Self::Rest => "rest",
        }
    }

    /// Its place in [`Self::ALL`].
    pub fn place(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What makes two wants the same fetch.
///
/// Not the digest alone: an index that promises a group where it is not would otherwise make the
/// fetch fail for all who know where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(crate) digest: GroupDigest,
    blob: BlobId,
    offset: u64,
    stored_len: u32,
    raw_len: u32,
}

impl GroupRef {
    /// What makes it the same fetch as another.
    pub fn key(&self) -> Key {
        Key {
            digest: self.group.digest,
            blob: self.blob,
            offset: self.group.offset,
            stored_len: self.group.stored_len,
            raw_len: self.group.raw_len,
        }
    }

    /// The first byte in the blob after the group.
    pub(crate) fn end(&self) -> u64 {
        self.group.offset.saturating_add(u64::from(self.group.stored_len))
    }

    /// The bytes that its buffers take while it is fetched and decoded.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        u64::from(self.group.stored_len) + u64::from(self.group.raw_len)
    }
}
