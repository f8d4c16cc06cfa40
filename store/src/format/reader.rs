//! Reads an index in place.
//!
//! Every access is checked, so that an index from a hostile store causes an error, never a panic, a
//! wild read or an endless loop. Opening reads only the header; each call reads only the records it
//! needs. A lookup is a binary search among the entries of one directory. Reading does not
//! allocate.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::error::FormatError;
use super::layout::{
    CONFIG_LEN_MAX, DataTag, FEATURE_DECODED, FILE_LEN_MAX, GROUP_RAW_LEN_MAX,
    GROUP_STORED_LEN_MAX, INDEX_MAGIC, INDEX_VERSION, INODES_MAX, KNOWN_FEATURES, RawBlob,
    RawDirent, RawExtent, RawGroup, RawHeader, RawInode, SECTIONS, SYMLINK_LEN_MAX, Section,
};
use super::map::Backing;
use super::model::{
    Attr, Blob, BlobIdx, Device, DirEntry, Extent, FileKind, Group, GroupIdx, InodeIdx, Timestamp,
};
use super::xattrs::{XattrSet, Xattrs};
use crate::ids::{BlobId, DecodedDigest, Digest, GroupDigest, IndexDigest, Kind};

/// An open index. Cheap to clone: clones share the mapping.
#[derive(Clone, Debug)]
pub struct Index {
    backing: Arc<Backing>,
    kind: Kind,
    sections: [(usize, usize); SECTIONS],
}

/// The location of a regular file's bytes.
#[derive(Clone, Copy, Debug)]
pub enum FileData<'a> {
    /// No bytes are stored: the file is empty or a single hole.
    Hole,
    /// In the index.
    Inline(&'a [u8]),
    /// In groups.
    Extents(Extents<'a>),
}

/// The extents of one file, sorted by file offset.
#[derive(Clone, Copy, Debug)]
pub struct Extents<'a> {
    index: &'a Index,
    size: u64,
    source: ExtentSource<'a>,
}

#[derive(Clone, Copy, Debug)]
enum ExtentSource<'a> {
    Single {
        group: u32,
        group_offset: u32,
    },
    /// `first` is the position of the first record in its section.
    Many {
        first: u64,
        records: &'a [RawExtent],
    },
}

/// The entries of one directory, sorted by name.
#[derive(Clone, Copy, Debug)]
pub struct Dir<'a> {
    index: &'a Index,
    first: u64,
    records: &'a [RawDirent],
    parent: InodeIdx,
}

