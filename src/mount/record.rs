//! What is remembered of a mount, so that another process can find and end it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};

use super::target::Seen;
use super::upper::Keep;

/// A path in JSON: text where it is UTF-8, else its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PathText {
    /// Nearly all paths.
    Text(String),
    /// The others.
    Bytes(Vec<u8>),
}

impl From<&Path> for PathText {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl PathText {
    /// The path.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Text(text) => text.into(),
            Self::Bytes(bytes) => OsString::from_vec(bytes.clone()).into(),
        }
    }
}

/// How a snapshot is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum View {
    /// As it is.
    ReadOnly,
    /// Below an overlay that takes changes.
    Writable {
        /// The directory that holds `upper` and `work`.
        upper: PathText,
        /// Whether it stays when the mount is gone.
        keep: Keep,
    },
}

/// A mount of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Where the user sees it: absolute, without symbolic links.
    pub mountpoint: PathText,
    /// What is mounted.
    pub snapshot: SnapshotId,
    /// The slots that show the snapshot below the host's FUSE mounts. Below an overlay there may be
    /// two, the upper one first.
    pub slots: Vec<u32>,
    /// The life of the keeper in which those slots are the snapshot's.
    pub session: String,
    /// Which of the kernel's mounts it is.
    pub seen: Seen,
    /// How it is shown.
    #[serde(flatten)]
    pub view: View,
}

impl MountRecord {
    /// The directory that holds its changes, if it is writable.
    pub(crate) fn upper(&self) -> Option<PathBuf> {
        match &self.view {
            View::Writable { upper, .. } => Some(upper.to_path()),
            View::ReadOnly => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_store::ids::Digest;

    #[test]
    fn records_survive_being_written_and_read_whatever_the_paths() {
        let odd = PathBuf::from(OsString::from_vec(b"/a b/\xff\n".to_vec()));
        let record = MountRecord {
            mountpoint: odd.as_path().into(),
            snapshot: format!("fs-{}", Digest::of(b"x").to_hex()).parse().unwrap(),
            slots: vec![7, 8],
            session: "5e55".into(),
            seen: Seen::for_tests(u64::MAX),
            view: View::Writable { upper: odd.as_path().into(), keep: Keep::Kept },
        };
        let json = serde_json::to_string(&record).unwrap();
        let read: MountRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.mountpoint.to_path(), odd);
    }
}
