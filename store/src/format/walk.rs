//! Walks a snapshot depth first, in order of names, without recursion.
//!
//! An index from a hostile store may contain cycles. A directory that is reached twice is an error,
//! so a walk takes at most as many steps as the index has entries.

use super::error::FormatError;
use super::model::{DirEntry, FileKind, InodeIdx};
use super::reader::{Dir, Index};

/// A step of a walk.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// An entry. For a directory, its own entries follow, then its `Leave`.
    Entry {
        /// Number of directories between the start and the entry; 0 for entries of the start
        /// itself.
        depth: usize,
        /// The entry.
        entry: DirEntry<'a>,
    },
    /// The end of a directory.
    Leave {
        /// The directory.
        dir: InodeIdx,
    },
}

/// A walk in progress.
#[derive(Debug)]
pub struct Walk<'a> {
    index: &'a Index,
    stack: Vec<(InodeIdx, Dir<'a>, usize)>,
    /// One bit per inode: the directories already reached.
    met: Vec<u64>,
    failed: bool,
}

impl<'a> Walk<'a> {
    /// Starts a walk of everything below the directory `start`.
    pub fn new(index: &'a Index, start: InodeIdx) -> Result<Self, FormatError> {
        let words = index.inode_count() as usize / 64 + 1;
        let mut walk = Self { index, stack: Vec::new(), met: vec![0; words], failed: false };
        walk.enter(start)?;
        Ok(walk)
    }

    /// Pushes a directory. Fails if it was reached before or has a different parent.
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
            // The start was never returned as an entry, so it gets no `Leave`.
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
