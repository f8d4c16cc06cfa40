//! Reports the store requests of a fetcher to an observer.

use std::ops::Range;

use inlay_store::ids::BlobId;

use crate::scheduler::RequestId;
use crate::want::{Class, GroupRef, Key};

/// An observer of one fetcher's requests. Events are delivered as they happen; implementations must
/// not block and must not call back into the fetcher.
pub trait FetchWatch: Send + Sync + 'static {
    /// Returns whether events are wanted now. Must be cheap, e.g. one atomic load.
    fn is_on(&self) -> bool;

    /// Delivers an event.
    fn on_event(&self, event: &FetchEvent<'_>);
}

/// Events of a request, in this order. Groups found on this host are not reported.
#[derive(Debug)]
pub enum FetchEvent<'a> {
    /// Groups were queued, for a blocked reader or for a sequential reader that comes near.
    Queued(&'a [Key]),
    /// The request was sent to the store.
    Sent(Sent<'a>),
    /// The first byte of the response arrived.
    FirstByte(RequestId),
    /// All bytes arrived.
    Received(RequestId),
    /// All groups were verified, decoded and handed to readers. None was corrupt.
    Ready(RequestId),
    /// The request ended without its groups.
    Over(RequestId, Failure),
}

/// A request to the store.
#[derive(Debug)]
pub struct Sent<'a> {
    /// Identifies the request in later events.
    pub id: RequestId,
    /// Priority class of the request.
    pub class: Class,
    /// The blob.
    pub blob: BlobId,
    /// Byte range of the blob.
    pub range: Range<u64>,
    /// The groups in the range.
    pub groups: &'a [GroupRef],
}

/// Why a request did not deliver its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The store failed or returned corrupt bytes.
    Failed,
    /// Cancelled because no reader or snapshot needed it any more.
    Cancelled,
}