impl Index {
    /// Maps the index at `path` and checks its header. The cost does not depend on the size.
    ///
    /// The caller guarantees that the bytes match the snapshot's id: they were verified when the
    /// file was written.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let at = |source| FormatError::Io { path: path.to_owned(), source };
        Self::of_file(&File::open(path).map_err(at)?, path)
    }

    /// Like [`Self::open`], for a file that was opened at `path`.
    pub fn of_file(file: &File, path: &Path) -> Result<Self, FormatError> {
        Self::new(Backing::map(file, path)?)
    }

    /// Releases the resident pages of a mapped index. The next access reads them from the kernel's
    /// page cache or from disk.
    pub fn release_pages(&self) {
        self.backing.release();
    }

    /// Opens an index in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, FormatError> {
        Self::new(Backing::Owned(bytes))
    }

    fn new(backing: Backing) -> Result<Self, FormatError> {
        let bytes = backing.bytes();
        let have = bytes.len() as u64;
        let Ok((header, _)) = RawHeader::ref_from_prefix(bytes) else {
            return Err(if bytes.starts_with(&INDEX_MAGIC) {
                FormatError::Truncated { have, want: size_of::<RawHeader>() as u64 }
            } else {
                FormatError::NotAnIndex
            });
        };
        if header.magic != INDEX_MAGIC {
            return Err(FormatError::NotAnIndex);
        }
        if header.version.get() != INDEX_VERSION {
            return Err(FormatError::Version { found: header.version.get(), known: INDEX_VERSION });
        }
        let unknown = header.features.get() & !KNOWN_FEATURES;
        if unknown != 0 {
            return Err(FormatError::Features(unknown));
        }
        let want = header.total_len.get();
        if have != want {
            return Err(FormatError::Truncated { have, want });
        }
        let kind = Kind::from_code(header.kind.get())
            .ok_or_else(|| FormatError::corrupt("unknown kind of snapshot", header.kind.get()))?;
        let sections = section_table(header, bytes.len())?;
        Ok(Self { backing: Arc::new(backing), kind, sections })
    }

    /// Returns the kind of the snapshot.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the bytes of the whole index.
    pub fn bytes(&self) -> &[u8] {
        self.backing.bytes()
    }

    /// Hashes the whole index. Reads all of it.
    pub fn digest(&self) -> IndexDigest {
        IndexDigest(Digest::of(self.bytes()))
    }

    /// Returns the number of inodes.
    pub fn inode_count(&self) -> u32 {
        self.count(Section::Inodes)
    }

    /// Returns the number of directory entries in all directories.
    pub fn entry_count(&self) -> u32 {
        self.count(Section::Dirents)
    }

    /// Returns the number of groups.
    pub fn group_count(&self) -> u32 {
        self.count(Section::Groups)
    }

    /// Returns the number of blobs.
    pub fn blob_count(&self) -> u32 {
        self.count(Section::Blobs)
    }

    /// Returns whether any inode has an extended attribute. Reads only the header.
    pub fn has_xattrs(&self) -> bool {
        !self.section(Section::Xattrs).is_empty()
    }

    /// Returns whether any file is large, i.e. has a content digest. Reads only the header.
    pub fn has_large_files(&self) -> bool {
        !self.section(Section::Contents).is_empty()
    }

    /// Returns the image configuration, JSON, as imported; empty if there is none.
    pub fn config(&self) -> &[u8] {
        self.section(Section::Config)
    }

    /// Returns the attributes of `inode`.
    pub fn attr(&self, inode: InodeIdx) -> Result<Attr, FormatError> {
        let raw = self.inode(inode)?;
        let mode = raw.mode.get();
        let kind = FileKind::from_mode(mode)
            .ok_or_else(|| FormatError::corrupt("unknown type of inode", inode.0))?;
        let size = raw.size.get();
        let nanos = raw.mtime_ns.get();
        if size > FILE_LEN_MAX || nanos >= 1_000_000_000 {
            return Err(FormatError::corrupt("size or time out of range", inode.0));
        }
        let tag = data_tag(raw, inode)?;
        let device = match tag {
            DataTag::Device => Device {
                major: u32::try_from(raw.a.get())
                    .map_err(|_| FormatError::corrupt("device out of range", inode.0))?,
                minor: raw.b.get(),
            },
            _ => Device::default(),
        };
        // `mode & 0o7777` fits: twelve bits.
        let perm = u16::try_from(mode & 0o7777).unwrap_or(0);
        Ok(Attr {
            kind,
            perm,
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            nlink: raw.nlink.get(),
            size,
            blocks: blocks(kind, tag, size, raw.c.get()),
            mtime: Timestamp { secs: raw.mtime_s.get(), nanos },
            device,
        })
    }

    /// Returns the directory `inode`. Fails with `FormatError::WrongKind` for other types.
    pub fn dir(&self, inode: InodeIdx) -> Result<Dir<'_>, FormatError> {
        let raw = self.inode(inode)?;
        if FileKind::from_mode(raw.mode.get()) != Some(FileKind::Directory)
            || data_tag(raw, inode)? != DataTag::Directory
        {
            return Err(FormatError::WrongKind { inode: inode.0, wanted: "directory" });
        }
        let first = raw.a.get();
        let records = self.run::<RawDirent>(Section::Dirents, first, raw.b.get(), inode)?;
        Ok(Dir { index: self, first, records, parent: InodeIdx(raw.c.get()) })
    }

    /// Returns the inode of `name` in the directory `dir`, or `None` if no such entry exists.
    pub fn lookup(&self, dir: InodeIdx, name: &[u8]) -> Result<Option<InodeIdx>, FormatError> {
        self.dir(dir)?.find(name)
    }

    /// Returns the target of the symbolic link `inode`.
    pub fn symlink(&self, inode: InodeIdx) -> Result<&[u8], FormatError> {
        let raw = self.inode(inode)?;
        if FileKind::from_mode(raw.mode.get()) != Some(FileKind::Symlink) {
            return Err(FormatError::WrongKind { inode: inode.0, wanted: "symbolic link" });
        }
        let target = self.inline(raw, inode)?;
        if target.is_empty() || target.len() > SYMLINK_LEN_MAX || target.contains(&0) {
            return Err(FormatError::corrupt("symbolic link's target", inode.0));
        }
        Ok(target)
    }

    /// Returns the extended attributes of `inode`.
    pub fn xattrs(&self, inode: InodeIdx) -> Result<Xattrs<'_>, FormatError> {
        let place = self.inode(inode)?.xattrs.get();
        match place.checked_sub(1) {
            None => Ok(Xattrs::none()),
            Some(offset) => Ok(Xattrs::new(self.xattr_set(offset)?)),
        }
    }

    fn xattr_set(&self, offset: u32) -> Result<XattrSet<'_>, FormatError> {
        let heap = self.section(Section::Xattrs);
        let bytes = heap
            .get(offset as usize..)
            .ok_or_else(|| FormatError::corrupt("extended attributes out of range", offset))?;
        XattrSet::parse(bytes, offset)
    }

    /// Returns the location of the bytes of the regular file `inode`.
    pub fn data(&self, inode: InodeIdx) -> Result<FileData<'_>, FormatError> {
        let raw = self.inode(inode)?;
        if FileKind::from_mode(raw.mode.get()) != Some(FileKind::Regular) {
            return Err(FormatError::WrongKind { inode: inode.0, wanted: "regular file" });
        }
        let size = raw.size.get();
        let source = match data_tag(raw, inode)? {
            DataTag::Nothing => return Ok(FileData::Hole),
            DataTag::Inline => {
                let bytes = self.inline(raw, inode)?;
                if bytes.len() as u64 != size {
                    return Err(FormatError::corrupt("inline bytes are not the file's", inode.0));
                }
                return Ok(FileData::Inline(bytes));
            }
            DataTag::Single => ExtentSource::Single {
                group: u32::try_from(raw.a.get())
                    .map_err(|_| FormatError::corrupt("group out of range", inode.0))?,
                group_offset: raw.b.get(),
            },
            DataTag::Extents => ExtentSource::Many {
                first: raw.a.get(),
                records: self.run(Section::Extents, raw.a.get(), raw.b.get(), inode)?,
            },
            DataTag::Directory | DataTag::Device => {
                return Err(FormatError::corrupt("a regular file without a file's data", inode.0));
            }
        };
        Ok(FileData::Extents(Extents { index: self, size, source }))
    }

    /// Returns the BLAKE3 of the whole contents of `inode`. Only large files have one.
    pub fn content(&self, inode: InodeIdx) -> Result<Option<Digest>, FormatError> {
        let place = self.inode(inode)?.content.get();
        let Some(place) = place.checked_sub(1) else { return Ok(None) };
        self.record::<Digest>(Section::Contents, place).copied().map(Some)
    }

    /// Returns whether `inode` has no extended attributes and, if it has at least `large` bytes, no
    /// content digest.
    pub fn is_common(&self, inode: InodeIdx, large: u64) -> Result<bool, FormatError> {
        let raw = self.inode(inode)?;
        Ok(raw.xattrs.get() == 0 && (raw.content.get() == 0 || raw.size.get() < large))
    }

    /// Returns a group, after checking that it fits its blob and the limits.
    pub fn group(&self, group: GroupIdx) -> Result<Group, FormatError> {
        let raw = self.record::<RawGroup>(Section::Groups, group.0)?;
        let blob = self.record::<RawBlob>(Section::Blobs, raw.blob.get())?;
        let (stored_len, raw_len) = (raw.stored_len.get(), raw.raw_len.get());
        let end = raw.offset.get().checked_add(u64::from(stored_len));
        if end.is_none_or(|end| end > blob.toc_offset.get()) {
            return Err(FormatError::corrupt("group outside its blob", group.0));
        }
        if raw_len == 0
            || stored_len == 0
            || raw_len > GROUP_RAW_LEN_MAX
            || stored_len > GROUP_STORED_LEN_MAX
        {
            return Err(FormatError::corrupt("size of a group", group.0));
        }
        let owner = raw.owner.get().checked_sub(1).map(InodeIdx);
        if owner.is_some_and(|owner| owner.0 >= self.inode_count()) {
            return Err(FormatError::corrupt("owner of a group", group.0));
        }
        Ok(Group {
            digest: GroupDigest(raw.digest),
            blob: BlobIdx(raw.blob.get()),
            ordinal: raw.ordinal.get(),
            offset: raw.offset.get(),
            stored_len,
            raw_len,
            owner,
        })
    }

    /// Returns the digest of the decoded bytes of a group; `None` if the group was packed before
    /// this was recorded.
    pub fn decoded(&self, group: GroupIdx) -> Result<Option<DecodedDigest>, FormatError> {
        if self.section(Section::Decoded).is_empty() {
            return Ok(None);
        }
        let digest = *self.record::<Digest>(Section::Decoded, group.0)?;
        Ok(Some(digest).filter(|digest| *digest.as_bytes() != [0; 32]).map(DecodedDigest))
    }

    /// Returns a blob.
    pub fn blob(&self, blob: BlobIdx) -> Result<Blob, FormatError> {
        let raw = self.record::<RawBlob>(Section::Blobs, blob.0)?;
        if raw.toc_offset.get() > raw.size.get() {
            return Err(FormatError::corrupt("a blob's table is outside the blob", blob.0));
        }
        Ok(Blob {
            id: BlobId(raw.id),
            size: raw.size.get(),
            toc_offset: raw.toc_offset.get(),
            toc_digest: raw.toc_digest,
        })
    }

    fn inode(&self, inode: InodeIdx) -> Result<&RawInode, FormatError> {
        self.record(Section::Inodes, inode.0)
    }

    fn inline(&self, raw: &RawInode, inode: InodeIdx) -> Result<&[u8], FormatError> {
        let wrong = || FormatError::corrupt("inline bytes out of range", inode.0);
        if data_tag(raw, inode)? != DataTag::Inline {
            return Err(wrong());
        }
        let start = usize::try_from(raw.a.get()).map_err(|_| wrong())?;
        let end = start.checked_add(raw.b.get() as usize).ok_or_else(wrong)?;
        self.section(Section::Inline).get(start..end).ok_or_else(wrong)
    }

    fn section(&self, section: Section) -> &[u8] {
        let (start, len) = self.sections.get(section as usize).copied().unwrap_or((0, 0));
        // In range: `section_table` checked it when the index was opened.
        self.bytes().get(start..start + len).unwrap_or(&[])
    }

    fn count(&self, section: Section) -> u32 {
        let records = self.section(section).len() as u64 / section.record_len();
        u32::try_from(records).unwrap_or(u32::MAX)
    }

    fn record<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
        section: Section,
        place: u32,
    ) -> Result<&T, FormatError> {
        let start = place as usize * size_of::<T>();
        self.section(section)
            .get(start..)
            .and_then(|bytes| T::ref_from_prefix(bytes).ok())
            .map(|(record, _)| record)
            .ok_or_else(|| FormatError::corrupt(out_of_range(section), place))
    }

    fn run<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &self,
        section: Section,
        first: u64,
        count: u32,
        inode: InodeIdx,
    ) -> Result<&[T], FormatError> {
        let wrong = || FormatError::corrupt(out_of_range(section), inode.0);
        let first = usize::try_from(first).map_err(|_| wrong())?;
        let start = first.checked_mul(size_of::<T>()).ok_or_else(wrong)?;
        let bytes = self.section(section).get(start..).ok_or_else(wrong)?;
        <[T]>::ref_from_prefix_with_elems(bytes, count as usize)
            .map(|(records, _)| records)
            .map_err(|_| wrong())
    }
}

