//! Maps paths to the groups that hold their bytes, and back: for user-provided prefetch orders, and
//! for transferring profiles between snapshots.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{Extents, FileData, FileKind, FormatError, GroupIdx, Index, InodeIdx};
use inlay_store::profile::ENTRIES_MAX;

use super::find::{FindError, LastLink, find};

/// Maximum total bytes of paths kept.
const PATH_BYTES_MAX: u64 = 256 << 20;

/// A path in a snapshot, with a part of the file there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPart {
    /// The path, as bytes; a missing leading slash is implied.
    pub path: Vec<u8>,
    /// Part of the file.
    pub part: Part,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// The whole file; for a directory, everything below it.
    Whole,
    /// A byte range.
    Range(Range<u64>),
}

impl PathPart {
    /// Refers to everything at `path`.
    pub fn whole(path: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), part: Part::Whole }
    }
}

/// Result of mapping paths to groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupsOfPaths {
    /// The groups, each once, path by path in file order. At most [`ENTRIES_MAX`], the capacity of
    /// a profile.
    pub groups: Vec<GroupIdx>,
    /// Positions of the given paths that do not exist in the snapshot.
    pub missing: Vec<usize>,
}

/// Returns the groups that hold the bytes of these paths. Symbolic links are followed inside the
/// snapshot.
///
/// A directory stands for all files below it in depth-first order of names. Files stored inline in
/// the index, and objects other than files, have no groups.
///
/// The time is linear in the size of the index and the number of paths, even for a hostile index:
/// the result is truncated once a budget of that size is spent.
pub fn groups_of_paths<'p>(
    index: &Index,
    paths: impl IntoIterator<Item = &'p PathPart>,
) -> Result<GroupsOfPaths, FormatError> {
    let mut collector = Collector {
        index,
        groups: Vec::new(),
        met: HashSet::new(),
        whole: HashSet::new(),
        budget: Budget::of(index),
    };
    let mut missing = Vec::new();
    for (place, part) in paths.into_iter().enumerate() {
        match find(index, &part.path, LastLink::Follow) {
            Ok(inode) => collector.add(inode, &part.part)?,
            Err(FindError::NotThere(_)) => missing.push(place),
            Err(FindError::Format(error)) => return Err(error),
        }
    }
    Ok(GroupsOfPaths { groups: collector.groups, missing })
}

/// Number of records that may still be visited. In a valid index each record belongs to one object,
/// so there are fewer than the index has bytes; in a hostile one millions of files may share
/// millions of extents.
struct Budget(u64);

impl Budget {
    fn of(index: &Index) -> Self {
        Self(index.bytes().len() as u64)
    }

    /// Spends one unit. Returns false if the budget was exhausted.
    fn spend(&mut self) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        left
    }
}

struct Collector<'a> {
    index: &'a Index,
    groups: Vec<GroupIdx>,
    met: HashSet<GroupIdx>,
    /// Inodes added as a whole.
    whole: HashSet<InodeIdx>,
    budget: Budget,
}

impl Collector<'_> {
    fn add(&mut self, inode: InodeIdx, part: &Part) -> Result<(), FormatError> {
        match self.index.attr(inode)?.kind {
            FileKind::Regular => self.add_file(inode, part),
            FileKind::Directory if self.whole.insert(inode) => self.add_below(inode),
            _ => Ok(()),
        }
    }

    fn add_below(&mut self, dir: InodeIdx) -> Result<(), FormatError> {
        for step in Walk::new(self.index, dir)? {
            if self.groups.len() >= ENTRIES_MAX || !self.budget.spend() {
                break;
            }
            if let Step::Entry { entry, .. } = step?
                && entry.kind == FileKind::Regular
            {
                self.add_file(entry.inode, &Part::Whole)?;
            }
        }
        Ok(())
    }

    fn add_file(&mut self, inode: InodeIdx, part: &Part) -> Result<(), FormatError> {
        let FileData::Extents(extents) = self.index.data(inode)? else { return Ok(()) };
        match part {
            Part::Whole if !self.whole.insert(inode) => Ok(()),
            Part::Whole => self.add_groups(extents.iter().map(|e| e.map(|e| e.group))),
            Part::Range(range) => {
                self.add_groups(extents.within(range.clone()).map(|e| e.map(|e| e.group)))
            }
        }
    }

    fn add_groups(
        &mut self,
        groups: impl Iterator<Item = Result<GroupIdx, FormatError>>,
    ) -> Result<(), FormatError> {
        for group in groups {
            if self.groups.len() >= ENTRIES_MAX || !self.budget.spend() {
                break;
            }
            let group = group?;
            if self.met.insert(group) {
                self.groups.push(group);
            }
        }
        Ok(())
    }
}

