//! Decides which bytes to fetch next: a pure state machine.
//!
//! Events go in (a snapshot is attached, a reader requests a group, bytes arrive), actions come out
//! (fetch this range, probe the cache for these groups, cancel that request). There is no clock,
//! task or I/O here. The driver passes the time with each event and executes the actions, so tests
//! can run the scheduler in virtual time, thousands of runs per second.
//!
//! **Order.** Classes are strict (see [`crate::Class`]): while a class has work, no request of a
//! lower class starts. Within a class, mounted directories are loaded newest first, since a user is
//! waiting for the last mount; images share bandwidth fairly by bytes. A snapshot that still lacks
//! its plan, or is being probed in the cache, blocks lower classes for at most 2 s; otherwise less
//! urgent work would slip in. A snapshot that backs off after a store or cache failure does not
//! block them.
//!
//! **Demand** has its own request and buffer limits and waits for nothing but the link. A reader's
//! group is promoted out of any queue, and a fetch in flight is joined. No group is fetched twice.
//!
//! **Prefetch** keeps as many bytes in flight as currently fill the link (see `link.rs`), and
//! slightly fewer while a reader waits. The limit counts bytes that have not arrived, not requests:
//! the next request starts before the last one has ended, so the link never idles between them.
//!
//! **Load order** of an image: first the groups that earlier runs read, in their order; then the
//! rest, in tree order. Without a recording, the reads themselves are the best predictor. Groups
//! are packed in tree order, so the neighbours of a read group belong to the same directory, mostly
//! to the same package (see `neighbours.rs`). Neighbours come before everything else that is only
//! guessed, and more of them are loaded the more often they were right.
//!
//! **Cost.** An event costs its own work plus the logarithm of the number of snapshots: snapshots
//! are indexed by class and share (see `standings.rs`), and queued groups by key.
//!
//! **Size.** A snapshot costs three bits per group, four bytes per group named to come first, and
//! at most 192 groups with their full `GroupRef`. The limits bound the demand and read-ahead
//! queues.

mod flights;
mod link;
mod neighbours;
mod outcome;
mod span;
mod standings;
mod state;
#[cfg(test)]
mod tests;
mod types;
mod work;

pub use link::LinkEstimate;
pub use outcome::Kept;
pub use state::{Failed, Scheduler};
pub use types::{
    Action, Extent, Joined, Known, Moment, Phase, Plan, Probed, Request, RequestId, Room, Settled,
    Ticket, Touched, Urgency, Why, WorkId, WorkProgress,
};
