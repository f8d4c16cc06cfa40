//! Maps the bytes of a group to their positions in a large file, so that the cache can store the
//! file as one.

use std::ops::Range;

use crate::format::layout::{FILE_LEN_MAX, GROUP_RAW_LEN_MAX};
use crate::ids::Digest;

/// Identifies the whole contents of a large file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId {
    /// BLAKE3 of all its bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
}

/// A contiguous range of a group as part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Piece {
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// Offset in the group's decoded bytes.
    pub group_offset: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Piece {
    /// Returns its range in the file. Call only if [`Self::fits`].
    pub(super) fn range(&self) -> Range<u64> {
        self.file_offset..self.file_offset.saturating_add(u64::from(self.len))
    }

    /// Returns the `len` bytes of it that start `skip` bytes into it; `None` if they are empty or
    /// out of range.
    pub(super) fn part(&self, skip: u32, len: usize) -> Option<Self> {
        let len = u32::try_from(len).ok()?;
        let inside = len > 0 && skip.checked_add(len).is_some_and(|end| end <= self.len);
        inside.then(|| Self {
            file_offset: self.file_offset.saturating_add(u64::from(skip)),
            group_offset: self.group_offset.saturating_add(skip),
            len,
        })
    }

    /// Returns its bytes in the decoded bytes of the group.
    pub(super) fn of<'a>(&self, decoded: &'a [u8]) -> Option<&'a [u8]> {
        let start = self.group_offset as usize;
        decoded.get(start..start.checked_add(self.len as usize)?)
    }

    /// Returns whether it is a valid piece of `content`.
    pub(super) fn fits(&self, content: &ContentId) -> bool {
        (1..=GROUP_RAW_LEN_MAX).contains(&self.len)
            && self.group_offset.checked_add(self.len).is_some_and(|end| end <= GROUP_RAW_LEN_MAX)
            && content.size <= FILE_LEN_MAX
            && self
                .file_offset
                .checked_add(u64::from(self.len))
                .is_some_and(|end| end <= content.size)
    }
}

/// The maximum number of pieces in a placement.
pub const PIECES_MAX: usize = 4;

/// The destination of a group: one content, and the positions of the group's pieces in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    content: ContentId,
    pieces: [Piece; PIECES_MAX],
    count: usize,
}

impl Placement {
    /// Creates a placement; `None` if there are no pieces or too many, or one is invalid.
    pub fn new(content: ContentId, pieces: &[Piece]) -> Option<Self> {
        let mut placed = [Piece::default(); PIECES_MAX];
        placed.get_mut(..pieces.len())?.copy_from_slice(pieces);
        let good = !pieces.is_empty() && pieces.iter().all(|piece| piece.fits(&content));
        good.then_some(Self { content, pieces: placed, count: pieces.len() })
    }

    /// Returns the content.
    pub fn content(&self) -> &ContentId {
        &self.content
    }

    /// Returns the pieces.
    pub fn pieces(&self) -> &[Piece] {
        self.pieces.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_combinations_are_a_placement() {
        let content = ContentId { digest: Digest::of(b""), size: 1000 };
        let piece = |file_offset, group_offset, len| Piece { file_offset, group_offset, len };
        assert!(Placement::new(content, &[]).is_none());
        assert!(Placement::new(content, &[piece(0, 0, 10); 5]).is_none());
        let placed = Placement::new(content, &[piece(0, 0, 10), piece(500, 10, 500)]).unwrap();
        assert_eq!(placed.pieces().len(), 2);
        for wrong in [
            piece(0, 0, 0),
            piece(501, 0, 500),
            piece(u64::MAX, 0, 1),
            piece(0, u32::MAX, 1),
            piece(0, GROUP_RAW_LEN_MAX, 1),
        ] {
            assert!(Placement::new(content, &[wrong]).is_none(), "{wrong:?}");
        }
    }
}
