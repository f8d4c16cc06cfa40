//! From what a sandbox sees at a path to a snapshot.
//!
//! The tree is put together here, not read through the mount: what changed comes from the overlay's
//! upper directory on local disk, all else from the index of the snapshot below it, so that what did
//! not change is neither read nor stored. Without freezing anything, what changed is read and packed;
//! then the sandbox is frozen, only the times of its files are looked at again, what changed meanwhile
//! is set aside, and the sandbox goes on. What is set aside is packed afterwards.

mod build;
mod collect;
mod error;
mod exclude;
mod files;
mod layer;
mod mapped;
mod options;
mod owned;
mod paths;
mod picture;
mod points;
mod run;
mod scan;
mod seen;
mod stat;
mod subject;
#[cfg(test)]
mod tests;
mod walk;

pub use error::CaptureError;
pub use options::{
    Cancel, CaptureLimits, CaptureOptions, CaptureParent, CaptureStats, CaptureTimes, Captured,
};
pub use run::capture;
pub use subject::{
    Frozen, Graft, LeftOut, LeftOutWhy, Lower, Plan, Subject, SubjectError, Underneath, View,
};
