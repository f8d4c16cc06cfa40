//! Sequential read-ahead: derives from a file's reads how far to fetch ahead.
//!
//! A state machine without I/O. The window doubles while reads continue in order, as in Linux's
//! on-demand readahead (Wu, Xi, Xu: "On the Design of a New Linux Readahead Framework", 2008).
//! Reads may arrive slightly out of order, because the kernel sends several concurrently.

use std::num::NonZeroUsize;
use std::ops::Range;

use lru::LruCache;

/// Identifies a stream of reads: an open file, or an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// Read-ahead windows, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct ReadAheadLimits {
    /// Initial window: about two groups. Default 1 MiB.
    pub first: u64,
    /// Maximum window. Default 8 MiB.
    pub max: u64,
    /// How far ahead of the furthest byte read a read may start and still count as in order. A read
    /// longer than an eighth of this may start up to eight times its own length ahead. Default 512
    /// KiB.
    pub disorder: u64,
    /// Number of streams tracked; the least recently read is dropped. Default 1024.
    pub streams: NonZeroUsize,
}

impl Default for ReadAheadLimits {
    fn default() -> Self {
        Self {
            first: 1 << 20,
            max: 8 << 20,
            disorder: 512 << 10,
            streams: NonZeroUsize::new(1024).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// Read-ahead state of all streams.
#[derive(Debug)]
pub struct SequentialReads {
    limits: ReadAheadLimits,
    streams: LruCache<StreamId, Stream>,
}

/// A run of reads in order.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// End offset of the furthest read.
    read_to: u64,
    /// End offset of the furthest read-ahead.
    asked_to: u64,
    /// Size of the next read-ahead window, from `read_to`.
    window: u64,
}

impl SequentialReads {
    /// Creates a detector without streams.
    pub fn new(limits: ReadAheadLimits) -> Self {
        Self { limits, streams: LruCache::new(limits.streams) }
    }

    /// Records a read of `len` bytes at `offset` of a file of `file_len` bytes. Returns the range
    /// to read ahead now, if any: never past the end of the file, never more than the maximum
    /// window ahead of the reader, and, while reads stay in order, no byte twice.
    pub fn read(
        &mut self,
        stream: StreamId,
        offset: u64,
        len: u64,
        file_len: u64,
    ) -> Option<Range<u64>> {
        let end = offset.saturating_add(len).min(file_len);
        if offset >= end {
            return None;
        }
        let limits = self.limits;
        let begin = Stream { read_to: end, asked_to: end, window: limits.first.min(limits.max) };
        let Some(run) = self.streams.get_mut(&stream) else {
            self.streams.put(stream, begin);
            return None;
        };
        let disorder = limits.disorder.max(len.saturating_mul(8));
        let furthest = run.read_to.saturating_add(disorder);
        if offset > furthest || end.saturating_add(disorder) < run.read_to {
            *run = begin;
            return None;
        }
        if end <= run.read_to {
            // A late or repeated read: no progress.
            return None;
        }
        run.read_to = end;
        run.ask(limits.max, file_len)
    }

    /// Drops a stream when its file is closed.
    pub fn forget(&mut self, stream: StreamId) {
        self.streams.pop(&stream);
    }

    /// Returns the number of streams tracked.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Returns whether no stream is tracked.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }
}

impl Stream {
    fn ask(&mut self, window_max: u64, file_len: u64) -> Option<Range<u64>> {
        let start = self.asked_to.max(self.read_to);
        // Half a window is still ahead: wait, so that requests stay large.
        if start - self.read_to > self.window / 2 {
            return None;
        }
        let end = self.read_to.saturating_add(self.window).min(file_len);
        if start >= end {
            return None;
        }
        self.asked_to = end;
        self.window = self.window.saturating_mul(2).min(window_max);
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: StreamId = StreamId(1);
    const MIB: u64 = 1 << 20;

    fn limits() -> ReadAheadLimits {
        ReadAheadLimits { streams: NonZeroUsize::new(4).unwrap(), ..ReadAheadLimits::default() }
    }

    #[test]
    fn reads_in_order_open_the_window() {
        let mut reads = SequentialReads::new(limits());
        let mut asked = Vec::new();
        for place in 0..200 {
            asked.extend(reads.read(FILE, place * 131_072, 131_072, 100 * MIB));
        }
        assert_eq!(asked[0], 262_144..262_144 + MIB);
        assert!(asked.windows(2).all(|pair| pair[0].end == pair[1].start), "{asked:?}");
        let longest = asked.iter().map(|range| range.end - range.start).max();
        assert!(longest >= Some(4 * MIB), "{asked:?}");
    }

    #[test]
    fn one_read_is_no_run() {
        let mut reads = SequentialReads::new(limits());
        assert_eq!(reads.read(FILE, 0, 4096, 100 * MIB), None);
        assert_eq!(reads.read(FILE, 50 * MIB, 4096, 100 * MIB), None);
        assert_eq!(reads.read(FILE, 20 * MIB, 4096, 100 * MIB), None);
        assert!(reads.read(FILE, 20 * MIB + 4096, 4096, 100 * MIB).is_some());
    }

    #[test]
    fn parallel_reads_out_of_order_are_a_run() {
        let mut reads = SequentialReads::new(limits());
        let mut covered = 0;
        for place in [0u64, 2, 1, 3, 5, 6, 4, 7, 9, 8, 10, 11] {
            if let Some(range) = reads.read(FILE, place * MIB, MIB, 64 * MIB) {
                assert!(range.start >= covered);
                covered = range.end;
            }
        }
        assert!(covered >= 16 * MIB, "{covered}");
    }

    #[test]
    fn no_request_goes_past_the_end() {
        let mut reads = SequentialReads::new(limits());
        assert_eq!(reads.read(FILE, 0, 4096, 10_000), None);
        assert_eq!(reads.read(FILE, 4096, 4096, 10_000), Some(8192..10_000));
        assert_eq!(reads.read(FILE, 8192, 4096, 10_000), None);
        assert_eq!(reads.read(FILE, 10_000, 4096, 10_000), None);
        assert_eq!(reads.read(FILE, u64::MAX, u64::MAX, 10_000), None);
    }

    fn trace() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
        let anywhere = (0u64..6, 0..40 * MIB, 0u64..2 * MIB);
        let in_order = (0u64..6, 0u64..300).prop_map(|(s, p)| (s, p * 131_072, 131_072));
        proptest::collection::vec(prop_oneof![anywhere, in_order], 1..200)
    }

    proptest! {
        #[test]
        fn read_ahead_ranges_and_streams_are_bounded(trace in trace(), file_len in 1..40 * MIB) {
            let mut reads = SequentialReads::new(limits());
            for (stream, offset, len) in trace {
                let range = reads.read(StreamId(stream), offset, len, file_len);
                if let Some(range) = range {
                    prop_assert!(range.start < range.end && range.end <= file_len);
                    prop_assert!(range.start >= offset + len);
                    prop_assert!(range.end <= offset + len + limits().max);
                }
                prop_assert!(reads.len() <= 4);
            }
        }

        /// Reads shuffled within the allowed disorder: no byte is read ahead twice.
        #[test]
        fn a_run_is_asked_for_once(
            late in proptest::collection::vec(0u64..4, 100),
            len in prop_oneof![Just(4096u64), Just(131_072), Just(MIB)],
        ) {
            let mut places: Vec<u64> = (0..100).collect();
            places.sort_by_key(|place| place + late[usize::try_from(*place).unwrap()]);
            let mut reads = SequentialReads::new(limits());
            let mut asked_to = 0;
            for place in places {
                if let Some(range) = reads.read(FILE, place * len, len, 100 * len) {
                    prop_assert!(range.start >= asked_to, "{range:?} after {asked_to}");
                    asked_to = range.end;
                }
            }
        }
    }
}
