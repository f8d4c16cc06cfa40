//! Traces: where the time of a start went. What the daemon records, the file that it becomes, the
//! critical path, and how it is shown.

mod assemble;
mod chrome;
pub(crate) mod clock;
mod error;
mod model;
mod page;
mod path;
pub mod record;
#[cfg(test)]
mod testing;
mod totals;

pub(crate) use assemble::{FIRST_EXEC, STARTING};
pub use assemble::{Facts, assemble};
pub use chrome::chrome;
pub use error::TraceError;
pub use model::{
    ClassTotals, FORMAT, FetchClass, FetchOutcome, FetchRow, FileRow, HostInfo, Mark, Rows,
    Segment, SegmentKind, Served, SnapshotInfo, Tier, TierTotals, Totals, TouchRow, Trace, VERSION,
};
pub use page::page;
#[cfg(test)]
pub(crate) use testing::small;
pub use totals::totals;
