//! Creates overlays for the tests of other crates.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::missing_errors_doc,
    reason = "only tests use it"
)]

use std::os::fd::OwnedFd;
use std::path::Path;

/// Creates a detached overlay with the options that [`super::Mounts`] uses.
pub fn overlay(lower: &Path, upper: &Path, work: &Path) -> OwnedFd {
    let layers = super::overlay::Layers {
        lower: vec![lower.to_owned()],
        upper: upper.to_owned(),
        work: work.to_owned(),
        setuid: super::Setuid::Kept,
        longest_path: 0,
    };
    super::overlay::tree(&layers, upper).unwrap()
}

/// Copies the attributes of a snapshot's root to an upper directory.
pub fn copy_attributes(from: &Path, to: &Path) {
    super::upper::copy_attributes(from, to).unwrap();
}
