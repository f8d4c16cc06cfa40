//! Coalesces neighbouring groups into one request.

use std::ops::Range;

use inlay_store::ids::BlobId;

use crate::want::GroupRef;

/// A blob range under construction; grows at both ends.
#[derive(Debug)]
pub(super) struct Span {
    blob: BlobId,
    range: Range<u64>,
    /// Maximum length, in bytes.
    len_max: u64,
    /// Maximum gap between two groups, in bytes.
    gap: u64,
    /// Buffer bytes so far, and their limit.
    buffers: u64,
    buffers_max: u64,
    wants: Vec<GroupRef>,
}

impl Span {
    /// Starts with one group, of any size.
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

    /// Adds a group if it is close enough and fits. Returns whether it was added.
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

    /// Returns the blob, the range, the groups sorted by offset, and the buffer bytes.
    pub(super) fn finish(mut self) -> (BlobId, Range<u64>, Vec<GroupRef>, u64) {
        self.wants.sort_by_key(|want| want.group.offset);
        (self.blob, self.range, self.wants, self.buffers)
    }
}