fn out_of_range(section: Section) -> &'static str {
    match section {
        Section::Inodes => "inode out of range",
        Section::Dirents => "directory entries out of range",
        Section::Extents => "extents out of range",
        Section::Groups => "group out of range",
        Section::Blobs => "blob out of range",
        Section::Contents => "content digest out of range",
        Section::Decoded => "digest of a group out of range",
        Section::Names | Section::Xattrs | Section::Inline | Section::Config => {
            "bytes out of range"
        }
    }
}

/// Checks the section table: sections are in order, aligned, disjoint, and hold whole records.
fn section_table(
    header: &RawHeader,
    total: usize,
) -> Result<[(usize, usize); SECTIONS], FormatError> {
    let mut table = [(0usize, 0usize); SECTIONS];
    let mut floor = size_of::<RawHeader>();
    let mut groups = 0;
    for ((place, raw), section) in table.iter_mut().zip(&header.sections).zip(Section::ALL) {
        let wrong = || FormatError::corrupt("section table", section as usize);
        if section == Section::Decoded && header.features.get() & FEATURE_DECODED == 0 {
            continue;
        }
        let start = usize::try_from(raw.offset.get()).map_err(|_| wrong())?;
        let len = usize::try_from(raw.len.get()).map_err(|_| wrong())?;
        let end = start.checked_add(len).ok_or_else(wrong)?;
        let records = raw.len.get() / section.record_len();
        if start < floor
            || end > total
            || start % 8 != 0
            || raw.len.get() % section.record_len() != 0
            || (section.record_len() > 1 && records > u64::from(u32::MAX))
        {
            return Err(wrong());
        }
        if (section == Section::Inodes && !(1..=INODES_MAX).contains(&records))
            || (section == Section::Config && raw.len.get() > CONFIG_LEN_MAX)
        {
            return Err(wrong());
        }
        if section == Section::Decoded && records != groups {
            return Err(wrong());
        }
        if section == Section::Groups {
            groups = records;
        }
        *place = (start, len);
        floor = end;
    }
    Ok(table)
}

