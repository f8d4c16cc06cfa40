//! Groups and requests in flight, and the limits they draw from.

use super::types::{RequestId, WorkId};
use super::work::Ready;
use crate::want::{Class, GroupRef, Key};

/// A group that is queued by a reader, in flight, or being cached.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) want: GroupRef,
    /// Distinguishes it from earlier flights of the same group.
    pub(super) number: u64,
    pub(super) class: Class,
    pub(super) place: Place,
    pub(super) company: Company,
    /// Number of waiting readers.
    pub(super) waiters: u32,
    /// Number of corrupt responses so far.
    pub(super) corrupt: u32,
    /// The snapshot that loads it, or would have loaded it.
    pub(super) origin: Option<(WorkId, Ready)>,
    /// Other snapshots that need it, with its group number there; they probe it again if it does
    /// not arrive.
    pub(super) parked: Vec<(WorkId, u32)>,
}

/// State of a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Queued,
    Running(RequestId),
    /// Readers have it. Kept until the cache has it, so that it is not fetched again meanwhile.
    Landed,
}

/// Whether a group may share a request with its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    Any,
    /// A request with this group failed: it is retried alone, so that a bad neighbour cannot fail
    /// it again.
    Alone,
}

impl Flight {
    pub(super) fn queued(want: GroupRef, class: Class, number: u64) -> Self {
        Self {
            want,
            number,
            class,
            place: Place::Queued,
            company: Company::Any,
            waiters: 0,
            corrupt: 0,
            origin: None,
            parked: Vec::new(),
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) class: Class,
    pub(super) work: Option<WorkId>,
    pub(super) keys: Vec<Key>,
    /// Bytes that have not arrived yet.
    pub(super) left: u64,
    pub(super) cancelled: bool,
}

/// Request and buffer limits, and current use.
#[derive(Debug)]
pub(super) struct Pool {
    requests_max: usize,
    bytes_max: u64,
    pub(super) requests: usize,
    pub(super) bytes: u64,
}

impl Pool {
    pub(super) fn new(requests_max: usize, bytes_max: u64) -> Self {
        Self { requests_max: requests_max.max(1), bytes_max, requests: 0, bytes: 0 }
    }

    /// Returns the buffer bytes available to a request whose first group needs `first`; `None` if
    /// it must wait. When nothing else runs, a group larger than the limit is admitted alone.
    pub(super) fn room(&self, first: u64) -> Option<u64> {
        let room = self.bytes_max.saturating_sub(self.bytes);
        let may = self.requests < self.requests_max && (self.bytes == 0 || first <= room);
        may.then_some(room)
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn request_ended(&mut self) {
        self.requests = self.requests.saturating_sub(1);
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}