/// Files that have bytes in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesOfGroup {
    /// Number of files, hard links counted once.
    pub count: u64,
    /// The first files in order of the walk, with their part: the whole file if all of its groups
    /// were requested, else its bytes in this group.
    pub first: Vec<PathPart>,
}

/// Maximum files kept per group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// At most this many.
    First(usize),
    /// Unlimited.
    All,
}

/// Returns the files in each of `groups`, in one walk through the whole index. Groups without files
/// are omitted.
///
/// The time is linear in the size of the index; a hostile index that would exceed this is an error.
pub fn files_of_groups(
    index: &Index,
    groups: impl IntoIterator<Item = GroupIdx>,
    keep: Keep,
) -> Result<HashMap<GroupIdx, FilesOfGroup>, FormatError> {
    let found = groups.into_iter().map(|group| (group, FilesOfGroup::default())).collect();
    let mut finder = Finder { found, keep, kept_bytes: 0, budget: Budget::of(index) };
    let mut met = HashSet::new();
    let mut path = Vec::new();
    for step in Walk::new(index, InodeIdx::ROOT)? {
        let Step::Entry { entry, .. } = step? else {
            pop(&mut path);
            continue;
        };
        push(&mut path, entry.name);
        if entry.kind == FileKind::Regular
            && met.insert(entry.inode)
            && let FileData::Extents(extents) = index.data(entry.inode)?
        {
            finder.add_file(&path, entry.inode, extents)?;
        }
        if entry.kind != FileKind::Directory {
            pop(&mut path);
        }
    }
    let mut found = finder.found;
    found.retain(|_, files| files.count > 0);
    Ok(found)
}

struct Finder {
    found: HashMap<GroupIdx, FilesOfGroup>,
    keep: Keep,
    kept_bytes: u64,
    budget: Budget,
}

impl Finder {
    fn add_file(
        &mut self,
        path: &[u8],
        inode: InodeIdx,
        extents: Extents<'_>,
    ) -> Result<(), FormatError> {
        let mut whole = true;
        let mut previous = None;
        // The file's bytes in each requested group, in file order.
        let mut ranges: Vec<(GroupIdx, Range<u64>)> = Vec::new();
        for extent in extents.iter() {
            if !self.budget.spend() {
                let what = "more pieces of files than an index has";
                return Err(FormatError::Corrupt { what, at: inode.0.into() });
            }
            let extent = extent?;
            let group = extent.group;
            if !self.found.contains_key(&group) {
                whole = false;
            } else if let (true, Some((_, range))) = (previous == Some(group), ranges.last_mut()) {
                range.end = extent.file_end();
            } else {
                ranges.push((group, extent.file_offset..extent.file_end()));
            }
            previous = Some(group);
        }
        let mut counted = HashSet::new();
        for (group, range) in ranges {
            let again = !counted.insert(group);
            let Some(files) = self.found.get_mut(&group) else { continue };
            files.count += u64::from(!again);
            let kept = match self.keep {
                Keep::All => !(whole && again),
                Keep::First(most) => files.first.len() < most && !again,
            };
            if !kept {
                continue;
            }
            self.kept_bytes = self.kept_bytes.saturating_add(path.len() as u64);
            if self.kept_bytes > PATH_BYTES_MAX {
                let what = "the length of all paths";
                return Err(FormatError::TooLarge {
                    what,
                    found: self.kept_bytes,
                    limit: PATH_BYTES_MAX,
                });
            }
            let part = if whole { Part::Whole } else { Part::Range(range) };
            files.first.push(PathPart { path: path.to_vec(), part });
        }
        Ok(())
    }
}
fn push(path: &mut Vec<u8>, name: &[u8]) {
    path.push(b'/');
    path.extend_from_slice(name);
}

fn pop(path: &mut Vec<u8>) {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    path.truncate(end);
}

#[cfg(test)]
#[path = "groups_tests.rs"]
mod tests;
