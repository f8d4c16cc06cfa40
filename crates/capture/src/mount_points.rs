//! The tree of mount points inside the captured directory.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::subject::{Plan, Underneath};

/// What a mount point shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountPointContent {
    /// The plan's graft of this number.
    Graft(usize),
    /// An empty file or directory.
    Empty,
}

/// A mount point, or a directory on the way to one.
#[derive(Debug, Default)]
pub(super) struct Point {
    children: BTreeMap<Box<[u8]>, Point>,
    pub(super) place: Option<MountPointContent>,
}

impl Point {
    /// Builds the tree of `plan`. A path left out takes precedence over a graft at the same path.
    pub(super) fn of(plan: &Plan) -> Self {
        let mut root = Self::default();
        for (number, graft) in plan.grafts.iter().enumerate() {
            root.make(&graft.at).place = Some(MountPointContent::Graft(number));
        }
        for left_out in &plan.left_out {
            if left_out.underneath == Underneath::Empty {
                root.make(&left_out.path).place = Some(MountPointContent::Empty);
            }
        }
        // The captured directory itself is a directory of the plan's own view.
        root.place = None;
        root
    }

    fn make(&mut self, path: &Path) -> &mut Self {
        path.iter()
            .fold(self, |point, name| point.children.entry(name.as_bytes().into()).or_default())
    }

    /// Returns the node of `name` in this directory.
    pub(super) fn child(&self, name: &[u8]) -> Option<&Self> {
        self.children.get(name)
    }
}
