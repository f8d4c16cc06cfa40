//! Real work in real sandboxes, through the command line: a project is worked on, snapshotted, mounted
//! elsewhere and used. Needs root, /dev/fuse, a runtime, and what `scripts/fixtures sandboxes` makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod busy;
mod eight;
mod house;
mod jobs;
mod upgrade;
