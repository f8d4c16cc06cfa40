//! Neighbouring groups that one request can bring.

use std::ops::Range;

use inlay_store::ids::BlobId;

use crate::want::GroupRef;

/// A range of a blob that is being put together: groups can be added at both ends.
#[derive(Debug)]
pub(super) struct Span {
    blob: BlobId,
    range: Range<u64>,
    /// How long it may become, in bytes.
    len_max: u64,
    /// How far apart two groups may be.
    gap: u64,
    /// Bytes of buffers, and how many they may be.
    buffers: u64,
    buffers_max: u64,
    wants: Vec<GroupRef>,
}

impl Span {
    /// Begins with one group, whatever its size.
    pub(super) fn of(first: GroupRef, len_max: u64, gap: u64, buffers_max: u64) -> Self {
        Self {
            blob: first.blob,
            range: first.group.offset..first.end(),
            len_max,
            gap,
            buffers: first.buffer_bytes(),
            buffers_max,
            wants: vec![first],
        }
    }

    /// Adds a group if it is a neighbour and there is room for it.
    pub(super) fn add(&mut self, want: &GroupRef) -> bool {
        let (start, end) = (want.group.offset, want.end());
        let above = start >= self.range.end && start - self.range.end <= self.gap;
        let below = end <= self.range.start && self.range.start - end <= self.gap;
        let range = self.range.start.min(start)..self.range.end.max(end);
        let fits = want.blob == self.blob
            && (above || below)
            && range.end - range.start <= self.len_max
            && self.buffers.saturating_add(want.buffer_bytes()) <= self.buffers_max;
        if fits {
            self.buffers += want.buffer_bytes();
            self.range = range;
            self.wants.push(*want);
        }
        fits
    }

    /// The blob, the range, the groups sorted by offset, and the bytes of buffers.
    pub(super) fn finish(mut self) -> (BlobId, Range<u64>, Vec<GroupRef>, u64) {
        self.wants.sort_by_key(|want| want.group.offset);
        (self.blob, self.range, self.wants, self.buffers)
    }
}
