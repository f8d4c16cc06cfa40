//! What can go wrong with a request of the kernel.

use std::sync::Arc;

use inlay_store::format::{FormatError, InodeIdx};

use crate::content::ContentError;
use crate::ledger::LedgerError;

/// Why a request of the kernel is refused.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The number is of no inode of a mounted snapshot.
    #[error("no snapshot is mounted that has the inode number {0:#x}")]
    UnknownInode(u64),
    /// A snapshot of an earlier server could not be opened again.
    #[error("the snapshot in slot {slot} can't be opened: {why}")]
    NotOpen {
        /// Which.
        slot: u32,
        /// Why.
        why: Arc<str>,
    },
    /// The root directory has no such name now.
    #[error("no such slot")]
    NoSuchName,
    /// The index contradicts itself.
    #[error("inode {}: {source}", inode.0)]
    Index {
        /// Whose records are damaged.
        inode: InodeIdx,
        /// How.
        source: FormatError,
    },
    /// A file's bytes could not be had.
    #[error("inode {}, {len} bytes at {offset}: {source}", inode.0)]
    Content {
        /// Of which file.
        inode: InodeIdx,
        /// Where the read began, in bytes.
        offset: u64,
        /// How many bytes were wanted.
        len: u32,
        /// Why.
        source: ContentError,
    },
    /// The inode is of another kind than the request needs.
    #[error("inode {} is not a {wanted}", inode.0)]
    WrongKind {
        /// Which.
        inode: InodeIdx,
        /// What it should be.
        wanted: Wanted,
    },
    /// The inode has no extended attribute of that name.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The caller's buffer is too small for the value, which takes so many bytes.
    #[error("the buffer is too small: {0} bytes are needed")]
    BufferTooSmall(usize),
    /// There is no data, or no hole, at or after the offset.
    #[error("the offset is past the last byte of that sort")]
    NothingAfter,
    /// A snapshot can't be written to.
    #[error("snapshots are read-only")]
    ReadOnly,
    /// An open file could not be noted where the next server finds it.
    #[error("a file can't be opened: {0}")]
    Ledger(#[from] LedgerError),
    /// The kernel asked for something that was not agreed on.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
}

impl FsError {
    /// Whether it tells of damage or a failing store, which the administrator wants to know, and
    /// not of what programs do every day.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::NotOpen { .. }
            | Self::Ledger(_)
            | Self::Index { .. }
            | Self::Content { .. }
            | Self::Invalid(_) => true,
            Self::UnknownInode(_)
            | Self::NoSuchName
            | Self::WrongKind { .. }
            | Self::NoAttribute
            | Self::BufferTooSmall(_)
            | Self::NothingAfter
            | Self::ReadOnly => false,
        }
    }
}

/// The kind of inode that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A directory.
    Directory,
    /// A regular file.
    RegularFile,
    /// A symbolic link.
    SymbolicLink,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Directory => "directory",
            Self::RegularFile => "regular file",
            Self::SymbolicLink => "symbolic link",
        })
    }
}
