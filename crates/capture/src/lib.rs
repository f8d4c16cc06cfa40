//! Captures a sandbox's directory as a snapshot.
//!
//! The tree is assembled from the layers rather than read through the mount: changes come from the
//! overlay's upper directory on the local disk, everything else from the index of the lower
//! snapshot, so that unchanged files are neither read nor stored. First, without a freeze, changed
//! files are read and packed. Then the sandbox is frozen: a second scan compares only timestamps,
//! files that have changed in the meantime are set aside, and the sandbox is thawed. The files set
//! aside are packed afterwards.

mod build;
mod collect;
mod error;
mod exclude;
mod files;
mod last;
mod layer;
mod lineage;
mod mapped;
mod merged_view;
mod mount_points;
mod options;
mod owned;
mod paths;
mod previous_scan;
mod run;
mod scan;
mod stat;
mod subject;
#[cfg(test)]
mod tests;
mod walk;

pub use error::CaptureError;
pub use options::{
    Cancel, CaptureLimits, CaptureOptions, CaptureParent, CaptureStats, CaptureTimes, Captured,
    Promise,
};
pub use run::capture;
pub use subject::{
    Frozen, Graft, LeftOut, LeftOutWhy, Lower, Plan, Stood, Subject, SubjectError, Thawed,
    Underneath, View,
};
