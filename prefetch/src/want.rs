//! What is to be fetched, and for whom.

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

/// Who wants a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A reader waits for it.
    Demand,
    /// A reader will probably want it soon.
    ReadAhead,
}

/// What makes two wants the same fetch.
///
/// Not the digest alone: an index that promises a group where it is not would otherwise make the
/// fetch fail for all who know where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) digest: GroupDigest,
    blob: BlobId,
    offset: u64,
    stored_len: u32,
    raw_len: u32,
}

impl GroupRef {
    pub(crate) fn key(&self) -> Key {
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
