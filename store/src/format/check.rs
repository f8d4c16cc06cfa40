//! Checks a whole index against every guarantee of the format.
//!
//! Readers do not need it, because each access checks the records that it reads. `inlay verify` and
//! tests use it.

use super::error::FormatError;
use super::model::{FileKind, GroupIdx, InodeIdx};
use super::reader::{FileData, Index};
use super::walk::{Step, Walk};

/// Totals that a check counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Regular files.
    pub files: u64,
    /// Directories, including the root.
    pub directories: u64,
    /// All other inodes.
    pub others: u64,
    /// Sum of the sizes of regular files, including holes.
    pub content_bytes: u64,
    /// Groups.
    pub groups: u64,
}

/// Reads and checks every record of `index`. Takes time and memory proportional to the number of
/// inodes.
pub fn check_index(index: &Index) -> Result<Checked, FormatError> {
    let mut links = Links::of_root(index.inode_count() as usize);
    // The directories above the current entry, and the last name seen in each.
    let mut above: Vec<(InodeIdx, Vec<u8>)> = vec![(InodeIdx::ROOT, Vec::new())];
    for step in Walk::new(index, InodeIdx::ROOT)? {
        match step? {
            Step::Leave { .. } => {
                above.pop();
            }
            Step::Entry { entry, .. } => {
                let at = entry.inode.0;
                let (dir, last) = above
                    .last_mut()
                    .ok_or_else(|| FormatError::corrupt("directories' nesting", at))?;
                if !last.is_empty() && last.as_slice() >= entry.name {
                    return Err(FormatError::corrupt("names out of order", at));
                }
                last.clear();
                last.extend_from_slice(entry.name);
                if index.attr(entry.inode)?.kind != entry.kind {
                    return Err(FormatError::corrupt("an entry of another type", at));
                }
                links.add(entry.inode, 1);
                if entry.kind == FileKind::Directory {
                    // Its own `.`, and its `..`, which is a link to its parent.
                    links.add(entry.inode, 1);
                    links.add(*dir, 1);
                    above.push((entry.inode, Vec::new()));
                }
            }
        }
    }
    let mut checked = Checked::default();
    for (inode, count) in (0u32..).map(InodeIdx).zip(links.0) {
        check_inode(index, inode, count, &mut checked)?;
    }
    for group in 0..index.group_count() {
        index.group(GroupIdx(group))?;
        checked.groups += 1;
    }
    Ok(checked)
}

/// The number of links to each inode, as `stat` reports it.
struct Links(Vec<u32>);

impl Links {
    /// Returns the links of a tree of `inodes` inodes before the walk: the root has its `.` and
    /// `..`.
    fn of_root(inodes: usize) -> Self {
        let mut links = Self(vec![0; inodes]);
        links.add(InodeIdx::ROOT, 2);
        links
    }

    fn add(&mut self, inode: InodeIdx, more: u32) {
        if let Some(count) = self.0.get_mut(inode.0 as usize) {
            *count = count.saturating_add(more);
        }
    }
}

fn check_inode(
    index: &Index,
    inode: InodeIdx,
    links: u32,
    checked: &mut Checked,
) -> Result<(), FormatError> {
    let attr = index.attr(inode)?;
    let wrong = |what| FormatError::corrupt(what, inode.0);
    if links == 0 {
        return Err(wrong("an inode without a name"));
    }
    for attribute in index.xattrs(inode)?.iter() {
        attribute?;
    }
    index.content(inode)?;
    if attr.nlink != links {
        return Err(wrong("a wrong number of links"));
    }
    match attr.kind {
        FileKind::Directory => checked.directories += 1,
        FileKind::Regular => {
            checked.files += 1;
            checked.content_bytes = checked.content_bytes.saturating_add(attr.size);
        }
        _ => checked.others += 1,
    }
    match attr.kind {
        FileKind::Regular => {
            if let FileData::Extents(extents) = index.data(inode)? {
                let mut found = 0;
                for extent in extents.within(0..u64::MAX) {
                    extent?;
                    found += 1;
                }
                if found != extents.len() {
                    return Err(wrong("extents out of order"));
                }
            }
        }
        FileKind::Symlink => {
            index.symlink(inode)?;
        }
        _ => {}
    }
    Ok(())
}
