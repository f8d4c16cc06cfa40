//! The index byte by byte: every structure that `docs/FORMAT.md` draws, and its limits.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::Digest;

/// The first bytes of every index.
pub const INDEX_MAGIC: [u8; 8] = *b"INLAYIDX";
/// The layout this code reads and writes.
pub const INDEX_VERSION: u32 = 1;
/// Feature bits this code knows. An index with any other bit is refused by name.
pub const KNOWN_FEATURES: u64 = 0;
/// The most bytes a group may decode to. Bounds every decoding buffer.
pub const GROUP_RAW_LEN_MAX: u32 = 4 << 20;
/// The most bytes a group may take in a blob: what zstd can make of `GROUP_RAW_LEN_MAX`.
pub const GROUP_STORED_LEN_MAX: u32 = GROUP_RAW_LEN_MAX + (GROUP_RAW_LEN_MAX >> 7) + 1024;
/// The longest name of a directory entry, in bytes (as Linux has it).
pub const NAME_LEN_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes (`PATH_MAX` less its NUL).
pub const SYMLINK_LEN_MAX: usize = 4095;
/// The longest value of an extended attribute, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_LEN_MAX: usize = 65536;
/// The most bytes all names of one inode's extended attributes take (`XATTR_LIST_MAX`).
pub const XATTR_LIST_LEN_MAX: usize = 65536;
/// The most bytes of configuration an index may carry.
pub const CONFIG_LEN_MAX: u64 = 4 << 20;
/// The largest file, in bytes.
pub const FILE_LEN_MAX: u64 = i64::MAX as u64;
/// The most inodes a snapshot may have.
pub const INODES_MAX: u64 = 1 << 28;

/// The sections of an index, in the order in which they stand in the table and in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Section {
    /// `RawInode`s; the first is the root directory.
    Inodes,
    /// `RawDirent`s; those of one directory stand together, sorted by name.
    Dirents,
    /// The bytes of all names.
    Names,
    /// `RawExtent`s; those of one file stand together, sorted by file offset.
    Extents,
    /// `RawGroup`s, sorted by blob and place.
    Groups,
    /// `RawBlob`s.
    Blobs,
    /// Sets of extended attributes.
    Xattrs,
    /// Symbolic links' targets and tiny files' bytes.
    Inline,
    /// BLAKE3 digests of whole large files.
    Contents,
    /// The image's configuration, JSON.
    Config,
}

/// How many sections there are.
pub const SECTIONS: usize = 10;

impl Section {
    /// Every section, in file order.
    pub const ALL: [Self; SECTIONS] = [
        Self::Inodes,
        Self::Dirents,
        Self::Names,
        Self::Extents,
        Self::Groups,
        Self::Blobs,
        Self::Xattrs,
        Self::Inline,
        Self::Contents,
        Self::Config,
    ];

    /// Its name in error messages and in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inodes => "inodes",
            Self::Dirents => "dirents",
            Self::Names => "names",
            Self::Extents => "extents",
            Self::Groups => "groups",
            Self::Blobs => "blobs",
            Self::Xattrs => "xattrs",
            Self::Inline => "inline",
            Self::Contents => "contents",
            Self::Config => "config",
        }
    }

    /// The size of one record in bytes; 1 where the section is a heap of bytes.
    pub const fn record_len(self) -> u64 {
        match self {
            Self::Inodes => size_of::<RawInode>() as u64,
            Self::Dirents => size_of::<RawDirent>() as u64,
            Self::Extents => size_of::<RawExtent>() as u64,
            Self::Groups => size_of::<RawGroup>() as u64,
            Self::Blobs => size_of::<RawBlob>() as u64,
            Self::Contents => 32,
            Self::Names | Self::Xattrs | Self::Inline | Self::Config => 1,
        }
    }
}

/// Where a section is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSection {
    /// From the start of the index, in bytes; a multiple of 8.
    pub offset: U64,
    /// In bytes; a multiple of the record's size.
    pub len: U64,
}

/// The first 256 bytes of an index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// `INDEX_MAGIC`.
    pub magic: [u8; 8],
    /// `INDEX_VERSION`.
    pub version: U32,
    /// `Kind::code`.
    pub kind: U32,
    /// Bits of features that a reader must know.
    pub features: U64,
    /// The whole index, in bytes.
    pub total_len: U64,
    /// One for each `Section`.
    pub sections: [RawSection; SECTIONS],
    /// Zero.
    pub reserved: [u8; 64],
}

