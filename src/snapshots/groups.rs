//! From paths to the groups that hold the files' bytes, and back: for orders that people write, and
//! for profiles that are carried from one snapshot to another.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{Extents, FileData, FileKind, FormatError, GroupIdx, Index, InodeIdx};
use inlay_store::profile::ENTRIES_MAX;

use super::find::{FindError, LastLink, find};

/// The most bytes of paths that are kept.
const PATH_BYTES_MAX: u64 = 256 << 20;

/// A path of a snapshot, or a part of the file there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPart {
    /// The path: bytes that begin with a slash, or are taken as if they did.
    pub path: Vec<u8>,
    /// How much of the file.
    pub part: Part,
}

/// How much of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it; of a directory, all that is below.
    Whole,
    /// These bytes.
    Range(Range<u64>),
}

impl PathPart {
    /// All of what is at `path`.
    pub fn whole(path: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), part: Part::Whole }
    }
}

/// What paths come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupsOfPaths {
    /// The groups, each once: path by path, and for each in the order of its bytes. At most
    /// [`ENTRIES_MAX`], as many as a profile holds.
    pub groups: Vec<GroupIdx>,
    /// Which of the paths are not in the snapshot, by their places among those that were given.
    pub missing: Vec<usize>,
}

/// The groups that hold the bytes of these paths. Symbolic links are followed, inside the snapshot.
///
/// A directory means all files below it, in order of names, what a directory holds where it is met.
/// Files that stand in the index, and what is no file, have no groups.
///
/// Takes time in proportion to the size of the index and the number of paths, whatever the index
/// says: when that much was looked at, the rest is left out.
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

/// How much may still be looked at. In an honest index each record belongs to one object, so there
/// are fewer than the index has bytes; in a hostile one, millions of files may share millions of
/// pieces.
struct Budget(u64);

impl Budget {
    fn of(index: &Index) -> Self {
        Self(index.bytes().len() as u64)
    }

    /// Whether there was something left.
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
    /// What was added as a whole.
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

/// The files that have bytes in a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesOfGroup {
    /// How many there are, hard links counted once.
    pub count: u64,
    /// The first ones in order of a walk, and how much of each: all of a file if all of its groups
    /// were asked for, otherwise what the group holds of it.
    pub first: Vec<PathPart>,
}

/// How many files of each group are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// So many.
    First(usize),
    /// Every one.
    All,
}

/// The files in each of `groups`, found by walking through the whole index once. A group without
/// files is left out.
///
/// Takes time in proportion to the size of the index, or fails where an index is no honest one.
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
        // The file's bytes in each group that is looked for, in file order.
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
