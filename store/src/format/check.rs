//! Checks a whole index for everything that the format promises. Reading does not need it: each
//! access checks what it touches. `inlay verify` and tests do.

use super::error::FormatError;
use super::model::{FileKind, GroupIdx, InodeIdx};
use super::reader::{FileData, Index};
use super::walk::{Step, Walk};

/// What a check counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Regular files.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// All other inodes.
    pub others: u64,
    /// Bytes of regular files, holes among them.
    pub content_bytes: u64,
    /// Groups.
    pub groups: u64,
}

/// Reads every record of `index`. Takes time and memory in proportion to the number of inodes.
pub fn check_index(index: &Index) -> Result<Checked, FormatError> {
    let mut names = vec![0u32; index.inode_count() as usize];
    if let Some(root) = names.first_mut() {
        *root = 1;
    }
    let mut last_names: Vec<Vec<u8>> = vec![Vec::new()];
    for step in Walk::new(index, InodeIdx::ROOT)? {
        match step? {
            Step::Leave { .. } => {
                last_names.pop();
            }
            Step::Entry { entry, .. } => {
                let at = entry.inode.0;
                let last = last_names
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
                if let Some(count) = names.get_mut(at as usize) {
                    *count += 1;
                }
                if entry.kind == FileKind::Directory {
                    last_names.push(Vec::new());
                }
            }
        }
    }
    let mut checked = Checked::default();
    for (inode, count) in (0u32..).map(InodeIdx).zip(names) {
        check_inode(index, inode, count, &mut checked)?;
    }
    for group in 0..index.group_count() {
        index.group(GroupIdx(group))?;
        checked.groups += 1;
    }
    Ok(checked)
}

fn check_inode(
    index: &Index,
    inode: InodeIdx,
    names: u32,
    checked: &mut Checked,
) -> Result<(), FormatError> {
    let attr = index.attr(inode)?;
    let wrong = |what| FormatError::corrupt(what, inode.0);
    if names == 0 {
        return Err(wrong("an inode without a name"));
    }
    for attribute in index.xattrs(inode)?.iter() {
        attribute?;
    }
    index.content(inode)?;
    match attr.kind {
        FileKind::Directory => checked.directories += 1,
        kind => {
            if attr.nlink != names {
                return Err(wrong("a wrong number of links"));
            }
            if kind == FileKind::Regular {
                checked.files += 1;
                checked.content_bytes = checked.content_bytes.saturating_add(attr.size);
            } else {
                checked.others += 1;
            }
        }
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
