//! The in-memory types of an index: attributes, directory entries, extents, groups, blobs.

use serde::Serialize;

use crate::ids::{BlobId, Digest, GroupDigest};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);
    };
}

number!(
    /// The number of an inode in its index. The root directory is 0.
    InodeIdx
);
number!(
    /// The number of a group in its index.
    GroupIdx
);
number!(
    /// The number of a blob in its index.
    BlobIdx
);

impl InodeIdx {
    /// The root directory.
    pub const ROOT: Self = Self(0);
}

/// The type of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device node.
    CharDevice,
    /// A block device node.
    BlockDevice,
    /// A FIFO.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

impl FileKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Regular,
        Self::Directory,
        Self::Symlink,
        Self::CharDevice,
        Self::BlockDevice,
        Self::Fifo,
        Self::Socket,
    ];

    /// Returns the type bits of `st_mode`, shifted down: `DT_REG` and so on.
    pub const fn code(self) -> u8 {
        match self {
            Self::Fifo => 1,
            Self::CharDevice => 2,
            Self::Directory => 4,
            Self::BlockDevice => 6,
            Self::Regular => 8,
            Self::Symlink => 10,
            Self::Socket => 12,
        }
    }

    /// Returns the type with this code, or `None` if it is unknown.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Returns the type encoded in `st_mode`, or `None` if it is unknown.
    pub fn from_mode(mode: u32) -> Option<Self> {
        u8::try_from(mode >> 12).ok().and_then(Self::from_code)
    }

    /// Returns the letter that `ls -l` shows.
    pub const fn letter(self) -> char {
        match self {
            Self::Regular => '-',
            Self::Directory => 'd',
            Self::Symlink => 'l',
            Self::CharDevice => 'c',
            Self::BlockDevice => 'b',
            Self::Fifo => 'p',
            Self::Socket => 's',
        }
    }
}

/// A point in time with nanosecond resolution. May be before 1970.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanos: u32,
}

/// A device number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct Device {
    /// Identifies the driver.
    pub major: u32,
    /// Identifies the device of the driver.
    pub minor: u32,
}

/// The attributes of an inode, as `stat` reports them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Attr {
    /// Type.
    pub kind: FileKind,
    /// Permissions: the low 12 bits of `st_mode`, including setuid, setgid and sticky.
    pub perm: u16,
    /// Owner's uid.
    pub uid: u32,
    /// Owner's gid.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Length in bytes of a file's contents or a symbolic link's target; 0 for a directory.
    pub size: u64,
    /// Allocated blocks of 512 bytes, without holes.
    pub blocks: u64,
    /// Time of the last modification of the contents.
    pub mtime: Timestamp,
    /// Device number of a device node; 0 otherwise.
    pub device: Device,
}

impl Attr {
    /// Returns `st_mode`.
    pub fn mode(&self) -> u32 {
        u32::from(self.kind.code()) << 12 | u32::from(self.perm)
    }
}

/// A directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// 1 to 255 bytes, neither `.` nor `..`, without `/` or NUL.
    pub name: &'a [u8],
    /// The inode that the name refers to.
    pub inode: InodeIdx,
    /// Type of the inode.
    pub kind: FileKind,
}

/// A contiguous range of a file's bytes within one group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub file_offset: u64,
    /// Length in bytes, at least 1.
    pub len: u32,
    /// The group.
    pub group: GroupIdx,
    /// Offset in the group's decoded bytes.
    pub group_offset: u32,
}

impl Extent {
    /// Returns the offset of its end in the file, in bytes.
    pub const fn file_end(&self) -> u64 {
        self.file_offset + self.len as u64
    }
}

/// A group: the unit of fetching, verification and decoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// BLAKE3 of the compressed bytes.
    pub digest: GroupDigest,
    /// The blob that holds the group.
    pub blob: BlobIdx,
    /// Position among the groups of the blob.
    pub ordinal: u32,
    /// Offset in the blob, in bytes.
    pub offset: u64,
    /// Length in the blob, in bytes.
    pub stored_len: u32,
    /// Decoded length, in bytes.
    pub raw_len: u32,
    /// The large file that the group was packed for, if its chunks all come from one large file.
    pub owner: Option<InodeIdx>,
}

/// A blob: an object in the store that holds groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blob {
    /// BLAKE3 of all its bytes.
    pub id: BlobId,
    /// Size in bytes.
    pub size: u64,
    /// Offset of the table of chunks, which extends to the end of the blob.
    pub toc_offset: u64,
    /// BLAKE3 of the table of chunks.
    pub toc_digest: Digest,
}
