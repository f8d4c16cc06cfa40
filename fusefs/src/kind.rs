//! Kinds of FUSE connections. Several exist because an ENOSYS reply disables an operation for the
//! whole connection, and because a connection without extended attributes can answer for them
//! without a lookup.

use serde::{Deserialize, Serialize};

use crate::fs::SnapshotFs;

/// Kind of a connection, by the features that its snapshots do not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionKind {
    /// All features.
    General,
    /// No extended attributes.
    NoXattrs,
    /// No large files, so no passthrough: the kernel opens files without a round trip.
    OpenLess,
    /// Neither.
    Plain,
}

impl ConnectionKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::General, Self::NoXattrs, Self::OpenLess, Self::Plain];

    /// Returns the cheapest kind for a snapshot.
    pub fn of(fs: &SnapshotFs) -> Self {
        match (fs.has_xattrs(), fs.has_large_files()) {
            (true, true) => Self::General,
            (false, true) => Self::NoXattrs,
            (true, false) => Self::OpenLess,
            (false, false) => Self::Plain,
        }
    }

    /// Name of its mount directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::NoXattrs => "no-xattrs",
            Self::OpenLess => "open-less",
            Self::Plain => "plain",
        }
    }

    /// Returns whether inodes may have extended attributes.
    pub(crate) const fn has_xattrs(self) -> bool {
        matches!(self, Self::General | Self::OpenLess)
    }

    /// Returns whether the kernel sends OPEN and OPENDIR.
    pub(crate) const fn tells_opens(self) -> bool {
        matches!(self, Self::General | Self::NoXattrs)
    }

    /// Code in the ledger.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::General => 1,
            Self::NoXattrs => 2,
            Self::OpenLess => 3,
            Self::Plain => 4,
        }
    }

    /// Decodes a ledger code.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl std::fmt::Display for ConnectionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
