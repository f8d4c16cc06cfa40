//! Tracks the chunks that already exist, in this import and in blobs of other snapshots.

use std::collections::{HashMap, HashSet};

use hashbrown::HashTable;

use super::toc::TocGroup;
use crate::format::Blob;
use crate::ids::{BlobId, ChunkDigest};

/// The location of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a group that has a number in this import.
    Numbered {
        /// The packer's number of the group.
        group: u32,
        /// Offset of the chunk in the group's decoded bytes.
        offset: u32,
    },
    /// In a group of another snapshot's blob that this import has not referred to yet.
    Foreign {
        /// Position in `KnownChunks::groups`.
        group: u32,
        /// Offset of the chunk in the group's decoded bytes.
        offset: u32,
    },
}

#[derive(Debug)]
struct KnownChunk {
    digest: ChunkDigest,
    len: u32,
    place: Place,
}

/// A group of a blob that existed before this import.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForeignGroup {
    pub(crate) blob: u32,
    pub(crate) ordinal: u32,
    pub(crate) offset: u64,
    pub(crate) stored_len: u32,
    pub(crate) raw_len: u32,
    pub(crate) exclusive: bool,
    pub(crate) digest: crate::ids::GroupDigest,
    pub(crate) decoded: Option<crate::ids::DecodedDigest>,
    /// The packer's number of the group, assigned on first use.
    pub(crate) number: Option<u32>,
}

impl ForeignGroup {
    /// Returns whether both are the same bytes of a blob.
    fn is(&self, other: &Self) -> bool {
        (self.offset, self.stored_len, self.raw_len, self.digest)
            == (other.offset, other.stored_len, other.raw_len, other.digest)
            && self.decoded == other.decoded
    }
}

/// The chunks that need not be stored again.
#[derive(Debug, Default)]
pub struct KnownChunks {
    table: HashTable<KnownChunk>,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) groups: Vec<ForeignGroup>,
    blob_places: HashMap<BlobId, u32>,
    /// Maps (blob, ordinal) to the position of the group in `groups`.
    places: HashMap<(u32, u32), u32>,
    /// The blobs added by [`Self::add_blob`], by their positions in `blobs`.
    read: HashSet<u32>,
    left_out: u64,
}

/// Digests are uniformly distributed, so the first bytes serve as the hash.
fn hash_of(digest: &ChunkDigest) -> u64 {
    digest.0.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Cannot overflow in practice: each blob and each group takes more than 40 bytes of memory.
fn place_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl KnownChunks {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of known chunks.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns whether no chunk is known.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Returns the number of chunks dropped because of the limit.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Adds the chunks of `blob`, as listed in its verified table `toc`. Beyond a total of
    /// `chunks_max`, chunks are dropped and will be stored again.
    pub fn add_blob(&mut self, blob: Blob, toc: &[TocGroup], chunks_max: usize) {
        let blob_place = self.blob_place(blob);
        if !self.read.insert(blob_place) {
            return;
        }
        for (ordinal, group) in (0u32..).zip(toc) {
            let place = self.group_place(ForeignGroup {
                blob: blob_place,
                ordinal,
                offset: group.offset,
                stored_len: group.stored_len,
                raw_len: group.raw_len,
                exclusive: group.exclusive,
                digest: group.digest,
                decoded: group.decoded,
                number: None,
            });
            for chunk in &group.chunks {
                if self.table.len() >= chunks_max {
                    self.left_out += 1;
                } else {
                    let place = Place::Foreign { group: place, offset: chunk.offset };
                    self.insert(chunk.digest, chunk.len, place);
                }
            }
        }
    }

    /// Returns the position of `blob`, adding it if it is new.
    pub(crate) fn blob_place(&mut self, blob: Blob) -> u32 {
        if let Some(&place) = self.blob_places.get(&blob.id)
            && self.blobs.get(place as usize) == Some(&blob)
        {
            return place;
        }
        let place = place_of(self.blobs.len());
        self.blobs.push(blob);
        self.blob_places.insert(blob.id, place);
        place
    }

    /// Returns the position of `group`, adding it if it is new.
    pub(crate) fn group_place(&mut self, group: ForeignGroup) -> u32 {
        let key = (group.blob, group.ordinal);
        if let Some(&place) = self.places.get(&key)
            && self.groups.get(place as usize).is_some_and(|known| known.is(&group))
        {
            return place;
        }
        let place = place_of(self.groups.len());
        self.groups.push(group);
        self.places.insert(key, place);
        place
    }

    pub(crate) fn find(&self, digest: &ChunkDigest, len: u32) -> Option<Place> {
        self.table
            .find(hash_of(digest), |entry| entry.digest == *digest && entry.len == len)
            .map(|entry| entry.place)
    }

    /// Adds a chunk. Keeps the first location of a chunk that occurs twice.
    pub(crate) fn insert(&mut self, digest: ChunkDigest, len: u32, place: Place) {
        let hash = hash_of(&digest);
        if self.table.find(hash, |entry| entry.digest == digest && entry.len == len).is_none() {
            self.table
                .insert_unique(hash, KnownChunk { digest, len, place }, |e| hash_of(&e.digest));
        }
    }
}
