//! How many requests of each sort the kernel has sent.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! requests {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        /// Requests that came, one number for each sort. Shared by the threads of a mount.
        #[derive(Debug, Default)]
        pub struct RequestCounters {
            $(pub(crate) $field: AtomicU64,)*
        }

        /// Requests that had come at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct RequestCounts {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl RequestCounters {
            /// The numbers as they are now.
            pub fn snapshot(&self) -> RequestCounts {
                RequestCounts { $($field: self.$field.load(Relaxed),)* }
            }
        }

        impl RequestCounts {
            /// All of them together.
            pub fn total(&self) -> u64 {
                0 $(+ self.$field)*
            }

            /// Each number with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

requests! {
    /// A name in a directory.
    lookup,
    /// `stat`.
    getattr,
    /// A link's target.
    readlink,
    /// Files opened.
    open,
    /// Those of the files opened that the kernel reads from the cached file itself.
    open_passthrough,
    /// Reads of files that were answered at once.
    read_hit,
    /// Reads of files that had to wait for the source.
    read_miss,
    /// Files closed.
    release,
    /// Whether closes matter.
    flush,
    /// Directories opened.
    opendir,
    /// Pieces of listings.
    readdir,
    /// Pieces of listings with attributes.
    readdirplus,
    /// Directories closed.
    releasedir,
    /// One extended attribute.
    getxattr,
    /// Names of extended attributes.
    listxattr,
    /// `SEEK_DATA` and `SEEK_HOLE`.
    lseek,
    /// Inode flags and other controls, of which there are none.
    ioctl,
    /// The filesystem's size.
    statfs,
    /// Cached files that the kernel would not read itself.
    passthrough_refused,
    /// Requests answered with an error that means damage or a failing store.
    failed,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
