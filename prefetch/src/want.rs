//! Identifies a group to fetch and the priority class it is fetched for.

use std::fmt;

use inlay_store::cache::Placement;
use inlay_store::format::Group;
use inlay_store::ids::{BlobId, GroupDigest};

/// A group and the blob that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupRef {
    /// The blob in the store.
    pub blob: BlobId,
    /// The group's location in the blob, its lengths and its digest.
    pub group: Group,
    /// The large file that the bytes belong to, if the cache keeps them in that file's cache file.
    pub home: Option<Placement>,
}

/// Priority class of a fetch. Strictly ordered: an earlier class is always fetched first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// A reader is blocked on it.
    Demand,
    /// A sequential reader will probably need it soon.
    ReadAhead,
    /// Part of a mounted directory snapshot.
    Directory,
    /// Read by earlier runs of the image, or next to a group that a reader has just read.
    Profile,
    /// The remainder of an image, needed eventually.
    Rest,
}

impl Class {
    /// All classes, in priority order.
    pub const ALL: [Self; 5] =
        [Self::Demand, Self::ReadAhead, Self::Directory, Self::Profile, Self::Rest];

    /// Name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::ReadAhead => "read-ahead",
            Self::Directory => "directory",
            Self::Profile => "profile",
            Self::Rest => "rest",
        }
    }

    /// Index in [`Self::ALL`].
    pub fn place(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Identity of a fetch: wants with equal keys share one fetch.
///
/// The digest alone is not enough. An index that gives a wrong location for a group would otherwise
/// fail the fetch for readers whose index has the right location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(crate) digest: GroupDigest,
    blob: BlobId,
    offset: u64,
    stored_len: u32,
    raw_len: u32,
}

impl GroupRef {
    /// Returns the fetch identity of this group.
    pub fn key(&self) -> Key {
        Key {
            digest: self.group.digest,
            blob: self.blob,
            offset: self.group.offset,
            stored_len: self.group.stored_len,
            raw_len: self.group.raw_len,
        }
    }

    /// End offset of the group in its blob (exclusive).
    pub(crate) fn end(&self) -> u64 {
        self.group.offset.saturating_add(u64::from(self.group.stored_len))
    }

    /// Buffer bytes held while the group is fetched and decoded: stored plus decoded length.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        u64::from(self.group.stored_len) + u64::from(self.group.raw_len)
    }
}
