//! The index reader: everything that can be asked of an index is asked.

use inlay_store::format::check::check_index;
use inlay_store::format::{BlobIdx, Dir, FileData, FormatError, GroupIdx, Index, InodeIdx};

/// A small index with every kind of object in it.
const VALID: &[u8] = include_bytes!("../seeds/index");

/// The most records of one kind that are looked at: more of the same finds nothing new.
const RECORDS_MAX: u32 = 1000;

/// Takes the bytes as an index.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(index) = Index::from_bytes(bytes.to_vec()) else { return };
    // What is found wrong does not matter: that it is found without a panic does.
    let _ = check_index(&index);
    // A record may be reached by number alone, as the kernel does.
    for inode in numbers(index.inode_count()).map(InodeIdx) {
        let _ = ask(&index, inode);
    }
    for group in numbers(index.group_count()).map(GroupIdx) {
        let _ = (index.group(group), index.decoded(group));
    }
    for blob in numbers(index.blob_count()).map(BlobIdx) {
        let _ = index.blob(blob);
    }
    let _ = (index.kind(), index.config().len(), index.digest());
}

/// Takes the bytes as places in a valid index and what to put there: two bytes of offset from the
/// start or, with the high bit, from the end, then a byte of length, then the new bytes.
pub(crate) fn run_patched(mut patches: &[u8]) {
    let mut bytes = VALID.to_vec();
    while let [low, high, len, rest @ ..] = patches {
        let offset = usize::from(u16::from_le_bytes([*low, *high & 0x7f]));
        let start = if high & 0x80 == 0 { offset } else { bytes.len().saturating_sub(offset + 1) };
        let (new, after) = rest.split_at(usize::from(len % 9).min(rest.len()));
        for (old, new) in bytes.iter_mut().skip(start).zip(new) {
            *old = *new;
        }
        patches = after;
    }
    run(&bytes);
}

/// All numbers of records, and the first that is none.
fn numbers(count: u32) -> impl Iterator<Item = u32> {
    0..=count.min(RECORDS_MAX)
}

/// Asks for everything about an inode, also for what its kind does not have.
fn ask(index: &Index, inode: InodeIdx) -> Result<(), FormatError> {
    if let Ok(dir) = index.dir(inode) {
        ask_dir(index, inode, dir);
    }
    let _ = index.symlink(inode);
    let _ = index.content(inode);
    if let Ok(xattrs) = index.xattrs(inode) {
        let _ = xattrs.get(b"user.absent");
        for (name, _) in xattrs.iter().take(100).flatten() {
            let _ = xattrs.get(name);
        }
    }
    let attr = index.attr(inode)?;
    let data = index.data(inode)?;
    if let FileData::Inline(bytes) = data {
        assert_eq!(bytes.len() as u64, attr.size, "an inline file has its size");
    }
    let FileData::Extents(extents) = data else { return Ok(()) };
    for extent in extents.iter().take(RECORDS_MAX as usize).flatten() {
        assert!(extent.file_end() <= attr.size, "an extent is in its file");
        let group = index.group(extent.group)?;
        assert!(extent.group_offset + extent.len <= group.raw_len, "an extent is in its group");
    }
    let middle = attr.size / 2;
    for range in [0..1, 0..attr.size, middle..middle + 4096, attr.size..u64::MAX] {
        let mut floor = 0;
        for extent in extents.within(range).take(RECORDS_MAX as usize).flatten() {
            assert!(extent.file_offset >= floor, "extents are in order");
            floor = extent.file_end();
        }
    }
    Ok(())
}

fn ask_dir(index: &Index, inode: InodeIdx, dir: Dir<'_>) {
    let _ = dir.parent();
    for entry in dir.iter().take(RECORDS_MAX as usize).flatten() {
        assert!(entry.inode.0 < index.inode_count(), "an entry names an inode");
        let _ = index.lookup(inode, entry.name);
    }
    assert!(dir.get(dir.len()).is_none(), "there is nothing after the last entry");
    let _ = index.lookup(inode, b"");
    let _ = index.lookup(inode, b"absent");
    let _ = index.lookup(inode, &[0xff; 255]);
}
