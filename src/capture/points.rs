//! Where other mounts stand in what is captured.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::subject::{Plan, Underneath};

/// What stands at a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The plan's graft of this number.
    Graft(usize),
    /// Nothing.
    Empty,
}

/// A directory on the way to mount points, or one itself.
#[derive(Debug, Default)]
pub(super) struct Point {
    children: BTreeMap<Box<[u8]>, Point>,
    pub(super) place: Option<Place>,
}

impl Point {
    /// The mount points of `plan`. What is left out counts where a graft is at the same place.
    pub(super) fn of(plan: &Plan) -> Self {
        let mut root = Self::default();
        for (number, graft) in plan.grafts.iter().enumerate() {
            root.make(&graft.at).place = Some(Place::Graft(number));
        }
        for left_out in &plan.left_out {
            if left_out.underneath == Underneath::Empty {
                root.make(&left_out.path).place = Some(Place::Empty);
            }
        }
        // What is captured is a directory of the plan's own view.
        root.place = None;
        root
    }

    fn make(&mut self, path: &Path) -> &mut Self {
        path.iter()
            .fold(self, |point, name| point.children.entry(name.as_bytes().into()).or_default())
    }

    /// What is known of `name` in this directory.
    pub(super) fn child(&self, name: &[u8]) -> Option<&Self> {
        self.children.get(name)
    }
}
