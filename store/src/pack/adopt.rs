//! Adopts unchanged files of earlier snapshots by reference: the new snapshot refers to their
//! groups, and none of their bytes are read.

use super::content::{Content, PackedExtent, Pieces};
use super::known_chunks::ForeignGroup;
use super::packer::Packer;
use super::{AdoptError, PackError};
use crate::format::{FileData, FormatError, GroupIdx, Index, InodeIdx};

/// Marks a group without a number.
const NONE: u32 = u32::MAX;

/// An index that a [`Packer`] adopts files from.
#[derive(Debug)]
pub struct Adopter {
    index: Index,
    /// The packer's number of each group, or `NONE` until a file in the group is adopted.
    numbers: Vec<u32>,
}

impl Adopter {
    /// Prepares to adopt files of `index`.
    pub fn new(index: Index) -> Self {
        let numbers = vec![NONE; index.group_count() as usize];
        Self { index, numbers }
    }

    /// Returns the index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn number(&mut self, packer: &mut Packer, group: GroupIdx) -> Result<u32, AdoptError> {
        let place = group.0 as usize;
        if let Some(&number) = self.numbers.get(place).filter(|number| **number != NONE) {
            return Ok(number);
        }
        let found = self.index.group(group)?;
        let blob = self.index.blob(found.blob)?;
        let foreign = ForeignGroup {
            blob: packer.known.blob_place(blob),
            ordinal: found.ordinal,
            offset: found.offset,
            stored_len: found.stored_len,
            raw_len: found.raw_len,
            exclusive: found.owner.is_some(),
            digest: found.digest,
            decoded: self.index.decoded(group)?,
            number: None,
        };
        let foreign = packer.known.group_place(foreign);
        let number = packer.numbered(foreign)?;
        if let Some(known) = self.numbers.get_mut(place) {
            *known = number;
        }
        Ok(number)
    }
}

impl Packer {
    /// Returns the location of the bytes of the regular file `inode` in an earlier snapshot. The
    /// blobs must still be in the store.
    pub fn adopt(&mut self, from: &mut Adopter, inode: InodeIdx) -> Result<Content, AdoptError> {
        let index = from.index.clone();
        let extents = match index.data(inode)? {
            FileData::Hole => return Ok(Content::Hole),
            FileData::Inline(bytes) => return Ok(Content::Inline(bytes.into())),
            FileData::Extents(extents) => extents,
        };
        if let Some(single) = extents.single() {
            let extent = single?;
            let group = from.number(self, extent.group)?;
            return Ok(Content::Single { group, group_offset: extent.group_offset });
        }
        let mut packed = Vec::with_capacity(extents.len());
        let mut floor = 0;
        for extent in extents.iter() {
            let extent = extent?;
            if extent.file_offset < floor {
                return Err(FormatError::corrupt("extents out of order", inode.0).into());
            }
            floor = extent.file_end();
            packed.push(PackedExtent {
                file_offset: extent.file_offset,
                group: from.number(self, extent.group)?,
                group_offset: extent.group_offset,
                len: extent.len,
            });
        }
        let digest = index.content(inode)?;
        Ok(Content::Pieces(Box::new(Pieces { extents: packed, digest })))
    }

    /// Returns the number of a foreign group. Assigns one on first use.
    pub(super) fn numbered(&mut self, foreign: u32) -> Result<u32, PackError> {
        let known = self.known.groups.get(foreign as usize).and_then(|group| group.number);
        if let Some(number) = known {
            return Ok(number);
        }
        let number = self.next_number(Some(foreign))?;
        if let Some(group) = self.known.groups.get_mut(foreign as usize) {
            group.number = Some(number);
        }
        Ok(number)
    }
}
