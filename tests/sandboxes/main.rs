//! Sandboxes that do their worst, mounts in them that are moved, and those that map owners. They need root, /dev/fuse and an
//! OCI runtime.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod many;
mod moves;
mod owners;
