//! Errors of FUSE requests.

use std::sync::Arc;

use inlay_store::format::{FormatError, InodeIdx};

use crate::content::ContentError;
use crate::ledger::LedgerError;

/// Why a request of the kernel fails.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The node ID belongs to no attached snapshot.
    #[error("no snapshot is mounted that has the inode number {0:#x}")]
    UnknownInode(u64),
    /// A snapshot attached by an earlier server cannot be reopened.
    #[error("the snapshot in slot {slot} can't be opened: {why}")]
    NotOpen {
        /// Slot number.
        slot: u32,
        /// Cause.
        why: Arc<str>,
    },
    /// A snapshot attached by an earlier server is being reopened: the request must not be answered
    /// now.
    #[error("the snapshot is being opened")]
    NotYet,
    /// The root directory has no such name now.
    #[error("no such slot")]
    NoSuchName,
    /// The index is inconsistent.
    #[error("inode {}: {source}", inode.0)]
    Index {
        /// Inode with damaged records.
        inode: InodeIdx,
        /// Cause.
        source: FormatError,
    },
    /// A file's bytes cannot be read.
    #[error("inode {}, {len} bytes at {offset}: {source}", inode.0)]
    Content {
        /// Inode of the file.
        inode: InodeIdx,
        /// Offset of the read, in bytes.
        offset: u64,
        /// Length of the read, in bytes.
        len: u32,
        /// Cause.
        source: ContentError,
    },
    /// The inode has the wrong type for the request.
    #[error("inode {} is not a {wanted}", inode.0)]
    WrongKind {
        /// The inode.
        inode: InodeIdx,
        /// Required type.
        wanted: Wanted,
    },
    /// The inode has no extended attribute of that name.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The caller's buffer is too small; holds the required size in bytes.
    #[error("the buffer is too small: {0} bytes are needed")]
    BufferTooSmall(usize),
    /// No data, or no hole, at or after the offset.
    #[error("the offset is past the last byte of that sort")]
    NothingAfter,
    /// Snapshots cannot be written to.
    #[error("snapshots are read-only")]
    ReadOnly,
    /// An open file cannot be recorded for the next server.
    #[error("a file can't be opened: {0}")]
    Ledger(#[from] LedgerError),
    /// The kernel sent a request that the negotiated protocol excludes.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
}

impl FsError {
    /// Returns whether this is damage or a failing store, which belongs in the log, rather than an
    /// everyday error of programs.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::NotOpen { .. }
            | Self::Ledger(_)
            | Self::Index { .. }
            | Self::Content { .. }
            | Self::Invalid(_) => true,
            Self::UnknownInode(_)
            | Self::NoSuchName
            | Self::NotYet
            | Self::WrongKind { .. }
            | Self::NoAttribute
            | Self::BufferTooSmall(_)
            | Self::NothingAfter
            | Self::ReadOnly => false,
        }
    }
}

/// The inode type that a request needs.
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
