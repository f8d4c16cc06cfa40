//! The one place where errors become the numbers that programs see.

use fuser::Errno;

use crate::content::ContentError;
use crate::error::{FsError, Wanted};
use crate::ledger::LedgerError;

/// What a program that made the request sees in `errno`.
pub(crate) fn errno(error: &FsError) -> Errno {
    match error {
        // Inode numbers of a snapshot that is gone: what NFS says of a file handle whose file is.
        FsError::UnknownInode(_) => Errno::ESTALE,
        FsError::NoSuchName => Errno::ENOENT,
        FsError::Ledger(LedgerError::Full) => Errno::ENFILE,
        FsError::Index { .. } | FsError::NotOpen { .. } | FsError::Ledger(_) => Errno::EIO,
        FsError::Content { source, .. } => content(source),
        FsError::WrongKind { wanted, .. } => wrong_kind(*wanted),
        FsError::NoAttribute => Errno::ENODATA,
        FsError::BufferTooSmall(_) => Errno::ERANGE,
        FsError::NothingAfter => Errno::ENXIO,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Invalid(_) => Errno::EINVAL,
    }
}

/// Programs know one error for bytes that a regular file has but that can't be read: `EIO`.
/// `ETIMEDOUT`, `ENOENT` or `ESHUTDOWN` from `read` would be taken for something else, or be
/// retried without end. The log says which it was.
fn content(error: &ContentError) -> Errno {
    match error {
        ContentError::Timeout { .. }
        | ContentError::NotFound { .. }
        | ContentError::Corrupt { .. }
        | ContentError::Unavailable { .. }
        | ContentError::Shutdown => Errno::EIO,
    }
}

fn wrong_kind(wanted: Wanted) -> Errno {
    match wanted {
        Wanted::Directory => Errno::ENOTDIR,
        // `readlink` of something that is no link, `read` of something that is no file. The kernel
        // checks first, so only a damaged index can lead here with a directory.
        Wanted::SymbolicLink | Wanted::RegularFile => Errno::EINVAL,
    }
}
