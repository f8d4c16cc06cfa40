//! Derives the ctime that `stat` shows.
//!
//! A snapshot has no ctime, and no filesystem allows setting one. But programs compare it to detect
//! changes: git, for example, does not read a file if its size and times are unchanged. If ctime
//! were equal to mtime, a file of the same size with a copied mtime, as `cp -p`, `rsync -t` and
//! `tar` create, would look unchanged.
//!
//! So ctime is derived from everything that can change: an unchanged file has the same ctime
//! wherever it is mounted, and different contents, owners, modes or attributes give another. Small
//! files have no digest of their own; the location of their bytes stands in for it. ctime is up to
//! 194 days before mtime, and thus never in the future. Whole seconds differ, too: many programs
//! ignore anything finer.

use blake3::Hasher;
use inlay_store::format::{Attr, FileData, FileKind, FormatError, InodeIdx, Timestamp};

use super::SnapshotFs;

/// Maximum distance from mtime, in seconds; a power of two.
const SPAN: i64 = 1 << 24;
/// Maximum number of extents hashed. A file with more has a digest of its contents.
const EXTENTS_MAX: usize = 1024;
const NANOS: u32 = 1_000_000_000;

impl SnapshotFs {
    /// Returns the ctime of `inode` with attributes `attr`.
    pub(crate) fn changed(&self, inode: InodeIdx, attr: &Attr) -> Timestamp {
        let mut state = Hasher::new();
        state.update(&[attr.kind.code()]);
        for field in [u32::from(attr.perm), attr.uid, attr.gid, attr.mtime.nanos] {
            state.update(&field.to_le_bytes());
        }
        state.update(&attr.mtime.secs.to_le_bytes());
        state.update(&attr.size.to_le_bytes());
        // A damaged inode cannot be read either: a later read of it reports the error.
        if self.state_of(inode, attr.kind, &mut state).is_err() {
            state.update(b"damaged");
        }
        near(attr.mtime, state.finalize().as_bytes())
    }

    /// Hashes contents and extended attributes.
    fn state_of(
        &self,
        inode: InodeIdx,
        kind: FileKind,
        state: &mut Hasher,
    ) -> Result<(), FormatError> {
        let xattrs = self.index.xattrs(inode)?;
        for entry in xattrs.iter() {
            let (name, value) = entry?;
            let value = self.shown_xattr(name, value);
            state.update(name).update(&[0]).update(&(value.len() as u64).to_le_bytes());
            state.update(&value);
        }
        match kind {
            FileKind::Symlink => drop(state.update(self.index.symlink(inode)?)),
            // Adding or removing names changes mtime.
            FileKind::Directory => {
                state.update(&(self.index.dir(inode)?.len() as u64).to_le_bytes());
            }
            FileKind::Regular => match (self.index.content(inode)?, self.index.data(inode)?) {
                (Some(digest), _) => drop(state.update(digest.as_bytes())),
                (None, FileData::Hole) => {}
                (None, FileData::Inline(bytes)) => drop(state.update(bytes)),
                (None, FileData::Extents(extents)) => {
                    state.update(&(extents.len() as u64).to_le_bytes());
                    for extent in extents.iter().take(EXTENTS_MAX) {
                        let extent = extent?;
                        state.update(self.index.group(extent.group)?.digest.0.as_bytes());
                        state.update(&extent.group_offset.to_le_bytes());
                        state.update(&extent.len.to_le_bytes());
                        state.update(&extent.file_offset.to_le_bytes());
                    }
                }
            },
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo | FileKind::Socket => {}
        }
        Ok(())
    }
}

/// Returns a time near `mtime`, selected by `digest`.
fn near(mtime: Timestamp, digest: &[u8; 32]) -> Timestamp {
    let (words, _) = digest.as_chunks::<4>();
    let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
    let apart = i64::from(word(0)) & (SPAN - 1);
    let nanos = word(1) % NANOS;
    // Not before 1970, which some programs do not handle.
    let secs = if mtime.secs >= SPAN { mtime.secs - 1 - apart } else { mtime.secs + apart };
    Timestamp { secs, nanos }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_time_of_change_is_near_and_in_no_future(
            secs in any::<i64>(), nanos in 0..NANOS, digest in any::<[u8; 32]>(),
        ) {
            let changed = near(Timestamp { secs, nanos }, &digest);
            prop_assert!(changed.nanos < NANOS);
            prop_assert!(changed.secs.abs_diff(secs) <= SPAN.unsigned_abs());
            prop_assert!(changed.secs < secs || secs < SPAN);
            prop_assert!(changed.secs >= 0 || secs < 0);
        }
    }

    #[test]
    fn other_digests_give_other_seconds() {
        let at = Timestamp { secs: 1_700_000_000, nanos: 5 };
        let seconds: std::collections::HashSet<_> = (0..1000_u32)
            .map(|n| near(at, blake3::hash(&n.to_le_bytes()).as_bytes()).secs)
            .collect();
        assert!(seconds.len() > 995, "{}", seconds.len());
    }
}
