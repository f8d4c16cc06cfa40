//! Records and analyses traces, which show where the time of a start went: the daemon's recording,
//! the trace file, the critical path, and the viewers.

mod assemble;
mod chrome;
pub mod clock;
mod error;
mod model;
mod page;
mod path;
pub mod record;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod totals;

pub use assemble::{FIRST_EXEC, STARTING};
pub use assemble::{Facts, assemble};
pub use chrome::chrome;
pub use error::TraceError;
pub use model::{
    ClassTotals, FORMAT, FetchClass, FetchOutcome, FetchRow, FileRow, HostInfo, Mark, Rows,
    Segment, SegmentKind, Served, SnapshotInfo, Tier, TierTotals, Totals, TouchRow, Trace, VERSION,
};
pub use page::page;
#[cfg(any(test, feature = "testing"))]
pub use testing::small;
pub use totals::totals;
