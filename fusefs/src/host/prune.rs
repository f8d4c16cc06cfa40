//! Lets the kernel forget what nobody uses of a slot that is out of sight.
//!
//! When a slot is detached, the kernel drops what is unused of it then. What is in use at that moment
//! is only kept like any other name when its last user is gone, until memory is short. So it is asked
//! again: from the leaves up, each name of each directory that it has in memory is to be forgotten.

use inlay_store::format::InodeIdx;

use super::{Attached, Host};
use crate::error::FsError;
use crate::fs::{DirOffset, Emit, SnapshotFs};
use crate::inode;
use crate::notify::{Known, forget_name, is_known};

/// A tree that is deeper is not what a snapshot holds.
const DEPTH_MAX: usize = 4096;

/// A directory that is being looked at, and where in its listing.
struct Level {
    dir: InodeIdx,
    next: DirOffset,
}

impl Host {
    /// Has the kernel forget what nobody uses of a detached slot, and lets it go if that is all.
    pub(crate) fn prune(&self, attached: &Attached) -> Result<(), FsError> {
        if attached.is_visible() {
            return Ok(());
        }
        let fs = attached.fs()?;
        let mut levels = vec![Level { dir: InodeIdx::ROOT, next: DirOffset(0) }];
        if !self.knows(attached, InodeIdx::ROOT) {
            levels.clear();
        }
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else { break };
            match self.next_known_below(attached, fs, level)? {
                Some(dir) if depth < DEPTH_MAX => {
                    levels.push(Level { dir, next: DirOffset(0) });
                }
                Some(_) => {}
                None => {
                    let dir = level.dir;
                    levels.pop();
                    self.forget_names(attached, fs, dir)?;
                }
            }
        }
        self.let_go_if_unused(attached);
        Ok(())
    }

    /// The next directory in `level` that the kernel has in memory.
    fn next_known_below(
        &self,
        attached: &Attached,
        fs: &SnapshotFs,
        level: &mut Level,
    ) -> Result<Option<InodeIdx>, FsError> {
        let mut found = None;
        fs.read_dir(level.dir, level.next, |item| {
            level.next = item.next;
            let below = item.kind == inlay_store::format::FileKind::Directory
                && !matches!(item.name, b"." | b"..");
            if below && self.knows(attached, item.inode) {
                found = Some(item.inode);
                return Ok(Emit::Full);
            }
            Ok(Emit::More)
        })?;
        Ok(found)
    }

    fn forget_names(
        &self,
        attached: &Attached,
        fs: &SnapshotFs,
        dir: InodeIdx,
    ) -> Result<(), FsError> {
        let Some(device) = self.devices.get(&attached.kind()) else { return Ok(()) };
        let parent = inode::number(attached.slot(), dir);
        fs.read_dir(dir, DirOffset(0), |item| {
            if !matches!(item.name, b"." | b"..")
                && let Err(error) = forget_name(device, parent, item.name)
            {
                tracing::debug!(%error, "the kernel keeps a name");
            }
            Ok(Emit::More)
        })
    }

    fn knows(&self, attached: &Attached, inode: InodeIdx) -> bool {
        let Some(device) = self.devices.get(&attached.kind()) else { return false };
        let number = inode::number(attached.slot(), inode);
        matches!(is_known(device, number), Ok(Known::Yes))
    }
}
