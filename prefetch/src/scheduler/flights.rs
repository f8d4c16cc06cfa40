//! Groups and requests under way, and the budgets that they take from.

use super::types::{RequestId, WorkId};
use super::work::Ready;
use crate::want::{Class, GroupRef, Key};

/// A group that is on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) want: GroupRef,
    /// Tells it from an earlier flight of the same group.
    pub(super) number: u64,
    pub(super) class: Class,
    pub(super) place: Place,
    pub(super) company: Company,
    /// Readers that wait for it.
    pub(super) waiters: u32,
    /// How often it came with wrong bytes.
    pub(super) corrupt: u32,
    /// The snapshot that it is, or would have been, loaded for.
    pub(super) origin: Option<(WorkId, Ready)>,
    /// Other snapshots that want it, with its number there: they look at it again if it does not come.
    pub(super) parked: Vec<(WorkId, u32)>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Queued,
    Running(RequestId),
    /// Its readers have it; it stays until the cache has it, so that nobody fetches it meanwhile.
    Landed,
}

/// Whether a group may be fetched in one request with its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    Any,
    /// A request failed that held it: others' troubles must not be its own.
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

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) class: Class,
    pub(super) work: Option<WorkId>,
    pub(super) keys: Vec<Key>,
    /// Bytes that have not come yet.
    pub(super) left: u64,
    pub(super) cancelled: bool,
}

/// How much may be going on at once, and how much is.
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

    /// The bytes of buffers that a request may take whose first group takes `first`; `None` if it
    /// must wait. When nothing else runs, a group larger than all the room there is goes alone.
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
