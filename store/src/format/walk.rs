//! Walks a snapshot from a directory down, safely: an index from a hostile store may hold cycles.
//!
//! Depth first, in order of names, without recursion. A directory that is met twice is an error, so
//! a walk ends after at most as many steps as the index has entries.

use super::error::FormatError;
use super::model::{DirEntry, FileKind, InodeIdx};
use super::reader::{Dir, Index};

/// A step of a walk.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// An entry. If it is a directory, its own entries follow, then its `Leave`.
    Entry {
        /// How many directories it is below the start; the start's own entries are at 0.
        depth: usize,
        /// The entry.
        entry: DirEntry<'a>,
    },
    /// The end of a directory that was entered.
    Leave {
        /// The directory.
        dir: InodeIdx,
    },
}

/// A walk under way.
#[derive(Debug)]
pub struct Walk<'a> {
    index: &'a Index,
    stack: Vec<(InodeIdx, Dir<'a>, usize)>,
    met: Vec<u64>,
    failed: bool,
}

impl<'a> Walk<'a> {
    /// A walk through everything below `start`, which is a directory.
    pub fn new(index: &'a Index, start: InodeIdx) -> Result<Self, FormatError> {
        let words = index.inode_count() as usize / 64 + 1;
        let mut walk = Self { index, stack: Vec::new(), met: vec![0; words], failed: false };
        walk.enter(start)?;
        Ok(walk)
    }

    fn enter(&mut self, inode: InodeIdx) -> Result<(), FormatError> {
        let dir = self.index.dir(inode)?;
        let bit = 1u64 << (inode.0 % 64);
        match self.met.get_mut(inode.0 as usize / 64) {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => return Err(FormatError::corrupt("a directory has two places", inode.0)),
        }
        if let Some((parent, _, _)) = self.stack.last()
            && dir.parent() != *parent
        {
            return Err(FormatError::corrupt("a directory names another parent", inode.0));
        }
        self.stack.push((inode, dir, 0));
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Step<'a>>, FormatError> {
        let depth = self.stack.len().saturating_sub(1);
        let Some((dir, entries, place)) = self.stack.last_mut() else { return Ok(None) };
        let Some(entry) = entries.get(*place) else {
            let dir = *dir;
            self.stack.pop();
            // The start was never an entry, so it has no end either.
            return Ok((!self.stack.is_empty()).then_some(Step::Leave { dir }));
        };
        *place += 1;
        let entry = entry?;
        if entry.kind == FileKind::Directory {
            self.enter(entry.inode)?;
        }
        Ok(Some(Step::Entry { depth, entry }))
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Step<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}
