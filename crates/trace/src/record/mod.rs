//! Records touches and fetches in bounded memory.
//!
//! Without a recording, a read only tests a flag. During one, the first touch of a file takes a
//! lock and two clock reads; any other read that does not wait tests one bit. Paths and relations
//! are resolved after the recording.

mod buffer;
mod events;
mod recorder;
mod resolve;
mod source;
mod watch;

pub use events::{EventMark, EventSpan, TraceEvents};
pub use recorder::{Fetched, Recorder, Recording, Spanning, Wanted};
pub use source::Read;
pub use source::{About, Pending, Source};
pub use watch::{StoreWatch, WatchId};

/// Default maximum events of a recording.
pub const EVENTS_DEFAULT: usize = 200_000;
/// Upper bound on the maximum events of a recording.
pub const EVENTS_MAX: usize = 400_000;
/// Maximum concurrent recordings.
pub const RECORDINGS_MAX: usize = 4;

#[cfg(test)]
mod tests;
