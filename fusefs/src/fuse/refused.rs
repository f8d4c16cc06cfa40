//! A common trait of fuser's replies that can fail.

use fuser::{
    Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr,
};

/// A reply that can carry an error.
pub(super) trait Refused {
    /// Replies with `errno`.
    fn refused(self, errno: Errno);
}

macro_rules! refused {
    ($($reply:ty),*) => {
        $(impl Refused for $reply {
            fn refused(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refused!(
    ReplyAttr,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyXattr
);
