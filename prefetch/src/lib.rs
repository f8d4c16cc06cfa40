//! Decides which bytes to fetch next, and fetches them: on demand for blocked reads, ahead of time
//! for likely ones.
//!
//! This crate works with groups, blobs and the cache. All it knows about files is their offsets.

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
pub use histogram::{BOUNDS_MICROS, Histogram, HistogramCounts, STEP_MAX};
pub use limits::FetchLimits;
pub use sequential::{ReadAheadLimits, SequentialReads, StreamId};
pub use source::RangeSource;
pub use stats::FetchStats;
pub use want::{Class, GroupRef, Key};
pub use watch::{Failure, FetchEvent, FetchWatch, Sent};
pub use work::{GroupList, Loading, Mounting};

#[cfg(test)]
mod doubles;
#[cfg(test)]
mod fetcher_tests;
#[cfg(test)]
mod stress_tests;
