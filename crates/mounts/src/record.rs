//! The persistent record of a mount, by which another process can find and end it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use inlay_base::record::{Record, Unknown};
use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::flags::MountFlags;
use super::ids::Owners;
use super::mount_id::Seen;
use super::upper::Keep;

/// A path in JSON: text if it is UTF-8, otherwise its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PathText {
    /// A UTF-8 path.
    Text(String),
    /// Any other path.
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
    /// Returns the path.
    pub fn to_path(&self) -> PathBuf {
        match self {
            Self::Text(text) => text.into(),
            Self::Bytes(bytes) => OsString::from_vec(bytes.clone()).into(),
        }
    }
}

/// How a snapshot is presented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "mode")]
pub enum View {
    /// Read-only.
    ReadOnly,
    /// Below a writable overlay.
    Writable {
        /// The directory that contains `upper` and `work`.
        upper: PathText,
        /// Whether it outlives the mount.
        keep: Keep,
    },
}

/// Whether the client has learned of its mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It has, and the mount stays.
    #[default]
    Confirmed,
    /// Not yet. If the daemon dies before it has, the next one undoes the mount.
    Unconfirmed,
}

/// A mount on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MountRecord {
    /// The mount point as the user sees it: absolute, without symlinks.
    pub mountpoint: PathText,
    /// The mounted snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// The slots that serve the snapshot below the host's FUSE mounts. Below an overlay there may
    /// be two, the upper one first.
    pub slots: Vec<u32>,
    /// The keeper session in which those slots belong to the snapshot.
    pub session: String,
    /// The identity of the kernel's mount.
    pub seen: Seen,
    /// How the snapshot is presented.
    #[serde(flatten)]
    pub view: View,
    /// The sandbox that it belongs to and ends with, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How file owners are mapped, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owners: Option<Owners>,
    /// The restricting mount flags.
    #[serde(default, skip_serializing_if = "MountFlags::is_empty")]
    pub flags: MountFlags,
    /// The directories created for it, parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<PathText>,
    /// The number of the sandbox's own file about this mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<u32>,
    /// The idempotency key of the request that created it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whether the client has learned of it.
    #[serde(default)]
    pub standing: Standing,
    /// Fields that a newer version has written and this one does not know.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Record for MountRecord {
    const VERSION: u32 = 1;
    const LEN_MAX: u64 = 64 << 10;

    fn unknown(&self) -> Option<&Unknown> {
        Some(&self.unknown)
    }

    fn keep_unknown(&mut self, unknown: Unknown) {
        self.unknown = unknown;
    }
}

impl MountRecord {
    /// Returns the directory that holds its changes, if it is writable.
    pub fn upper(&self) -> Option<PathBuf> {
        match &self.view {
            View::Writable { upper, .. } => Some(upper.to_path()),
            View::ReadOnly => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MountFlag;
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
            flags: [MountFlag::Nosuid, MountFlag::Noexec].into(),
            made: vec![odd.as_path().into()],
            file: Some(3),
            key: None,
            standing: Standing::Confirmed,
            unknown: Unknown::default(),
        };
        let json = serde_json::to_string(&record).unwrap();
        let read: MountRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.mountpoint.to_path(), odd);
        assert_eq!(read.upper(), Some(odd));
        assert_eq!(MountRecord { view: View::ReadOnly, ..read }.upper(), None);
        // As written by an earlier version.
        let mut earlier = serde_json::to_value(&record).unwrap();
        earlier
            .as_object_mut()
            .unwrap()
            .retain(|field, _| !["owner", "flags", "made", "standing"].contains(&&**field));
        let read: MountRecord = serde_json::from_value(earlier).unwrap();
        assert_eq!((read.owner, read.owners, read.made), (None, None, Vec::new()));
        assert!(read.flags.is_empty());
    }
}