/// What `RawInode::data` says of the fields `a`, `b` and `c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataTag {
    /// Nothing: an empty file, a FIFO, a socket, or a file that is one hole.
    Nothing,
    /// A directory: `a` first entry, `b` number of entries, `c` parent inode.
    Directory,
    /// Bytes in the inline section: `a` offset, `b` length. A symbolic link or a tiny file.
    Inline,
    /// The whole file is one piece of one group: `a` group, `b` offset in its decoded bytes.
    Single,
    /// `a` first extent, `b` number of extents; `c` blocks of 4 KiB that are holes.
    Extents,
    /// A device node: `a` major, `b` minor.
    Device,
}

impl DataTag {
    const ALL: [Self; 6] =
        [Self::Nothing, Self::Directory, Self::Inline, Self::Single, Self::Extents, Self::Device];

    /// The number in the index.
    pub const fn code(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Directory => 1,
            Self::Inline => 2,
            Self::Single => 3,
            Self::Extents => 4,
            Self::Device => 5,
        }
    }

    /// The tag behind a number, if it is one.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|tag| tag.code() == code)
    }
}

/// One inode, 64 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawInode {
    /// Type and permissions, as in `st_mode`.
    pub mode: U32,
    /// Owner.
    pub uid: U32,
    /// Group of the owner.
    pub gid: U32,
    /// Number of names; for a directory 2 plus its subdirectories.
    pub nlink: U32,
    /// In bytes; 0 for a directory.
    pub size: U64,
    /// Last modification, seconds since 1970.
    pub mtime_s: I64,
    /// Nanoseconds of the second, below 1,000,000,000.
    pub mtime_ns: U32,
    /// 0, or one more than the offset of its set in the xattrs section.
    pub xattrs: U32,
    /// A `DataTag`.
    pub data: U32,
    /// 0, or one more than the place of its digest in the contents section.
    pub content: U32,
    /// See `DataTag`.
    pub a: U64,
    /// See `DataTag`.
    pub b: U32,
    /// See `DataTag`.
    pub c: U32,
}

/// One directory entry, 12 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDirent {
    /// Offset of the name in the names section.
    pub name: U32,
    /// The inode it names.
    pub inode: U32,
    /// Length of the name, in bytes, 1 to 255.
    pub name_len: u8,
    /// The inode's type: `mode >> 12`.
    pub kind: u8,
    /// Zero.
    pub reserved: U16,
}

/// A piece of a file, 24 bytes. What lies between two pieces is a hole.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// Where the piece begins in the file, in bytes.
    pub file_offset: U64,
    /// The group that holds it.
    pub group: U32,
    /// Where it begins in the group's decoded bytes.
    pub group_offset: U32,
    /// In bytes, at least 1.
    pub len: U32,
    /// Zero.
    pub reserved: U32,
}

/// A group, 64 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawGroup {
    /// The blob that holds it.
    pub blob: U32,
    /// Its place among the blob's groups.
    pub ordinal: U32,
    /// Where its compressed bytes begin in the blob.
    pub offset: U64,
    /// The compressed bytes' number.
    pub stored_len: U32,
    /// The decoded bytes' number.
    pub raw_len: U32,
    /// 0, or one more than the inode of the large file whose own group it is.
    pub owner: U32,
    /// Zero.
    pub reserved: U32,
    /// BLAKE3 of the compressed bytes.
    pub digest: Digest,
}

/// A blob, 80 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawBlob {
    /// BLAKE3 of the whole blob.
    pub id: Digest,
    /// In bytes.
    pub size: U64,
    /// Where its table of chunks begins; it reaches to the blob's end.
    pub toc_offset: U64,
    /// BLAKE3 of the table of chunks.
    pub toc_digest: Digest,
}

const _: () = {
    assert!(size_of::<RawHeader>() == 256);
    assert!(size_of::<RawInode>() == 64);
    assert!(size_of::<RawDirent>() == 12);
    assert!(size_of::<RawExtent>() == 24);
    assert!(size_of::<RawGroup>() == 64);
    assert!(size_of::<RawBlob>() == 80);
};
