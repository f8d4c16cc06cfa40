//! Which bytes to fetch next: a pure state machine.
//!
//! Events go in (a snapshot is attached, a reader wants a group, bytes came), actions come out (fetch
//! this range, look which of these the host has, cancel that request). There is no clock, no task and
//! no I/O here: the driver brings the time with each event and does what it is told, so that all of
//! it can be run in virtual time, thousands of times a second.
//!
//! **Order.** Classes are strict (see [`crate::Class`]): while there is something of a class to do,
//! nothing of a lower one is begun. Within a class, mounted directories come newest first, since it is
//! the last mount that somebody waits for now; images share fairly by bytes. A snapshot whose order is
//! not known yet, or whose groups are just being looked up on this host, is waited for (2 s at most),
//! because what is less urgent would otherwise slip in; one that rests because the store or the
//! cache failed it is not.
//!
//! **Demand** has requests and buffers of its own and waits for nothing but the link. What a reader
//! wants is taken out of whatever queue it is in; what is under way is joined. No group is fetched
//! twice.
//!
//! **Ahead of readers** as many bytes are under way as fill the link for the time being (see
//! `link.rs`), and a little less while a reader waits. It is bytes that have not come yet which count,
//! not requests: so the next request is made before the last one has ended, and the link never idles
//! between them.
//!
//! **What is loaded** of an image is first what earlier runs have read, in their order; then the rest,
//! in the order of the tree. Where nothing is known, reads themselves are the best guess: groups
//! are packed in the order of the tree, so those beside one that was read belong to the same directory,
//! mostly to the same package (see `neighbours.rs`). They come before everything that is only guessed, the more of them the
//! more often that was right.
//!
//! **Size.** A snapshot costs three bits for each of its groups, four bytes for each that is named to
//! come first, and at most 192 groups that are known by what they are. Queues of readers and of read-ahead
//! are bounded by the limits.

mod flights;
mod link;
mod neighbours;
mod outcome;
mod span;
mod state;
#[cfg(test)]
mod tests;
mod types;
mod work;

pub use link::LinkEstimate;
pub use outcome::Kept;
pub use state::{Failed, Scheduler};
pub use types::{
    Action, Extent, Joined, Known, Looked, Moment, Phase, Plan, Request, RequestId, Room, Settled,
    Ticket, Touched, Urgency, Why, WorkFigures, WorkId,
};
