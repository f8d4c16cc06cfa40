//! Tracks the ranges that a content file holds, the group that each came from, and the digest of
//! its bytes.
//!
//! The digest of a content can be checked only when the content is complete. Until then, it is a
//! mere claim of some snapshot. A range is therefore returned only to readers that request the
//! bytes of the group that it came from, at the same position: a snapshot with a false claim
//! affects only itself.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entry::BLOCK;
use super::placement::{ContentId, Piece};
use crate::format::layout::GROUP_RAW_LEN_MAX;
use crate::ids::{Digest, GroupDigest};

const MAGIC: [u8; 8] = *b"INLAYRDY";
const VERSION: u32 = 1;

/// The header of a `.ready` file.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RangesHeader {
    magic: [u8; 8],
    version: U32,
    zero: U32,
    size: U64,
    content: Digest,
}

/// A ready range as stored. An invalid record and all records after it are ignored.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RangeRecord {
    file_offset: U64,
    group_offset: U32,
    len: U32,
    group: GroupDigest,
    bytes: Digest,
    /// The first 8 bytes of the BLAKE3 of the content's digest and the fields above.
    check: [u8; 8],
}

pub(super) const HEADER_LEN: u64 = size_of::<RangesHeader>() as u64;
pub(super) const RECORD_LEN: u64 = size_of::<RangeRecord>() as u64;

impl RangesHeader {
    pub(super) fn new(content: &ContentId) -> Self {
        Self {
            magic: MAGIC,
            version: U32::new(VERSION),
            zero: U32::new(0),
            size: U64::new(content.size),
            content: content.digest,
        }
    }

    /// Returns whether this is the header of `content`.
    pub(super) fn is_of(&self, content: &ContentId) -> bool {
        self.as_bytes() == Self::new(content).as_bytes()
    }
}

impl RangeRecord {
    pub(super) fn new(content: &ContentId, ready: &Ready) -> Self {
        let mut record = Self {
            file_offset: U64::new(ready.piece.file_offset),
            group_offset: U32::new(ready.piece.group_offset),
            len: U32::new(ready.piece.len),
            group: ready.group,
            bytes: ready.bytes,
            check: [0; 8],
        };
        record.check = record.checked(content);
        record
    }

    fn checked(&self, content: &ContentId) -> [u8; 8] {
        let all = self.as_bytes();
        let body = all.get(..all.len() - self.check.len()).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(content.digest.as_bytes()).update(body);
        let mut check = [0; 8];
        hasher.finalize_xof().fill(&mut check);
        check
    }

    /// Returns the range, if this is a valid record of `content` and the range lies inside it.
    fn ready(&self, content: &ContentId) -> Option<Ready> {
        let piece = Piece {
            file_offset: self.file_offset.get(),
            group_offset: self.group_offset.get(),
            len: self.len.get(),
        };
        let good = self.check == self.checked(content) && piece.fits(content);
        good.then(|| Ready {
            piece,
            group: self.group,
            bytes: self.bytes,
            proved: AtomicBool::new(false),
        })
    }
}

/// Decodes the records after a header, up to the first invalid one.
pub(super) fn parse(content: &ContentId, bytes: &[u8]) -> Vec<Ready> {
    bytes
        .chunks_exact(size_of::<RangeRecord>())
        .map_while(|chunk| RangeRecord::read_from_bytes(chunk).ok()?.ready(content))
        .collect()
}

/// A range that the file holds.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) piece: Piece,
    pub(super) group: GroupDigest,
    /// BLAKE3 of its bytes.
    pub(super) bytes: Digest,
    /// Whether this process has verified the bytes.
    proved: AtomicBool,
}

impl Ready {
    /// Creates a range that this process has just written or compared.
    pub(super) fn new(piece: Piece, group: GroupDigest, bytes: &[u8]) -> Self {
        Self { piece, group, bytes: Digest::of(bytes), proved: AtomicBool::new(true) }
    }

    pub(super) fn is_proved(&self) -> bool {
        self.proved.load(Ordering::Acquire)
    }

    pub(super) fn proved(&self) {
        self.proved.store(true, Ordering::Release);
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.piece.range()
    }