fn data_tag(raw: &RawInode, inode: InodeIdx) -> Result<DataTag, FormatError> {
    DataTag::from_code(raw.data.get())
        .ok_or_else(|| FormatError::corrupt("unknown place of data", inode.0))
}

/// Returns the number of allocated 512-byte blocks, as a filesystem with 4 KiB blocks counts them.
fn blocks(kind: FileKind, tag: DataTag, size: u64, hole_blocks: u32) -> u64 {
    match (kind, tag) {
        (FileKind::Regular, DataTag::Nothing) => 0,
        (FileKind::Regular, _) => {
            size.div_ceil(4096).saturating_sub(u64::from(hole_blocks)).saturating_mul(8)
        }
        _ => 0,
    }
}

impl<'a> Dir<'a> {
    /// Returns the number of entries, without `.` and `..`.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Returns whether the directory has no entries.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Returns the parent directory. The root is its own parent.
    pub fn parent(&self) -> InodeIdx {
        self.parent
    }

    /// Returns the entry at `place`; `None` past the last.
    pub fn get(&self, place: usize) -> Option<Result<DirEntry<'a>, FormatError>> {
        self.records.get(place).map(|raw| self.entry(raw, place))
    }

    /// Iterates over the entries, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = Result<DirEntry<'a>, FormatError>> + use<'a> {
        let dir = *self;
        self.records.iter().enumerate().map(move |(place, raw)| dir.entry(raw, place))
    }

    /// Returns the inode of `name`, or `None` if no such entry exists.
    pub fn find(&self, name: &[u8]) -> Result<Option<InodeIdx>, FormatError> {
        let (mut low, mut high) = (0usize, self.records.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let Some(raw) = self.records.get(middle) else { break };
            match self.name(raw, middle)?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return self.entry(raw, middle).map(|e| Some(e.inode)),
            }
        }
        Ok(None)
    }

    fn name(&self, raw: &RawDirent, place: usize) -> Result<&'a [u8], FormatError> {
        let start = raw.name.get() as usize;
        self.index
            .section(Section::Names)
            .get(start..start + usize::from(raw.name_len))
            .ok_or_else(|| self.wrong("name out of range", place))
    }

    fn entry(&self, raw: &RawDirent, place: usize) -> Result<DirEntry<'a>, FormatError> {
        let name = self.name(raw, place)?;
        if name.is_empty()
            || matches!(name, b"." | b"..")
            || name.iter().any(|b| matches!(b, 0 | b'/'))
        {
            return Err(self.wrong("name that no file can have", place));
        }
        let kind = FileKind::from_code(raw.kind)
            .ok_or_else(|| self.wrong("unknown type of entry", place))?;
        let inode = InodeIdx(raw.inode.get());
        if inode.0 >= self.index.inode_count() || inode == InodeIdx::ROOT {
            return Err(self.wrong("entry without an inode", place));
        }
        Ok(DirEntry { name, inode, kind })
    }

    fn wrong(&self, what: &'static str, place: usize) -> FormatError {
        FormatError::corrupt(what, self.first.saturating_add(place as u64))
    }
}

