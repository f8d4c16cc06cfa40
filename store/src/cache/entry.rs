//! The file format of a cached group: the decoded bytes, followed by a trailer for verification.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::disk::{Disk, Stamp, Time};
use crate::format::layout::GROUP_RAW_LEN_MAX;
use crate::ids::{Digest, GroupDigest};

const MAGIC: [u8; 8] = *b"INLAYGRP";
/// The version of cache files that this code reads and writes.
pub const VERSION: u32 = 1;

/// The trailer of a cache file. Every field is compared, so it needs no checksum.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Trailer {
    magic: [u8; 8],
    version: U32,
    /// Number of decoded bytes.
    len: U32,
    /// The group. Detects an intact file under the name of another group.
    group: GroupDigest,
    /// BLAKE3 of the decoded bytes.
    content: Digest,
}

const TRAILER_LEN: u64 = size_of::<Trailer>() as u64;

/// The allocation unit of filesystems, in bytes.
pub(super) const BLOCK: u64 = 4096;

/// Returns the cost of a file with `decoded_len` decoded bytes against the budget: whole blocks of
/// 4 KiB, as filesystems allocate them.
pub(super) fn disk_cost(decoded_len: u64) -> u64 {
    file_cost(decoded_len + TRAILER_LEN)
}

/// Returns the cost of a file of `file_len` bytes against the budget.
pub(super) fn file_cost(file_len: u64) -> u64 {
    file_len.div_ceil(BLOCK) * BLOCK
}

/// Distinguishes a file from one that replaced it, and from itself after a modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    inode: u64,
    len: u64,
    mtime: Time,
}

impl Identity {
    pub(super) fn of(stamp: &Stamp) -> Self {
        Self { inode: stamp.inode, len: stamp.len, mtime: stamp.mtime }
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    pub(super) fn file_len(&self) -> u64 {
        self.len
    }
}

/// An open cache file with verified contents.
#[derive(Debug)]
pub(super) struct CacheFile {
    file: File,
    len: u32,
    used: AtomicBool,
}

/// The reason for rejecting a file.
pub(super) enum Reject {
    /// Its bytes are wrong.
    Wrong,
    /// Reading it failed.
    Io(io::Error),
}

impl From<io::Error> for Reject {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Wrong,
            _ => Self::Io(error),
        }
    }
}

impl CacheFile {
    /// Writes the decoded bytes of `group` and the trailer to the new file `file`.
    pub(super) fn write(
        disk: &dyn Disk,
        file: File,
        group: GroupDigest,
        decoded: &[u8],
    ) -> io::Result<Self> {
        let len = u32::try_from(decoded.len()).map_err(io::Error::other)?;
        let content = Digest::of(decoded);
        let trailer = Trailer {
            magic: MAGIC,
            version: U32::new(VERSION),
            len: U32::new(len),
            group,
            content,
        };
        disk.write(&file, decoded, 0)?;
        disk.write(&file, trailer.as_bytes(), decoded.len() as u64)?;
        Ok(Self::new(file, len))
    }

    /// Accepts a file that was verified earlier and has not changed since.
    pub(super) fn trusted(file: File, identity: Identity) -> Result<Self, Reject> {
        let len = decoded_len(identity.len).ok_or(Reject::Wrong)?;
        Ok(Self::new(file, len))
    }

    fn new(file: File, len: u32) -> Self {
        Self { file, len, used: AtomicBool::new(true) }
    }

    /// Reads the whole file and verifies it against its trailer.
    pub(super) fn verified(
        disk: &dyn Disk,
        file: File,
        identity: Identity,
        group: GroupDigest,
    ) -> Result<Self, Reject> {
        let len = decoded_len(identity.len).ok_or(Reject::Wrong)?;
        let mut trailer = Trailer::new_zeroed();
        disk.read(&file, trailer.as_mut_bytes(), u64::from(len))?;
        if trailer.magic != MAGIC
            || trailer.version.get() != VERSION
            || trailer.len.get() != len
            || trailer.group != group
        {
            return Err(Reject::Wrong);
        }
        let mut decoded = vec![0; len as usize];
        disk.read(&file, &mut decoded, 0)?;
        if Digest::of(&decoded) != trailer.content {
            return Err(Reject::Wrong);
        }
        Ok(Self::new(file, len))
    }

    /// Returns the number of decoded bytes.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Returns whether the decoded bytes extend to `offset + len`.
    pub(super) fn covers(&self, offset: u32, len: usize) -> bool {
        u64::from(offset).checked_add(len as u64).is_some_and(|end| end <= u64::from(self.len))
    }

    /// Fills `buf` from `offset`. Fails, rather than returning zeros, if the file was truncated
    /// meanwhile.
    pub(super) fn read(&self, disk: &dyn Disk, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        disk.read(&self.file, buf, u64::from(offset))
    }

    /// Returns whether the entry was read since the last call.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    pub(super) fn identity(&self, disk: &dyn Disk) -> io::Result<Identity> {
        disk.stamp(&self.file).map(|stamp| Identity::of(&stamp))
    }
}

fn decoded_len(file_len: u64) -> Option<u32> {
    let len = u32::try_from(file_len.checked_sub(TRAILER_LEN)?).ok()?;
    (1..=GROUP_RAW_LEN_MAX).contains(&len).then_some(len)
}
