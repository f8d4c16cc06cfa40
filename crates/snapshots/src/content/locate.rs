//! Locates the bytes of a file range: index, groups, cache.

use std::ops::Range;

use inlay_prefetch::GroupRef;
use inlay_store::cache::{ContentId, PIECES_MAX, Piece as CachePiece, Placement};
use inlay_store::format::layout::GROUP_RAW_LEN_MAX;
use inlay_store::format::{Extent, FileData, FormatError, Group, GroupIdx, Index, InodeIdx};
use inlay_store::ids::BlobId;

/// Maximum groups of one read-ahead, however small they are.
const READ_AHEAD_GROUPS_MAX: usize = 256;

/// A file range as a list of pieces; the gaps between them are holes.
pub(super) struct Plan {
    /// Bytes of the range that lie within the file.
    pub(super) len: usize,
    /// Size of the file, in bytes.
    pub(super) file_len: u64,
    /// In order, without overlap.
    pub(super) pieces: Vec<Piece>,
}

pub(super) struct Piece {
    /// Position in the reader's buffer.
    pub(super) to: Range<usize>,
    pub(super) from: Place,
}

pub(super) enum Place {
    Index(Box<[u8]>),
    Group {
        blob: BlobId,
        group: Group,
        /// Number of the group in the index.
        number: GroupIdx,
        /// The whole extent of the file in this group.
        extent: CachePiece,
        /// Offset of the piece in the extent.
        skip: u32,
    },
}

impl Piece {
    /// Number of the group that holds the piece; `None` for inline data.
    pub(super) fn group(&self) -> Option<GroupIdx> {
        match self.from {
            Place::Group { number, .. } => Some(number),
            Place::Index(_) => None,
        }
    }
}

impl Place {
    /// Returns the offset of a piece in the group's decoded bytes.
    pub(super) fn group_offset(extent: &CachePiece, skip: u32) -> u32 {
        extent.group_offset.saturating_add(skip)
    }
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
                    let group = index.group(extent.group)?;
                    let blob = index.blob(group.blob)?.id;
                    let skipped = u32::try_from(from - extent.file_offset).unwrap_or(u32::MAX);
                    pieces.push(Piece {
                        to: small(from - start)..small(to.saturating_sub(start)),
                        from: Place::Group {
                            blob,
                            group,
                            number: extent.group,
                            extent: cache_piece(&extent),
                            skip: skipped,
                        },
                    });
                }
            }
        }
        Ok(Self { len, file_len, pieces })
    }

    /// Fills the holes in `buf` with zeros.
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

/// Identity of a large file's contents in the cache; `None` for other files.
pub(super) fn content_id(index: &Index, inode: InodeIdx) -> Result<Option<ContentId>, FormatError> {
    let Some(digest) = index.content(inode)? else { return Ok(None) };
    Ok(Some(ContentId { digest, size: index.attr(inode)?.size }))
}

/// Returns the groups that hold bytes of `range`, each once, in file order.
pub(super) fn groups_within(
    index: &Index,
    inode: InodeIdx,
    range: Range<u64>,
) -> Result<Vec<GroupRef>, FormatError> {
    let FileData::Extents(extents) = index.data(inode)? else { return Ok(Vec::new()) };
    let mut groups: Vec<(GroupIdx, u64)> = Vec::new();
    for extent in extents.within(range) {
        let extent = extent?;
        if groups.len() == READ_AHEAD_GROUPS_MAX {
            break;
        }
        if !groups.iter().any(|(group, _)| *group == extent.group) {
            groups.push((extent.group, extent.file_offset));
        }
    }
    groups
        .into_iter()
        .map(|(group, at)| {
            let want = group_ref(index, group)?;
            Ok(GroupRef { home: home(index, inode, &want.group, at)?, ..want })
        })
        .collect()
}

/// Returns the cache placement of a group to be fetched for `inode`, which has some of its bytes at
/// `at`: within the file's contents if the whole group belongs there. Otherwise `None`: the cache
/// keeps it as a group, because other files may need it.
pub(super) fn home(
    index: &Index,
    inode: InodeIdx,
    group: &Group,
    at: u64,
) -> Result<Option<Placement>, FormatError> {
    if group.owner != Some(inode) {
        return Ok(None);
    }
    let Some(content) = content_id(index, inode)? else { return Ok(None) };
    let FileData::Extents(extents) = index.data(inode)? else { return Ok(None) };
    let reach = u64::from(GROUP_RAW_LEN_MAX);
    let (mut pieces, mut bytes) = (Vec::with_capacity(PIECES_MAX), 0);
    for extent in extents.within(at.saturating_sub(reach)..at.saturating_add(reach)) {
        let extent = extent?;
        if index.group(extent.group)?.digest != group.digest {
            continue;
        }
        if pieces.len() == PIECES_MAX || extent.group_offset != bytes {
            return Ok(None);
        }
        bytes += extent.len;
        pieces.push(cache_piece(&extent));
    }
    let all = bytes == group.raw_len;
    Ok(if all { Placement::new(content, &pieces) } else { None })
}

fn cache_piece(extent: &Extent) -> CachePiece {
    CachePiece {
        file_offset: extent.file_offset,
        group_offset: extent.group_offset,
        len: extent.len,
    }
}

/// Returns a group of the index for a fetch without a specific reader, placed in the cache as
/// readers would place it.
pub(super) fn whole_group(index: &Index, number: GroupIdx) -> Result<GroupRef, FormatError> {
    let want = group_ref(index, number)?;
    let Some(owner) = want.group.owner else { return Ok(want) };
    let FileData::Extents(extents) = index.data(owner)? else { return Ok(want) };
    // A file's own groups are in file order, so a binary search finds the first extent of this one.
    // In an index with another order it finds nothing, and the cache keeps the bytes as a group.
    let (mut low, mut high) = (0, extents.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(extent) = extents.get(middle).transpose()? else { break };
        if extent.group < number {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let found = extents.get(low).transpose()?.filter(|extent| extent.group == number);
    let home = match found {
        Some(extent) => home(index, owner, &want.group, extent.file_offset)?,
        None => None,
    };
    Ok(GroupRef { home, ..want })
}

/// Returns the range of group numbers owned by a large file, which are consecutive. A damaged index
/// may yield too many or none; this is harmless, because it only serves as a read-ahead hint.
pub(super) fn groups_of_file(index: &Index, file: InodeIdx) -> Option<Range<u32>> {
    let FileData::Extents(extents) = index.data(file).ok()? else { return None };
    let first = extents.get(0)?.ok()?.group.0;
    let last = extents.get(extents.len().checked_sub(1)?)?.ok()?.group.0;
    Some(first..last.saturating_add(1))
}

fn group_ref(index: &Index, group: GroupIdx) -> Result<GroupRef, FormatError> {
    let group = index.group(group)?;
    Ok(GroupRef { blob: index.blob(group.blob)?.id, group, home: None })
}

/// Converts an offset in a buffer, which always fits into memory.
fn small(distance: u64) -> usize {
    usize::try_from(distance).unwrap_or(usize::MAX)
}
