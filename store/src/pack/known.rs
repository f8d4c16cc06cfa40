//! Which chunks there are already, and where: in this import, and in blobs of other snapshots.

use std::collections::{HashMap, HashSet};

use hashbrown::HashTable;

use super::toc::TocGroup;
use crate::format::Blob;
use crate::ids::{BlobId, ChunkDigest};

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a group that has a number in this import.
    Numbered {
        /// The packer's number of the group.
        group: u32,
        /// Where the chunk begins in the group's decoded bytes.
        offset: u32,
    },
    /// In a group of another snapshot's blob that nothing here has referred to yet.
    Foreign {
        /// Place in `KnownChunks::groups`.
        group: u32,
        /// Where the chunk begins in the group's decoded bytes.
        offset: u32,
    },
}

#[derive(Debug)]
struct Entry {
    digest: ChunkDigest,
    len: u32,
    place: Place,
}

/// A group of a blob that was there before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ForeignGroup {
    pub(crate) blob: u32,
    pub(crate) ordinal: u32,
    pub(crate) offset: u64,
    pub(crate) stored_len: u32,
    pub(crate) raw_len: u32,
    pub(crate) exclusive: bool,
    pub(crate) digest: crate::ids::GroupDigest,
    /// The number that it has in this import, once something refers to it.
    pub(crate) number: Option<u32>,
}

impl ForeignGroup {
    /// Whether both are the same bytes of the same blob.
    fn is(&self, other: &Self) -> bool {
        (self.offset, self.stored_len, self.raw_len, self.digest)
            == (other.offset, other.stored_len, other.raw_len, other.digest)
    }
}

/// The chunks that need not be stored again.
#[derive(Debug, Default)]
pub struct KnownChunks {
    table: HashTable<Entry>,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) groups: Vec<ForeignGroup>,
    blob_places: HashMap<BlobId, u32>,
    /// Where each group of each blob is in `groups`, by the blob's place and its own among the blob's.
    places: HashMap<(u32, u32), u32>,
    /// The blobs whose tables were added, by their places.
    read: HashSet<u32>,
    left_out: u64,
}

/// A digest is as good as random: its first bytes are the hash.
fn hash_of(digest: &ChunkDigest) -> u64 {
    digest.0.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Memory ends long before the numbers do: each blob and each group takes more than 40 bytes.
fn place_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl KnownChunks {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many chunks are known.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Chunks that were not taken because there were too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Adds what `blob` holds, as its verified table says. Past `chunks_max` chunks in all, the
    /// rest is left out: it will be stored again.
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

    /// The place of `blob`, which is a new one if it was not known.
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

    /// The place of `group`, which is a new one if it was not known.
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

    /// Keeps the first place of a chunk that comes twice.
    pub(crate) fn insert(&mut self, digest: ChunkDigest, len: u32, place: Place) {
        let hash = hash_of(&digest);
        if self.table.find(hash, |entry| entry.digest == digest && entry.len == len).is_none() {
            self.table.insert_unique(hash, Entry { digest, len, place }, |e| hash_of(&e.digest));
        }
    }
}
