//! What an index says, as types: attributes, directory entries, pieces of files, groups, blobs.

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
    /// The place of an inode in its index. The root directory is 0.
    InodeIdx
);
number!(
    /// The place of a group in its index.
    GroupIdx
);
number!(
    /// The place of a blob in its index.
    BlobIdx
);

impl InodeIdx {
    /// The root directory.
    pub const ROOT: Self = Self(0);
}

/// What an inode is.
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
    /// A named pipe.
    Fifo,
    /// A socket's name.
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

    /// The type bits of `st_mode`, shifted down: `DT_REG` and so on.
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

    /// The kind behind a type code, if it is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The kind that `st_mode` tells, if it is one.
    pub fn from_mode(mode: u32) -> Option<Self> {
        u8::try_from(mode >> 12).ok().and_then(Self::from_code)
    }

    /// The letter that `ls -l` shows.
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

/// A point in time, to the nanosecond, also before 1970.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub secs: i64,
    /// Nanoseconds of the second, below 1,000,000,000.
    pub nanos: u32,
}

/// A device's number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// What `stat` tells of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Attr {
    /// Its type.
    pub kind: FileKind,
    /// Its permissions: the low 12 bits of `st_mode`, setuid, setgid and sticky among them.
    pub perm: u16,
    /// Its owner.
    pub uid: u32,
    /// Its owner's group.
    pub gid: u32,
    /// How many names it has.
    pub nlink: u32,
    /// Its length in bytes: a file's contents, a symbolic link's target, 0 for a directory.
    pub size: u64,
    /// Blocks of 512 bytes that hold data: holes do not count.
    pub blocks: u64,
    /// When its contents were last changed.
    pub mtime: Timestamp,
    /// What device it stands for, if it is a device node.
    pub device: Device,
}

impl Attr {
    /// `st_mode`.
    pub fn mode(&self) -> u32 {
        u32::from(self.kind.code()) << 12 | u32::from(self.perm)
    }
}

/// A directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// 1 to 255 bytes, neither `.` nor `..`, without `/` or NUL.
    pub name: &'a [u8],
    /// What it names.
    pub inode: InodeIdx,
    /// Of what type that is.
    pub kind: FileKind,
}

/// A piece of a file's bytes, inside one group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub file_offset: u64,
    /// In bytes, at least 1.
    pub len: u32,
    /// The group.
    pub group: GroupIdx,
    /// Where it begins in the group's decoded bytes.
    pub group_offset: u32,
}

impl Extent {
    /// Where it ends in the file, in bytes.
    pub const fn file_end(&self) -> u64 {
        self.file_offset + self.len as u64
    }
}

/// A group: what is fetched, verified and decoded as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Group {
    /// BLAKE3 of its compressed bytes.
    pub digest: GroupDigest,
    /// The blob that holds it.
    pub blob: BlobIdx,
    /// Its place among the blob's groups.
    pub ordinal: u32,
    /// Where it begins in the blob, in bytes.
    pub offset: u64,
    /// How many bytes it takes there.
    pub stored_len: u32,
    /// How many bytes it decodes to.
    pub raw_len: u32,
    /// The large file that it belongs to, if it belongs to one alone.
    pub owner: Option<InodeIdx>,
}

/// A blob: an object of the store that holds groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blob {
    /// BLAKE3 of all its bytes.
    pub id: BlobId,
    /// In bytes.
    pub size: u64,
    /// Where its table of chunks begins; it reaches to the end.
    pub toc_offset: u64,
    /// BLAKE3 of the table of chunks.
    pub toc_digest: Digest,
}
