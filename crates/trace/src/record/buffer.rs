//! Buffers the events of a recording in bounded memory, as far as possible in rows of fixed size.

use std::collections::HashMap;

use inlay_prefetch::scheduler::RequestId;
use inlay_prefetch::{Failure, FetchEvent, Key, Sent};
use inlay_store::format::GroupIdx;
use inlay_store::ids::{BlobId, SnapshotId};

use super::watch::WatchId;
use crate::model::{FetchClass, FetchOutcome, SegmentKind, Tier};

/// Maximum queued groups with a remembered queueing time.
const ASKED_MAX: usize = 1 << 16;
/// Number of groups of a fetch or read that count as one event.
const GROUPS_A_EVENT: usize = 16;
/// End time of a read that is still waiting.
const WAITS: u64 = u64::MAX;

/// A first touch, or a read that waits. Times are nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Touch {
    pub(super) at: u64,
    /// Time of the response.
    pub(super) end: u64,
    pub(super) offset: u64,
    pub(super) source: u32,
    pub(super) inode: u32,
    pub(super) bytes: u32,
    pub(super) tier: Tier,
    pub(super) first: bool,
}

/// A request. Times are nanoseconds; 0 if unknown.
#[derive(Debug, Clone)]
pub(super) struct Fetch {
    pub(super) watch: WatchId,
    pub(super) class: FetchClass,
    pub(super) queued: u64,
    pub(super) sent: u64,
    pub(super) first_byte: u64,
    pub(super) received: u64,
    pub(super) ready: u64,
    pub(super) bytes: u64,
    pub(super) outcome: FetchOutcome,
    pub(super) what: What,
}

/// Subject of a fetch.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// Groups, by their offsets in a blob.
    Groups(BlobId, Box<[u64]>),
    /// Metadata of a snapshot.
    Of(SnapshotId),
}

/// A named point in time.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) at: u64,
    pub(super) name: &'static str,
    pub(super) detail: String,
}

/// A time span.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) kind: SegmentKind,
    pub(super) what: String,
}

/// All events of a recording.
#[derive(Debug)]
pub(super) struct Buffer {
    left: usize,
    pub(super) dropped: u64,
    pub(super) touches: Vec<Touch>,
    /// Groups that touches wait for, by the position of the touch.
    pub(super) waited: Vec<(u32, GroupIdx)>,
    pub(super) fetches: Vec<Fetch>,
    pub(super) marks: Vec<Named>,
    pub(super) spans: Vec<Stretch>,
    under_way: HashMap<(WatchId, RequestId), usize>,
    asked: HashMap<(WatchId, Key), u64>,
}

impl Buffer {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            left: limit,
            dropped: 0,
            // Unwritten memory costs nothing, whereas growing would delay a reader.
            touches: Vec::with_capacity(limit),
            waited: Vec::new(),
            fetches: Vec::new(),
            marks: Vec::new(),
            spans: Vec::new(),
            under_way: HashMap::new(),
            asked: HashMap::new(),
        }
    }

    /// Reserves room for one more event with this number of groups. Returns false, and counts the
    /// event as dropped, if the buffer is full.
    fn take(&mut self, groups: usize) -> bool {
        let events = 1 + groups / GROUPS_A_EVENT;
        if self.left < events {
            self.dropped += 1;
            return false;
        }
        self.left -= events;
        true
    }

    /// Adds a touch, with the groups it waits for, if any. Returns its position.
    pub(super) fn touch(&mut self, touch: Touch, groups: &[GroupIdx]) -> Option<u32> {
        if !self.take(groups.len()) {
            return None;
        }
        let place = u32::try_from(self.touches.len()).ok()?;
        self.touches.push(touch);
        self.waited.extend(groups.iter().map(|group| (place, *group)));
        Some(place)
    }

    /// Records the response to a waiting touch.
    pub(super) fn answered(&mut self, place: u32, now: u64) {
        if let Some(touch) = self.touches.get_mut(place as usize) {
            touch.end = now;
        }
    }

    pub(super) fn mark(&mut self, mark: Named) {
        if self.take(0) {
            self.marks.push(mark);
        }
    }

    pub(super) fn span(&mut self, span: Stretch) {
        if self.take(0) {
            self.spans.push(span);
        }
    }

    /// Adds a completed fetch.
    pub(super) fn fetched(&mut self, fetch: Fetch) {
        if self.take(0) {
            self.fetches.push(fetch);
        }
    }

    /// Records an event of a request.
    pub(super) fn on_event(&mut self, watch: WatchId, event: &FetchEvent<'_>, now: u64) {
        match event {
            FetchEvent::Queued(keys) => {
                for key in *keys {
                    if self.asked.len() < ASKED_MAX {
                        self.asked.entry((watch, *key)).or_insert(now);
                    }
                }
            }
            FetchEvent::Sent(sent) => self.sent(watch, sent, now),
            FetchEvent::FirstByte(id) => self.at(watch, *id, |fetch| fetch.first_byte = now),
            FetchEvent::Received(id) => self.at(watch, *id, |fetch| fetch.received = now),
            FetchEvent::Ready(id) => {
                self.at(watch, *id, |fetch| fetch.ready = now);
                self.under_way.remove(&(watch, *id));
            }
            FetchEvent::Over(id, failure) => {
                let outcome = match failure {
                    Failure::Failed => FetchOutcome::Failed,
                    Failure::Cancelled => FetchOutcome::Cancelled,
                };
                self.at(watch, *id, |fetch| (fetch.outcome, fetch.ready) = (outcome, now));
                self.under_way.remove(&(watch, *id));
            }
        }
    }

    fn sent(&mut self, watch: WatchId, sent: &Sent<'_>, now: u64) {
        let asked = sent.groups.iter().filter_map(|want| self.asked.remove(&(watch, want.key())));
        let queued = asked.min().unwrap_or(0);
        if !self.take(sent.groups.len()) {
            return;
        }
        self.under_way.insert((watch, sent.id), self.fetches.len());
        self.fetches.push(Fetch {
            watch,
            class: super::watch::class(sent.class),
            queued,
            sent: now,
            first_byte: 0,
            received: 0,
            ready: 0,
            bytes: sent.range.end.saturating_sub(sent.range.start),
            outcome: FetchOutcome::Ok,
            what: What::Groups(
                sent.blob,
                sent.groups.iter().map(|want| want.group.offset).collect(),
            ),
        });
    }

    fn at(&mut self, watch: WatchId, id: RequestId, change: impl FnOnce(&mut Fetch)) {
        // Requests sent before the recording began are unknown.
        let place = self.under_way.get(&(watch, id)).copied();
        if let Some(fetch) = place.and_then(|place| self.fetches.get_mut(place)) {
            change(fetch);
        }
    }
}

impl Touch {
    /// Marks the touch as waiting for its response.
    pub(super) fn waiting(self) -> Self {
        Self { end: WAITS, ..self }
    }

    /// Time of the response, or the end of the recording if it came later.
    pub(super) fn end_by(&self, ended: u64) -> u64 {
        self.end.min(ended).max(self.at)
    }
}