impl Extents<'_> {
    /// Returns the number of extents.
    pub fn len(&self) -> usize {
        match self.source {
            ExtentSource::Single { .. } => 1,
            ExtentSource::Many { records, .. } => records.len(),
        }
    }

    /// Returns whether the file has no extents.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the extent of a file that is stored as a single extent, or `None` for a list of
    /// extents.
    pub(crate) fn single(&self) -> Option<Result<Extent, FormatError>> {
        match self.source {
            ExtentSource::Single { .. } => self.get(0),
            ExtentSource::Many { .. } => None,
        }
    }

    /// Returns the extent at `place`; `None` past the last.
    pub fn get(&self, place: usize) -> Option<Result<Extent, FormatError>> {
        match self.source {
            ExtentSource::Single { group, group_offset } if place == 0 => {
                let len = u32::try_from(self.size)
                    .map_err(|_| FormatError::corrupt("a single piece of more than 4 GiB", group));
                Some(len.and_then(|len| self.checked(0, len, GroupIdx(group), group_offset)))
            }
            ExtentSource::Single { .. } => None,
            ExtentSource::Many { records, .. } => records.get(place).map(|raw| {
                self.checked(
                    raw.file_offset.get(),
                    raw.len.get(),
                    GroupIdx(raw.group.get()),
                    raw.group_offset.get(),
                )
            }),
        }
    }

    /// Iterates over all extents.
    pub fn iter(&self) -> impl Iterator<Item = Result<Extent, FormatError>> + use<'_> {
        (0..self.len()).filter_map(|place| self.get(place))
    }

    /// Iterates in order over the extents that overlap `range`. The rest of `range` is a hole or
    /// past the end of the file.
    pub fn within(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = Result<Extent, FormatError>> + use<'_> {
        let mut place = self.first_ending_after(range.start);
        let mut floor = 0;
        std::iter::from_fn(move || {
            let next = self.get(place)?;
            place += 1;
            match next {
                Ok(extent) if extent.file_offset < floor => {
                    let wrong = self.wrong("extents out of order", place - 1);
                    place = usize::MAX;
                    Some(Err(wrong))
                }
                Ok(extent) if extent.file_offset >= range.end => None,
                Ok(extent) => {
                    floor = extent.file_end();
                    Some(Ok(extent))
                }
                Err(error) => {
                    place = usize::MAX;
                    Some(Err(error))
                }
            }
        })
    }

    fn wrong(&self, what: &'static str, place: usize) -> FormatError {
        let first = match self.source {
            ExtentSource::Single { .. } => 0,
            ExtentSource::Many { first, .. } => first,
        };
        FormatError::corrupt(what, first.saturating_add(place as u64))
    }

    fn first_ending_after(&self, offset: u64) -> usize {
        match self.source {
            ExtentSource::Single { .. } => 0,
            ExtentSource::Many { records, .. } => records.partition_point(|raw| {
                raw.file_offset.get().saturating_add(u64::from(raw.len.get())) <= offset
            }),
        }
    }

    fn checked(
        &self,
        file_offset: u64,
        len: u32,
        group: GroupIdx,
        group_offset: u32,
    ) -> Result<Extent, FormatError> {
        let wrong = |what| FormatError::corrupt(what, group.0);
        let raw_len = self.index.group(group)?.raw_len;
        if len == 0 || group_offset.checked_add(len).is_none_or(|end| end > raw_len) {
            return Err(wrong("a piece of a file outside its group"));
        }
        if file_offset.checked_add(u64::from(len)).is_none_or(|end| end > self.size) {
            return Err(wrong("a piece of a file past the file's end"));
        }
        Ok(Extent { file_offset, len, group, group_offset })
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
