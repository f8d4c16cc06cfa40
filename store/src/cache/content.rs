//! The content of one large file in the cache: partial, or whole and sealed.
//!
//! `contents/ab/<digest>-<size>.part` is the sparse file while it is being filled, and `….ready`
//! next to it records the ranges that it holds. Neither is synced: each process verifies a range on
//! first use. When the file is complete, it is hashed, synced and renamed to
//! `contents/ab/<digest>-<size>`, and `….seal` records its identity; from then on its bytes are
//! read without verification.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::entry::file_cost;
use super::placement::ContentId;
use super::ranges::{HEADER_LEN, RECORD_LEN, Ranges};

/// The cached state of one content.
#[derive(Debug)]
pub(super) struct CachedContent {
    pub(super) id: ContentId,
    pub(super) paths: Paths,
    pub(super) state: RwLock<ContentState>,
    /// Held while writing, sealing or evicting.
    pub(super) writing: Mutex<()>,
    used: AtomicBool,
}

#[derive(Debug, Clone)]
pub(super) enum ContentState {
    /// Not found on disk as of this epoch.
    Absent {
        epoch: u64,
    },
    Part(Arc<Part>),
    Sealed(Arc<Sealed>),
    /// The stored bytes do not match the content's digest although every range matches its group: a
    /// snapshot made a false claim.
    Lie,
}

/// Paths of the files of a content.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) dir: PathBuf,
    pub(super) part: PathBuf,
    pub(super) ready: PathBuf,
    pub(super) sealed: PathBuf,
    pub(super) seal: PathBuf,
}

impl Paths {
    pub(super) fn new(contents: &Path, id: &ContentId) -> Self {
        let hex = id.digest.to_hex();
        let dir = contents.join(hex.get(..2).unwrap_or(""));
        let name = format!("{hex}-{}", id.size);
        let with = |end: &str| dir.join(format!("{name}{end}"));
        Self {
            part: with(".part"),
            ready: with(".ready"),
            sealed: with(""),
            seal: with(".seal"),
            dir,
        }
    }
}

/// The role of a file in `contents/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileRole {
    Part,
    Ready,
    Sealed,
    Seal,
}

/// Parses a file name into its content and role.
pub(super) fn parse_name(name: &str) -> Option<(ContentId, FileRole)> {
    let (stem, role) = match name.split_once('.') {
        None => (name, FileRole::Sealed),
        Some((stem, "part")) => (stem, FileRole::Part),
        Some((stem, "ready")) => (stem, FileRole::Ready),
        Some((stem, "seal")) => (stem, FileRole::Seal),
        Some(_) => return None,
    };
    let (digest, size) = stem.split_once('-')?;
    Some((ContentId { digest: digest.parse().ok()?, size: size.parse().ok()? }, role))
}

/// The access mode of this process to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// This process holds the lock on the `.ready` file.
    Write,
    /// Another process may hold it.
    Read,
}

/// An open part.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    pub(super) ready: File,
    pub(super) right: Right,
    pub(super) ranges: RwLock<Ranges>,
    /// Set when reading a verified range failed. The part is not filled any further but replaced,
    /// so that a file that readers may still use is not overwritten.
    pub(super) condemned: AtomicBool,
    /// Offset of the next record in the `.ready` file.
    pub(super) ready_len: AtomicU64,
}

impl Part {
    /// Returns its cost against the budget, in bytes.
    pub(super) fn cost(&self) -> u64 {
        part_cost(&self.ranges.read(), self.ready_len.load(Ordering::Relaxed))
    }
}

/// Returns the cost of a part with these ranges against the budget, in bytes.
pub(super) fn part_cost(ranges: &Ranges, ready_len: u64) -> u64 {
    ranges.blocks() + file_cost(ready_len)
}

/// Returns the cost of a sealed content against the budget, in bytes.
pub(super) fn sealed_cost(id: &ContentId) -> u64 {
    file_cost(id.size) + file_cost(1)
}

/// Returns the maximum length of a `.ready` file, in bytes. Bounds what is read of a damaged one.
pub(super) fn ready_len_max(id: &ContentId) -> u64 {
    HEADER_LEN + RECORD_LEN * (64 + id.size / 2048)
}

/// The file at the path of a sealed content.
#[derive(Debug)]
pub(super) enum WholeFile {
    /// The file matches its seal.
    Sealed(Arc<Sealed>),
    /// The file has no matching seal. It counts against the budget.
    Unproved,
    /// Another process is evicting the file and will release its cost.
    Leaving,
}

/// An open sealed content. While one exists, no process evicts the file.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) file: Arc<File>,
}

impl CachedContent {
    pub(super) fn new(contents: &Path, id: ContentId) -> Self {
        Self {
            id,
            paths: Paths::new(contents, &id),
            state: RwLock::new(ContentState::Absent { epoch: 0 }),
            writing: Mutex::new(()),
            used: AtomicBool::new(true),
        }
    }

    /// Marks the content as used.
    pub(super) fn mark_used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Returns whether the content was used since the last call.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Returns the file that records the last use in its timestamps. Never the sealed content
    /// itself, because its timestamps are part of its seal.
    pub(super) fn marker(&self) -> Option<&Path> {
        match &*self.state.read() {
            ContentState::Part(_) => Some(&self.paths.ready),
            ContentState::Sealed(_) => Some(&self.paths.seal),
            ContentState::Absent { .. } | ContentState::Lie => None,
        }
    }
}

/// A complete file of the cache. While one exists, no process evicts the file.
#[derive(Debug, Clone)]
pub struct WholeContent {
    pub(super) sealed: Arc<Sealed>,
}

impl WholeContent {
    /// Returns the file, open for reading. Its length and bytes are exactly those of the content.
    pub fn file(&self) -> &Arc<File> {
        &self.sealed.file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;

    #[test]
    fn names_tell_content_and_role() {
        let id = ContentId { digest: Digest::of(b"x"), size: 77 };
        let paths = Paths::new(Path::new("c"), &id);
        for (path, role) in [
            (&paths.part, FileRole::Part),
            (&paths.ready, FileRole::Ready),
            (&paths.sealed, FileRole::Sealed),
            (&paths.seal, FileRole::Seal),
        ] {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(parse_name(name), Some((id, role)));
        }
        for name in ["", "x", "x-1", "x.part", ".part", "-"] {
            assert_eq!(parse_name(name), None);
        }
    }
}
