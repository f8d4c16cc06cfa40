//! Where a group's bytes lie in a large file: what lets the cache keep the file as one.

use std::ops::Range;

use crate::format::layout::{FILE_LEN_MAX, GROUP_RAW_LEN_MAX};
use crate::ids::Digest;

/// The whole contents of a large file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId {
    /// BLAKE3 of all its bytes.
    pub digest: Digest,
    /// How many they are.
    pub size: u64,
}

/// Bytes of a group as a piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Piece {
    /// Where it begins in the file.
    pub file_offset: u64,
    /// Where it begins in the group's decoded bytes.
    pub group_offset: u32,
    /// In bytes.
    pub len: u32,
}

impl Piece {
    /// Where it is in the file. Only for a piece that fits.
    pub(super) fn range(&self) -> Range<u64> {
        self.file_offset..self.file_offset.saturating_add(u64::from(self.len))
    }

    /// The part of it that begins `skip` bytes into it.
    pub(super) fn part(&self, skip: u32, len: usize) -> Option<Self> {
        let len = u32::try_from(len).ok()?;
        let inside = len > 0 && skip.checked_add(len).is_some_and(|end| end <= self.len);
        inside.then(|| Self {
            file_offset: self.file_offset.saturating_add(u64::from(skip)),
            group_offset: self.group_offset.saturating_add(skip),
            len,
        })
    }

    /// Its bytes, in those of the group.
    pub(super) fn of<'a>(&self, decoded: &'a [u8]) -> Option<&'a [u8]> {
        let start = self.group_offset as usize;
        decoded.get(start..start.checked_add(self.len as usize)?)
    }

    /// Whether it can be a piece of `content`.
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

/// The most pieces of one group that a placement names.
pub const PIECES_MAX: usize = 4;

/// Where a group's bytes belong: into one content, as a few pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    content: ContentId,
    pieces: [Piece; PIECES_MAX],
    count: usize,
}

impl Placement {
    /// These pieces of `content`; `None` if there are none or too many, or if one can't be right.
    pub fn new(content: ContentId, pieces: &[Piece]) -> Option<Self> {
        let mut placed = [Piece::default(); PIECES_MAX];
        placed.get_mut(..pieces.len())?.copy_from_slice(pieces);
        let good = !pieces.is_empty() && pieces.iter().all(|piece| piece.fits(&content));
        good.then_some(Self { content, pieces: placed, count: pieces.len() })
    }

    /// The content.
    pub fn content(&self) -> &ContentId {
        &self.content
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Piece] {
        self.pieces.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_is_a_placement() {
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
