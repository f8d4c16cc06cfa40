//! One large file's contents in the cache: in parts, or whole and sealed.
//!
//! `contents/ab/<digest>-<size>.part` is the sparse file while it is filled, and `….ready` beside it
//! says which ranges are there. Nothing of that is synced: a range proves itself when a process first
//! uses it. When all is there the file is hashed, synced and renamed to `contents/ab/<digest>-<size>`,
//! and `….seal` records which file that was; from then on its bytes are read unasked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::entry::file_cost;
use super::placement::ContentId;
use super::ranges::{HEADER_LEN, RECORD_LEN, Ranges};

/// What the cache has of one content.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) id: ContentId,
    pub(super) paths: Paths,
    pub(super) state: RwLock<State>,
    /// Held by who writes, seals or evicts.
    pub(super) writing: Mutex<()>,
    used: AtomicBool,
}

#[derive(Debug, Clone)]
pub(super) enum State {
    /// Not looked at since that epoch.
    Absent {
        epoch: u64,
    },
    Part(Arc<Part>),
    Sealed(Arc<Sealed>),
    /// The bytes that came are not this content's: some snapshot lies.
    Lie,
}

/// Where its files are.
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

/// What a file in `contents/` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileRole {
    Part,
    Ready,
    Sealed,
    Seal,
}

/// The content and the role that a file's name tells.
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

/// Whether this process may write a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// It has the `.ready` file locked.
    Write,
    /// Another process has.
    Read,
}

/// An open part.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    pub(super) ready: File,
    pub(super) right: Right,
    pub(super) ranges: RwLock<Ranges>,
    /// The disk failed to give what was proved. It is not filled any more but made anew, so that
    /// nothing is written where somebody may still read.
    pub(super) condemned: AtomicBool,
    /// Where the next record goes.
    pub(super) ready_len: AtomicU64,
}

impl Part {
    /// What it counts against the budget.
    pub(super) fn cost(&self) -> u64 {
        part_cost(&self.ranges.read(), self.ready_len.load(Ordering::Relaxed))
    }
}

/// What a part with these ranges counts against the budget.
pub(super) fn part_cost(ranges: &Ranges, ready_len: u64) -> u64 {
    ranges.blocks() + file_cost(ready_len)
}

/// What a sealed content counts against the budget.
pub(super) fn sealed_cost(id: &ContentId) -> u64 {
    file_cost(id.size) + file_cost(1)
}

/// How many records a file of ready ranges may have: bounds what a damaged one makes us read.
pub(super) fn ready_len_max(id: &ContentId) -> u64 {
    HEADER_LEN + RECORD_LEN * (64 + id.size / 2048)
}

/// An open sealed content. As long as any of these lives the file is not evicted, by no process.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) file: Arc<File>,
}

impl Content {
    pub(super) fn new(contents: &Path, id: ContentId) -> Self {
        Self {
            id,
            paths: Paths::new(contents, &id),
            state: RwLock::new(State::Absent { epoch: 0 }),
            writing: Mutex::new(()),
            used: AtomicBool::new(true),
        }
    }

    /// Notes that it was read.
    pub(super) fn mark_used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was read since the last time this was asked.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// The file whose times tell when it was last used: never the content itself, whose times are
    /// part of its seal.
    pub(super) fn marker(&self) -> Option<&Path> {
        match &*self.state.read() {
            State::Part(_) => Some(&self.paths.ready),
            State::Sealed(_) => Some(&self.paths.seal),
            State::Absent { .. } | State::Lie => None,
        }
    }
}

/// A whole file of the cache. As long as it lives the file is not evicted, by no process.
#[derive(Debug, Clone)]
pub struct WholeContent {
    pub(super) sealed: Arc<Sealed>,
}

impl WholeContent {
    /// The file, open to be read. Its length and bytes are exactly the content's.
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
