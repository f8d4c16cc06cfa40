//! Records what readers touch and what is fetched, in memory that is bounded.
//!
//! While nothing is recorded, a read costs the look at one flag. While something is, the first touch
//! of a file takes a lock and two looks at the clock, every other read that needs not wait a look at
//! one bit. Paths and what belongs to what are found out afterwards.

mod buffer;
mod events;
mod recorder;
mod resolve;
mod source;
mod watch;

pub use events::{EventMark, EventSpan, TraceEvents};
pub use recorder::{Fetched, Recorder, Recording, Spanning, Wanted};
pub(crate) use source::Read;
pub use source::{About, Pending, Source};
pub use watch::{StoreWatch, WatchId};

/// How many events a recording keeps if nothing is said.
pub const EVENTS_DEFAULT: usize = 200_000;
/// How many it keeps at most.
pub const EVENTS_MAX: usize = 400_000;
/// How many recordings there may be at once.
pub const RECORDINGS_MAX: usize = 4;

#[cfg(test)]
mod tests;
