//! What is remembered of a mount, so that another process can find and end it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::Owners;
use super::target::Seen;
use super::upper::Keep;

/// A path in JSON: text where it is UTF-8, else its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// Whether whoever wanted a mount knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It stays.
    #[default]
    Confirmed,
    /// Not yet. Should the daemon die meanwhile, the next one undoes it.
    Unconfirmed,
}

/// A mount of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountRecord {
    /// Where the user sees it: absolute, without symbolic links.
    pub mountpoint: PathText,
    /// What is mounted.
    #[schema(value_type = String)]
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
    /// The sandbox that it belongs to and ends with, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whose files are shown as whose, if not as in the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<Owners>,
    /// The directories that were made for it, those above first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<PathText>,
    /// The key of the request that made it, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whether whoever wanted it knows of it.
    #[serde(default)]
    pub standing: Standing,
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
            owner: Some("sb-1".into()),
            owners: None,
            made: vec![odd.as_path().into()],
            key: None,
            standing: Standing::Confirmed,
        };
        let json = serde_json::to_string(&record).unwrap();
        let read: MountRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.mountpoint.to_path(), odd);
        // Of an earlier version of this program.
        let mut earlier = serde_json::to_value(&record).unwrap();
        earlier
            .as_object_mut()
            .unwrap()
            .retain(|field, _| !["owner", "made", "standing"].contains(&&**field));
        let read: MountRecord = serde_json::from_value(earlier).unwrap();
        assert_eq!((read.owner, read.owners, read.made), (None, None, Vec::new()));
    }
}
