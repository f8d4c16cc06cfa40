//! Where the bytes of a range of a file are.

use std::ops::Range;

use inlay_prefetch::GroupRef;
use inlay_store::format::{FileData, FormatError, GroupIdx, Index, InodeIdx};

/// The most groups named for one stretch of read-ahead, however small they are.
const READ_AHEAD_GROUPS_MAX: usize = 256;

/// A range of a file as the pieces that it is put together from. What lies between them is hole.
pub(super) struct Plan {
    /// How many bytes of the range the file has.
    pub(super) len: usize,
    /// The whole file.
    pub(super) file_len: u64,
    /// In order, without overlap.
    pub(super) pieces: Vec<Piece>,
}

pub(super) struct Piece {
    /// In the reader's buffer.
    pub(super) to: Range<usize>,
    pub(super) from: Place,
}

pub(super) enum Place {
    Index(Box<[u8]>),
    Group {
        group: GroupRef,
        /// In the group's decoded bytes.
        offset: u32,
    },
}

impl Plan {
    pub(super) fn new(
        index: &Index,
        inode: InodeIdx,
        offset: u64,
        len: usize,
    ) -> Result<Self, FormatError> {
        let data = index.data(inode)?;
        let file_len = index.attr(inode)?.size;
        let end = offset.saturating_add(len as u64).min(file_len);
        let start = offset.min(end);
        let len = small(end - start);
        let mut pieces = Vec::new();
        match data {
            FileData::Hole => {}
            FileData::Inline(bytes) => {
                if let Some(part) = bytes.get(small(start)..small(end)) {
                    pieces.push(Piece { to: 0..len, from: Place::Index(part.into()) });
                }
            }
            FileData::Extents(extents) => {
                for extent in extents.within(start..end) {
                    let extent = extent?;
                    let from = extent.file_offset.max(start);
                    let to = extent.file_end().min(end);
                    let skipped = u32::try_from(from - extent.file_offset).unwrap_or(u32::MAX);
                    pieces.push(Piece {
                        to: small(from - start)..small(to.saturating_sub(start)),
                        from: Place::Group {
                            group: group_ref(index, extent.group)?,
                            offset: extent.group_offset.saturating_add(skipped),
                        },
                    });
                }
            }
        }
        Ok(Self { len, file_len, pieces })
    }

    /// Writes the zeros of the holes.
    pub(super) fn clear_holes(&self, buf: &mut [u8]) {
        let mut filled = 0;
        for piece in &self.pieces {
            if let Some(hole) = buf.get_mut(filled..piece.to.start) {
                hole.fill(0);
            }
            filled = piece.to.end;
        }
        if let Some(hole) = buf.get_mut(filled..self.len) {
            hole.fill(0);
        }
    }
}

/// The groups that hold bytes of `range`, each once, in file order.
pub(super) fn groups_within(
    index: &Index,
    inode: InodeIdx,
    range: Range<u64>,
) -> Result<Vec<GroupRef>, FormatError> {
    let FileData::Extents(extents) = index.data(inode)? else { return Ok(Vec::new()) };
    let mut groups: Vec<GroupIdx> = Vec::new();
    for extent in extents.within(range) {
        let group = extent?.group;
        if groups.len() == READ_AHEAD_GROUPS_MAX {
            break;
        }
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups.into_iter().map(|group| group_ref(index, group)).collect()
}

fn group_ref(index: &Index, group: GroupIdx) -> Result<GroupRef, FormatError> {
    let group = index.group(group)?;
    Ok(GroupRef { blob: index.blob(group.blob)?.id, group })
}

/// A distance inside a buffer, which is in memory.
fn small(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
