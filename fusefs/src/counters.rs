//! Counts the kernel's requests by type.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! requests {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        /// Request counters by type. Shared by the threads of a mount.
        #[derive(Debug, Default)]
        pub struct RequestCounters {
            $(pub(crate) $field: AtomicU64,)*
        }

        /// Snapshot of the request counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct RequestCounts {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl RequestCounters {
            /// Returns the current counts.
            pub fn snapshot(&self) -> RequestCounts {
                RequestCounts { $($field: self.$field.load(Relaxed),)* }
            }
        }

        impl RequestCounts {
            /// Returns the sum of all counts.
            pub fn total(&self) -> u64 {
                0 $(+ self.$field)*
            }

            /// Returns each count with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }
        }
    };
}

requests! {
    /// Name lookups.
    lookup,
    /// `stat` requests.
    getattr,
    /// Reads of a link's target.
    readlink,
    /// Files opened.
    open,
    /// Of the files opened, those with passthrough.
    open_passthrough,
    /// Reads served at once.
    read_hit,
    /// Reads that waited for the source.
    read_miss,
    /// Files closed.
    release,
    /// Flushes on close; disabled by the first reply.
    flush,
    /// Directories opened.
    opendir,
    /// Directory listings, per piece.
    readdir,
    /// Directory listings with attributes, per piece.
    readdirplus,
    /// Directories closed.
    releasedir,
    /// Reads of one extended attribute.
    getxattr,
    /// Listings of extended attribute names.
    listxattr,
    /// `SEEK_DATA` and `SEEK_HOLE`.
    lseek,
    /// ioctls; only inode flags are supported.
    ioctl,
    /// `statfs` requests.
    statfs,
    /// Cache files that the kernel refused to pass through.
    passthrough_refused,
    /// Requests that failed because of damage or a failing store.
    failed,
}

/// Increments a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
