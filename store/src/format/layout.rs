//! Defines the on-disk layout of an index, as drawn in `docs/FORMAT.md`, and its limits.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::Digest;

/// The magic number at the start of every index.
pub const INDEX_MAGIC: [u8; 8] = *b"INLAYIDX";
/// The layout version that this code reads and writes.
pub const INDEX_VERSION: u32 = 1;
/// Feature bits that this code supports. Readers reject an index with any other bit set.
pub const KNOWN_FEATURES: u64 = FEATURE_DECODED;
/// The index has the section [`Section::Decoded`].
pub const FEATURE_DECODED: u64 = 1;
/// The maximum decoded size of a group, in bytes. Bounds every decoding buffer.
pub const GROUP_RAW_LEN_MAX: u32 = 4 << 20;
/// The maximum stored size of a group, in bytes: zstd's worst case for `GROUP_RAW_LEN_MAX`.
pub const GROUP_STORED_LEN_MAX: u32 = GROUP_RAW_LEN_MAX + (GROUP_RAW_LEN_MAX >> 7) + 1024;
/// The maximum length of a name in a directory, in bytes (`NAME_MAX`).
pub const NAME_LEN_MAX: usize = 255;
/// The maximum length of a symbolic link's target, in bytes (`PATH_MAX` without the NUL).
pub const SYMLINK_LEN_MAX: usize = 4095;
/// The maximum size of an extended attribute's value, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_LEN_MAX: usize = 65536;
/// The maximum total size of the names of one inode's extended attributes, in bytes, including
/// their NULs (`XATTR_LIST_MAX`).
pub const XATTR_LIST_LEN_MAX: usize = 65536;
/// The maximum size of the configuration in an index, in bytes.
pub const CONFIG_LEN_MAX: u64 = 4 << 20;
/// The maximum size of a file, in bytes.
pub const FILE_LEN_MAX: u64 = i64::MAX as u64;
/// The maximum number of inodes in a snapshot.
pub const INODES_MAX: u64 = 1 << 28;

/// The sections of an index, in the order of the section table and of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Section {
    /// `RawInode`s; the first is the root directory.
    Inodes,
    /// `RawDirent`s; the entries of a directory are contiguous and sorted by name.
    Dirents,
    /// The bytes of all names.
    Names,
    /// `RawExtent`s; the extents of a file are contiguous and sorted by file offset.
    Extents,
    /// `RawGroup`s, sorted by blob and ordinal.
    Groups,
    /// `RawBlob`s.
    Blobs,
    /// Sets of extended attributes.
    Xattrs,
    /// Targets of symbolic links and bytes of tiny files.
    Inline,
    /// BLAKE3 digests of the whole contents of large files.
    Contents,
    /// The image configuration, JSON.
    Config,
    /// BLAKE3 of the decoded bytes of each group, in the order of the groups; zero if unknown. Only
    /// with [`FEATURE_DECODED`].
    Decoded,
}

/// The number of sections.
pub const SECTIONS: usize = 11;

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
        Self::Decoded,
    ];

    /// Returns the name of the section in error messages and in the documentation.
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
            Self::Decoded => "decoded",
        }
    }

    /// Returns the size of one record in bytes; 1 for a section that is a byte heap.
    pub const fn record_len(self) -> u64 {
        match self {
            Self::Inodes => size_of::<RawInode>() as u64,
            Self::Dirents => size_of::<RawDirent>() as u64,
            Self::Extents => size_of::<RawExtent>() as u64,
            Self::Groups => size_of::<RawGroup>() as u64,
            Self::Blobs => size_of::<RawBlob>() as u64,
            Self::Contents | Self::Decoded => 32,
            Self::Names | Self::Xattrs | Self::Inline | Self::Config => 1,
        }
    }
}

/// Position of a section.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSection {
    /// Offset from the start of the index in bytes; a multiple of 8.
    pub offset: U64,
    /// Length in bytes; a multiple of the record size.
    pub len: U64,
}

/// The header: the first 256 bytes of an index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// `INDEX_MAGIC`.
    pub magic: [u8; 8],
    /// `INDEX_VERSION`.
    pub version: U32,
    /// `Kind::code`.
    pub kind: U32,
    /// Feature bits that a reader must support.
    pub features: U64,
    /// Length of the whole index, in bytes.
    pub total_len: U64,
    /// One per `Section`, in order.
    pub sections: [RawSection; SECTIONS],
    /// Must be zero.
    pub reserved: [u8; 48],
}

/// The meaning of the fields `a`, `b` and `c` of a `RawInode`, stored in `RawInode::data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DataTag {
    /// No data: an empty file, a FIFO, a socket, or a file that is a single hole.
    Nothing,
    /// A directory: `a` first entry, `b` number of entries, `c` parent inode.
    Directory,
    /// Bytes in the inline section: `a` offset, `b` length. Used for symbolic links and tiny files.
    Inline,
    /// The whole file is one extent: `a` group, `b` offset in the group's decoded bytes.
    Single,
    /// A list of extents: `a` first extent, `b` number of extents, `c` number of 4 KiB blocks that
    /// are holes.
    Extents,
    /// A device node: `a` major, `b` minor.
    Device,
}

impl DataTag {
    const ALL: [Self; 6] =
        [Self::Nothing, Self::Directory, Self::Inline, Self::Single, Self::Extents, Self::Device];

    /// Returns the number of this tag in the index.
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

    /// Returns the tag with number `code`, or `None` if it is unknown.
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
    /// Owner's uid.
    pub uid: U32,
    /// Owner's gid.
    pub gid: U32,
    /// Number of names; for a directory, 2 plus the number of subdirectories.
    pub nlink: U32,
    /// Size in bytes; 0 for a directory.
    pub size: U64,
    /// Time of last modification, in seconds since 1970.
    pub mtime_s: I64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub mtime_ns: U32,
    /// 0 for none, or 1 plus the offset of the attribute set in the xattrs section.
    pub xattrs: U32,
    /// A `DataTag`.
    pub data: U32,
    /// 0 for none, or 1 plus the position of the digest in the contents section.
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
    /// The inode that the name refers to.
    pub inode: U32,
    /// Length of the name in bytes, 1 to 255.
    pub name_len: u8,
    /// Type of the inode: `mode >> 12`.
    pub kind: u8,
    /// Must be zero.
    pub reserved: U16,
}

/// An extent of a file, 24 bytes. Gaps between extents are holes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// Offset in the file, in bytes.
    pub file_offset: U64,
    /// The group that holds the bytes.
    pub group: U32,
    /// Offset in the group's decoded bytes.
    pub group_offset: U32,
    /// Length in bytes, at least 1.
    pub len: U32,
    /// Must be zero.
    pub reserved: U32,
}

/// A group, 64 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawGroup {
    /// The blob that holds the group.
    pub blob: U32,
    /// Position among the groups of the blob.
    pub ordinal: U32,
    /// Offset of the compressed bytes in the blob.
    pub offset: U64,
    /// Length of the compressed bytes.
    pub stored_len: U32,
    /// Length of the decoded bytes.
    pub raw_len: U32,
    /// 0 for none, or 1 plus the inode of the large file that the group was packed for.
    pub owner: U32,
    /// Must be zero.
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
    /// Size in bytes.
    pub size: U64,
    /// Offset of the table of chunks, which extends to the end of the blob.
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
