//! What a fetcher tells whoever watches its requests.

use std::ops::Range;

use inlay_store::ids::BlobId;

use crate::scheduler::RequestId;
use crate::want::{Class, GroupRef, Key};

/// Watches the requests of one fetcher. What it is told of happens at that moment; it must return
/// at once, and call nothing of the fetcher.
pub trait FetchWatch: Send + Sync + 'static {
    /// Whether it wants to be told of anything now: one look at a flag.
    fn is_on(&self) -> bool;

    /// Something happens.
    fn told(&self, event: &FetchEvent<'_>);
}

/// What happens to a request, in this order. Not told of: groups that turn out to be on this host.
#[derive(Debug)]
pub enum FetchEvent<'a> {
    /// Groups are wanted, by a reader that waits or one that comes near, and wait for their turn.
    Queued(&'a [Key]),
    /// The store is asked.
    Sent(Sent<'a>),
    /// The answer begins to come.
    FirstByte(RequestId),
    /// All bytes have come.
    Received(RequestId),
    /// All groups have been verified and decoded, and readers have them. None of them is wrong.
    Ready(RequestId),
    /// It ended without its groups.
    Over(RequestId, Failure),
}

/// A request to the store.
#[derive(Debug)]
pub struct Sent<'a> {
    /// Names it in later events.
    pub id: RequestId,
    /// For whom it is.
    pub class: Class,
    /// The object.
    pub blob: BlobId,
    /// The bytes of it.
    pub range: Range<u64>,
    /// The groups in it.
    pub groups: &'a [GroupRef],
}

/// Why a request has not brought its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The store failed, or gave wrong bytes.
    Failed,
    /// Nobody wanted it any more.
    Cancelled,
}
