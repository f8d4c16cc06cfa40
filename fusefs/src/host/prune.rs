//! Makes the kernel forget the unused inodes of a detached slot.
//!
//! When a slot is detached, the kernel drops its unused inodes. Those in use at that moment stay
//! cached after their last use until memory is short. So they are invalidated again: from the
//! leaves up, each name of each directory that the kernel has in memory. Invalidating the slot's
//! own name would not suffice: what was in use then can no longer be reached by names below it.

use std::collections::HashSet;

use inlay_store::format::{FileKind, InodeIdx};

use super::{Attached, Host};
use crate::fs::{DirOffset, Emit, SnapshotFs};
use crate::inode;
use crate::notify::{Known, forget_name, is_known};

impl Host {
    /// Makes the kernel forget the unused inodes of a detached slot, and releases the slot if none
    /// is left.
    ///
    /// Does not open the slot's snapshot, which may wait for the store: the caller holds a lock that
    /// others wait for. Without it, only the release is tried; the sweep does the rest.
    pub(crate) fn prune(&self, attached: &Attached) {
        if attached.is_visible() {
            return;
        }
        self.forget_below_if_open(attached);
        self.let_go_if_unused(attached);
    }

    /// Makes the kernel forget every name in every cached directory of a slot. Inodes in use stay
    /// until their last use ends. No-op if this process has not opened the slot's snapshot.
    pub(super) fn forget_below_if_open(&self, attached: &Attached) {
        if let Some(Ok(fs)) = attached.now() {
            self.forget_names_of(attached, fs);
        }
    }

    /// The same, but opens the slot's snapshot, which may wait for the store. No-op if that fails.
    pub(super) fn forget_below(&self, attached: &Attached) {
        if let Ok(fs) = attached.fs() {
            self.forget_names_of(attached, fs);
        }
    }

    fn forget_names_of(&self, attached: &Attached, fs: &SnapshotFs) {
        let Some(device) = self.devices.get(&attached.kind()) else { return };
        let number = |inode| inode::number(attached.slot(), inode);
        let knows = |inode| matches!(is_known(device, number(inode)), Ok(Known::Yes));
        // Children come after their parents: in reverse, they are emptied first.
        for dir in known_dirs(fs, knows).into_iter().rev() {
            let outcome = fs.read_dir(dir, DirOffset(0), |item| {
                if is_entry(item.name) {
                    // Best effort: most names are not in the kernel's cache.
                    let _ = forget_name(device, number(dir), item.name);
                }
                Ok(Emit::More)
            });
            if let Err(error) = outcome {
                tracing::debug!(%error, slot = %attached.slot(), "can't list a directory");
            }
        }
    }
}

/// Returns the directories that `knows` accepts and that are reached from the root through others
/// of them, parents first. Visits each once, although a damaged index may list one several times
/// or below itself.
fn known_dirs(fs: &SnapshotFs, knows: impl Fn(InodeIdx) -> bool) -> Vec<InodeIdx> {
    if !knows(InodeIdx::ROOT) {
        return Vec::new();
    }
    let mut known = vec![InodeIdx::ROOT];
    let mut seen = HashSet::from([InodeIdx::ROOT]);
    let mut next = 0;
    while let Some(dir) = known.get(next).copied() {
        next += 1;
        let outcome = fs.read_dir(dir, DirOffset(0), |item| {
            if item.kind == FileKind::Directory
                && is_entry(item.name)
                // The kernel never got a directory from a place that is not its own.
                && fs.dir_item_attr(dir, item).is_ok()
                && seen.insert(item.inode)
                && knows(item.inode)
            {
                known.push(item.inode);
            }
            Ok(Emit::More)
        });
        if let Err(error) = outcome {
            tracing::debug!(%error, inode = dir.0, "can't list a directory");
        }
    }
    known
}

fn is_entry(name: &[u8]) -> bool {
    !matches!(name, b"." | b"..")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::fs::tests::{Refuses, listed_twice};

    #[test]
    fn a_directory_that_is_listed_twice_is_visited_once() {
        for by_itself in [true, false] {
            let fs = SnapshotFs::new(listed_twice(by_itself), Arc::new(Refuses));
            let asked = Cell::new(0);
            let dirs = known_dirs(&fs, |_| {
                asked.set(asked.get() + 1);
                assert!(asked.get() < 100, "the walk does not end");
                true
            });
            assert_eq!(dirs, [InodeIdx::ROOT, InodeIdx(1)], "{by_itself}");
        }
    }
}
