//! Loading ahead with the built command, a real S3 server and real mounts: what
//! `tests/semantics/loading.rs` does not promise, but what must be so. A proxy in between slows the link
//! down, fails requests and says in which order they came.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/ahead.rs"]
mod ahead;
mod counts;
mod failures;
mod order;
