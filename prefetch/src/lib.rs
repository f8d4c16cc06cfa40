//! Which bytes to fetch next, and the fetching: what a read waits for, and what it will want.
//!
//! This crate knows groups, blobs and the cache, and nothing of files but their offsets.

mod batch;
mod error;
mod fetcher;
mod histogram;
mod limits;
mod recent;
pub mod scheduler;
mod sequential;
mod source;
mod stats;
mod table;
mod want;
mod watch;
mod work;
mod workers;

pub use error::FetchError;
pub use fetcher::Fetcher;
pub use histogram::{BOUNDS_MICROS, Histogram, HistogramFigures};
pub use limits::FetchLimits;
pub use sequential::{ReadAheadLimits, SequentialReads, StreamId};
pub use source::RangeSource;
pub use stats::FetchFigures;
pub use want::{Class, GroupRef, Key};
pub use watch::{Failure, FetchEvent, FetchWatch, Sent};
pub use work::{GroupList, Loading, Mounting};

#[cfg(test)]
mod doubles;
#[cfg(test)]
mod fetcher_tests;
#[cfg(test)]
mod stress_tests;
