//! Overlays for the tests of other rooms.

use std::os::fd::OwnedFd;
use std::path::Path;

/// An overlay as [`super::Mounts`] makes them, mounted nowhere yet.
pub(crate) fn overlay(lower: &Path, upper: &Path, work: &Path) -> OwnedFd {
    let layers = super::overlay::Layers {
        lower: vec![lower.to_owned()],
        upper: upper.to_owned(),
        work: work.to_owned(),
        setuid: super::Setuid::Kept,
    };
    super::overlay::tree(&layers, upper).unwrap()
}

/// Gives an upper directory the attributes of the snapshot's root.
pub(crate) fn copy_attributes(from: &Path, to: &Path) {
    super::upper::copy_attributes(from, to).unwrap();
}
