//! Traces with the built command, a real S3 server behind a shaped link, real mounts and sandboxes: what
//! `tests/semantics/measured.rs` does not promise, but what must be so. They need root, /dev/fuse and an OCI
//! runtime.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/ahead.rs"]
mod ahead;
mod api;
#[path = "../common/boxes.rs"]
mod boxes;
mod classes;
#[path = "../common/http.rs"]
mod http;
#[path = "../common/recorded.rs"]
mod recorded;
mod starts;
mod tiers;