    /// Returns whether this range contains `want` of `group`, at the same position in the group.
    fn holds(&self, group: &GroupDigest, want: &Piece) -> bool {
        let (have, want_range) = (self.range(), want.range());
        self.group == *group
            && have.start <= want_range.start
            && want_range.end <= have.end
            && want_range.start - have.start + u64::from(self.piece.group_offset)
                == u64::from(want.group_offset)
    }
}

type Key = (u64, GroupDigest);

/// All ready ranges of one content.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ready: BTreeMap<Key, Arc<Ready>>,
    /// Their union: disjoint spans, start to end.
    spans: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Returns the range that contains `want` of `group`.
    pub(super) fn find(&self, group: &GroupDigest, want: &Piece) -> Option<&Arc<Ready>> {
        self.near(want.file_offset, want.file_offset).find(|ready| ready.holds(group, want))
    }

    /// Iterates in reverse over the ranges that start at or before `last` and may reach `first`.
    fn near(&self, first: u64, last: u64) -> impl Iterator<Item = &Arc<Ready>> {
        let reach = first.saturating_sub(u64::from(GROUP_RAW_LEN_MAX));
        let from = (reach, GroupDigest(Digest::from_bytes([0; 32])));
        let to = (last, GroupDigest(Digest::from_bytes([0xff; 32])));
        self.ready.range(from..=to).rev().map(|(_, ready)| ready)
    }

    /// Returns all ranges.
    pub(super) fn all(&self) -> Vec<Arc<Ready>> {
        self.ready.values().cloned().collect()
    }

    /// Returns the ranges that overlap `range`.
    pub(super) fn overlapping(&self, range: &Range<u64>) -> Vec<Arc<Ready>> {
        let Some(last) = range.end.checked_sub(1) else { return Vec::new() };
        let overlaps = |ready: &&Arc<Ready>| ready.range().end > range.start;
        self.near(range.start, last).filter(overlaps).cloned().collect()
    }

    /// Adds a range. Of two ranges of one group with the same start, keeps the longer.
    pub(super) fn add(&mut self, ready: Ready) {
        let (range, key) = (ready.range(), (ready.piece.file_offset, ready.group));
        if self.ready.get(&key).is_none_or(|have| have.piece.len < ready.piece.len) {
            self.ready.insert(key, Arc::new(ready));
            self.cover(range);
        }
    }

    /// Adds a range to `spans`. Merges overlapping and adjacent spans.
    fn cover(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if let Some((&before, &reach)) = self.spans.range(..=start).next_back()
            && reach >= start
        {
            start = before;
            end = end.max(reach);
        }
        while let Some((&next, &reach)) = self.spans.range(start..=end).next() {
            self.spans.remove(&next);
            end = end.max(reach);
        }
        self.spans.insert(start, end);
    }

    /// Removes a range with wrong bytes.
    pub(super) fn remove(&mut self, wrong: &Ready) {
        self.ready.remove(&(wrong.piece.file_offset, wrong.group));
        self.spans.clear();
        let ranges: Vec<Range<u64>> = self.ready.values().map(|ready| ready.range()).collect();
        for range in ranges {
            self.cover(range);
        }
    }

    /// Returns the gaps in `range`.
    pub(super) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let first = self.spans.range(..=range.start).next_back().map_or(range.start, |(s, _)| *s);
        for (&start, &end) in self.spans.range(first..range.end) {
            if start > at {
                missing.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// Returns whether the ranges cover the whole content.
    pub(super) fn is_whole(&self, content: &ContentId) -> bool {
        self.missing(0..content.size).is_empty()
    }

    /// Returns the number of bytes covered.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.spans.iter().map(|(start, end)| end - start).sum()
    }

    /// Returns the size of the blocks that the ranges touch, in bytes.
    pub(super) fn blocks(&self) -> u64 {
        let (mut blocks, mut after) = (0, 0);
        for (start, end) in &self.spans {
            let (first, last) = ((start / BLOCK).max(after), end.div_ceil(BLOCK));
            blocks += last.saturating_sub(first);
            after = after.max(last);
        }
        blocks * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTENT_LEN: u64 = 40_000;

    fn content() -> ContentId {
        ContentId { digest: Digest::of(b"content"), size: CONTENT_LEN }
    }

    fn group(name: u8) -> GroupDigest {
        GroupDigest(Digest::of(&[name]))
    }

    fn ready(file_offset: u64, len: u32, name: u8) -> Ready {
        Ready::new(Piece { file_offset, group_offset: 0, len }, group(name), b"")
    }

    #[test]
    fn records_come_back_until_one_is_wrong() {
        let content = content();
        let mut bytes = Vec::new();
        for place in 0..5u8 {
            let ready = ready(u64::from(place) * 100, 100, place);
            bytes.extend_from_slice(RangeRecord::new(&content, &ready).as_bytes());
        }
        assert_eq!(parse(&content, &bytes).len(), 5);
        assert_eq!(parse(&content, &bytes[..bytes.len() - 1]).len(), 4);
        for bit in 0..usize::try_from(RECORD_LEN).unwrap() * 8 {
            let mut bad = bytes.clone();
            bad[usize::try_from(RECORD_LEN).unwrap() + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&content, &bad).len(), 1, "bit {bit}");
        }
        let other = ContentId { digest: Digest::of(b"other"), ..content };
        assert_eq!(parse(&other, &bytes).len(), 0);
    }

    proptest! {
        /// The model is a set of bytes, and for each byte the groups that it came from.
        #[test]
        fn ranges_are_a_set_of_bytes(
            steps in proptest::collection::vec((0..CONTENT_LEN, 1u32..9000, 0u8..3, any::<bool>()), 1..25),
            asks in proptest::collection::vec((0..CONTENT_LEN, 1u32..3000, 0u8..3), 20),
        ) {
            let mut ranges = Ranges::default();
            let mut model: Vec<(u64, u32, u8)> = Vec::new();
            for (offset, len, name, remove) in steps {
                let len = len.min(u32::try_from(CONTENT_LEN - offset).unwrap());
                if remove && let Some((offset, len, name)) = model.pop() {
                    ranges.remove(&ready(offset, len, name));
                } else if !model.iter().any(|(o, _, n)| (*o, *n) == (offset, name)) {
                    ranges.add(ready(offset, len, name));
                    model.push((offset, len, name));
                }
            }
            let there = |byte: u64| model.iter().any(|(o, l, _)| (*o..o + u64::from(*l)).contains(&byte));
            let bytes = (0..CONTENT_LEN).filter(|byte| there(*byte)).count() as u64;
            prop_assert_eq!(ranges.bytes(), bytes);
            let missing: u64 = ranges.missing(0..CONTENT_LEN).iter().map(|r| r.end - r.start).sum();
            prop_assert_eq!(missing, CONTENT_LEN - bytes);
            prop_assert_eq!(ranges.is_whole(&content()), bytes == CONTENT_LEN);
            let blocks = (0..CONTENT_LEN.div_ceil(BLOCK))
                .filter(|block| (block * BLOCK..((block + 1) * BLOCK).min(CONTENT_LEN)).any(there))
                .count() as u64;
            prop_assert_eq!(ranges.blocks(), blocks * BLOCK);
            for (offset, len, name) in asks {
                let end = (offset + u64::from(len)).min(CONTENT_LEN);
                let missing = ranges.missing(offset..end);
                prop_assert!(missing.iter().all(|gap| !gap.is_empty() && !gap.clone().any(there)));
                let held = missing.iter().map(|gap| gap.end - gap.start).sum::<u64>();
                prop_assert_eq!(held, (offset..end).filter(|byte| !there(*byte)).count() as u64);
                let holders = model
                    .iter()
                    .filter(|(o, l, _)| *o < end && o + u64::from(*l) > offset)
                    .count();
                prop_assert_eq!(ranges.overlapping(&(offset..end)).len(), holders);
                let by = model.iter().find(|(o, l, n)| {
                    *n == name && *o <= offset && o + u64::from(*l) >= end
                });
                if let Some((o, _, _)) = by {
                    let want = |group_offset| Piece {
                        file_offset: offset,
                        group_offset,
                        len: u32::try_from(end - offset).unwrap(),
                    };
                    let right = u32::try_from(offset - o).unwrap();
                    prop_assert!(ranges.find(&group(name), &want(right)).is_some());
                    prop_assert!(ranges.find(&group(7), &want(right)).is_none());
                }
            }
        }
    }
}
