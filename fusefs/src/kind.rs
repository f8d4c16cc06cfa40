//! The sorts of connections to the kernel. There are several, because what a server answers with
//! ENOSYS once is switched off for a whole connection.

use serde::{Deserialize, Serialize};

use crate::fs::SnapshotFs;

/// Which snapshots live on a connection, told by what they can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionKind {
    /// Has all that FUSE has.
    General,
    /// Has no extended attributes. Below an overlay, the kernel would ask for some at each lookup.
    NoXattrs,
    /// Has no large files, so nothing to pass through: the kernel opens files without asking.
    OpenLess,
    /// Has neither.
    Plain,
}

impl ConnectionKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::General, Self::NoXattrs, Self::OpenLess, Self::Plain];

    /// The kind that costs a snapshot least.
    pub fn of(fs: &SnapshotFs) -> Self {
        match (fs.has_xattrs(), fs.has_large_files()) {
            (true, true) => Self::General,
            (false, true) => Self::NoXattrs,
            (true, false) => Self::OpenLess,
            (false, false) => Self::Plain,
        }
    }

    /// The name of its directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::General => "general",
            Self::NoXattrs => "no-xattrs",
            Self::OpenLess => "open-less",
            Self::Plain => "plain",
        }
    }

    /// Whether the kernel may ask for extended attributes.
    pub(crate) const fn has_xattrs(self) -> bool {
        matches!(self, Self::General | Self::OpenLess)
    }

    /// Whether the kernel tells when files and directories are opened.
    pub(crate) const fn tells_opens(self) -> bool {
        matches!(self, Self::General | Self::NoXattrs)
    }

    /// What stands for it in the ledger.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::General => 1,
            Self::NoXattrs => 2,
            Self::OpenLess => 3,
            Self::Plain => 4,
        }
    }

    /// What the ledger's code stands for.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

impl std::fmt::Display for ConnectionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
