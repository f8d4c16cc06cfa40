//! Keeps the first process's most recent output for clients that reconnect.

use std::collections::VecDeque;

use super::super::protocol::{Frame, FrameKind, StreamPosition};

/// The number of bytes to keep: more than can be in flight to an attached client, in the frames
/// queued here and in the buffers of two sockets.
const KEPT_MAX: usize = 2 << 20;

/// The most recent frames, and the total output so far.
#[derive(Debug, Default)]
pub(super) struct Recent {
    frames: VecDeque<Frame>,
    /// The total payload of `frames`, in bytes.
    len: usize,
    printed: StreamPosition,
}

impl Recent {
    /// Appends a frame of output.
    pub(super) fn take(&mut self, frame: &Frame) {
        *self.printed.of(frame.kind) += byte_count(frame.bytes.len());
        self.len += frame.bytes.len();
        self.frames.push_back(frame.clone());
        while self.len > KEPT_MAX
            && let Some(oldest) = self.frames.pop_front()
        {
            self.len -= oldest.bytes.len();
        }
    }

    /// Returns the output after `shown`, or fails with the number of those bytes that are no longer
    /// kept. A position beyond the end yields nothing.
    pub(super) fn after(&self, mut shown: StreamPosition) -> Result<VecDeque<Frame>, u64> {
        let mut printed = self.printed;
        let mut missing = StreamPosition::default();
        for kind in [FrameKind::Stdout, FrameKind::Stderr] {
            *missing.of(kind) = printed.of(kind).saturating_sub(*shown.of(kind));
        }
        let mut found = VecDeque::new();
        for frame in self.frames.iter().rev() {
            let wanted = missing.of(frame.kind);
            let len = usize::try_from(*wanted).unwrap_or(usize::MAX).min(frame.bytes.len());
            *wanted -= byte_count(len);
            let bytes = frame.bytes.get(frame.bytes.len() - len..).unwrap_or_default();
            if !bytes.is_empty() {
                found.push_front(Frame::new(frame.kind, bytes));
            }
        }
        match missing.stdout + missing.stderr {
            0 => Ok(found),
            lost => Err(lost),
        }
    }
}

fn byte_count(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(frames: &VecDeque<Frame>, kind: FrameKind) -> Vec<u8> {
        frames
            .iter()
            .filter(|frame| frame.kind == kind)
            .flat_map(|frame| frame.bytes.clone())
            .collect()
    }

    proptest! {
        #[test]
        fn reconnecting_clients_get_exactly_the_output_they_missed(
            pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..40)), 0..30),
            seen in (0_usize..700, 0_usize..700),
        ) {
            let (mut recent, mut out, mut err) = (Recent::default(), Vec::new(), Vec::new());
            for (to_out, bytes) in &pieces {
                let kind = if *to_out { FrameKind::Stdout } else { FrameKind::Stderr };
                if *to_out { &mut out } else { &mut err }.extend_from_slice(bytes);
                recent.take(&Frame::new(kind, bytes.as_slice()));
            }
            let (seen_out, seen_err) = (seen.0.min(out.len()), seen.1.min(err.len()));
            let shown = StreamPosition { stdout: seen_out as u64, stderr: seen_err as u64 };
            let after = recent.after(shown).unwrap();
            prop_assert_eq!(text_of(&after, FrameKind::Stdout), out.split_off(seen_out));
            prop_assert_eq!(text_of(&after, FrameKind::Stderr), err.split_off(seen_err));
        }
    }

    #[test]
    fn output_dropped_from_the_buffer_is_counted() {
        let mut recent = Recent::default();
        let piece = vec![b'x'; 32 << 10];
        for _ in 0..100 {
            recent.take(&Frame::new(FrameKind::Stdout, piece.as_slice()));
        }
        let all = 100 * (32 << 10);
        assert_eq!(recent.after(StreamPosition::default()), Err(all - (2 << 20)));
        assert_eq!(
            recent.after(StreamPosition { stdout: 1000, stderr: 0 }),
            Err(all - (2 << 20) - 1000)
        );
        let last = recent.after(StreamPosition { stdout: all - 5, stderr: 0 }).unwrap();
        assert_eq!(last, [Frame::new(FrameKind::Stdout, "xxxxx")]);
        assert!(recent.after(StreamPosition { stdout: all + 5, stderr: 7 }).unwrap().is_empty());
    }
}
