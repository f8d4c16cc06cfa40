//! Maps errors to the errno that programs see. No other place does.

use fuser::Errno;

use crate::content::ContentError;
use crate::error::{FsError, Wanted};
use crate::ledger::LedgerError;

/// Returns the errno for the program that made the request.
pub(crate) fn errno(error: &FsError) -> Errno {
    match error {
        // A node ID of a detached snapshot: the error that NFS uses for a stale file handle.
        FsError::UnknownInode(_) => Errno::ESTALE,
        FsError::NoSuchName => Errno::ENOENT,
        // Never sent: the request is left for the kernel to resend.
        FsError::NotYet => Errno::EAGAIN,
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

/// Any failure to read the bytes of a regular file is `EIO`. Programs would misinterpret
/// `ETIMEDOUT`, `ENOENT` or `ESHUTDOWN` from `read`, or retry forever. The log has the actual
/// cause.
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
        // `readlink` of a non-link or `read` of a non-file. The kernel checks first, so only a
        // damaged index can lead here with a directory.
        Wanted::SymbolicLink | Wanted::RegularFile => Errno::EINVAL,
    }
}
