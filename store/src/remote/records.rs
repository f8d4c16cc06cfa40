//! The small JSON records of the store, for snapshots and names.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use inlay_base::time::since_epoch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key::Name;
use crate::ids::{Kind, SnapshotId};

/// The record version that this code reads and writes.
pub const VERSION: u32 = 1;
/// The maximum length of a record, in bytes.
pub(super) const LEN_MAX: u64 = 64 * 1024;

/// An error from reading or writing a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not valid JSON, or not a record.
    #[error("not an inlay record: {0}")]
    Malformed(String),
    /// The record has a version that this program does not support.
    #[error(
        "its version {found} is not known to this inlay, which knows {VERSION}; use a newer inlay"
    )]
    Version {
        /// Version in the record.
        found: u64,
    },
    /// The record belongs to another subject than its key states.
    #[error("it is about {found}; the store is damaged or lies")]
    Misplaced {
        /// Its subject.
        found: String,
    },
    /// Longer than the limit.
    #[error("{len} bytes, more than {LEN_MAX}; shorten the labels or the source")]
    TooLong {
        /// Actual length, in bytes.
        len: u64,
    },
}

/// The metadata of a snapshot outside its index. Written last, so that all objects that it refers
/// to are already in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The snapshot's id, which includes the kind.
    pub id: SnapshotId,
    /// Creation time: seconds since 1970-01-01 00:00 UTC.
    pub created: u64,
    /// The source of the snapshot, as given by the user.
    pub source: String,
    /// The snapshot that this one was derived from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// Number of inodes by type.
    pub counts: TreeCounts,
    /// Total size of all files, without holes, in bytes.
    pub content_bytes: u64,
    /// Size of the blobs uploaded for it, in bytes.
    pub stored_bytes_new: u64,
    /// Size of the index when mapped, in bytes.
    pub index_bytes: u64,
    /// Size of the packed index in the store, in bytes.
    pub index_packed_bytes: u64,
    /// Number of blobs that it refers to.
    pub blobs: u64,
    /// The program and version that created it.
    pub tool: String,
    /// User-defined labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Time to live after the last use, in seconds. `None` selects the default of the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

impl SnapshotRecord {
    /// Merges `later` into this record of the same snapshot. Labels are added or replaced, never
    /// removed. A TTL can only extend the snapshot's life.
    pub fn merge(&mut self, later: &Self) {
        self.labels.extend(later.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
        let Some(wanted) = later.ttl_s else { return };
        let kept = self.ttl_s.or_else(|| ttl_default(self.id.kind));
        // Without a TTL and a default, the snapshot is kept until it is deleted.
        if kept.is_some_and(|kept| wanted > kept) {
            self.ttl_s = Some(wanted);
        }
    }
}

/// Returns the default TTL of a kind, in seconds; `None` keeps the snapshot until it is deleted.
fn ttl_default(kind: Kind) -> Option<u64> {
    const DAY: u64 = 24 * 60 * 60;
    match kind {
        Kind::Directory => Some(30 * DAY),
        Kind::Memory => Some(7 * DAY),
        Kind::Image | Kind::Filesystem => None,
    }
}

/// Number of inodes in a tree, by type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeCounts {
    /// Regular files; hard links count once.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// All others: symlinks, devices, FIFOs, sockets.
    pub others: u64,
}

/// The target of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The name.
    pub name: Name,
    /// The snapshot that the name refers to.
    pub id: SnapshotId,
    /// Time of the last update: seconds since 1970-01-01 00:00 UTC.
    pub updated: u64,
    /// Nanoseconds of that time. Absent in older records.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub updated_ns: u32,
}

impl NameRecord {
    /// Creates a record for `name` with the target `id` and the current time.
    pub fn now(name: Name, id: SnapshotId) -> Self {
        let now = since_epoch();
        Self { name, id, updated: now.as_secs(), updated_ns: now.subsec_nanos() }
    }

    /// Returns the time of the last update, since 1970-01-01 00:00 UTC.
    pub fn updated(&self) -> Duration {
        Duration::new(self.updated, 0).saturating_add(Duration::from_nanos(self.updated_ns.into()))
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A record that contains the identity of its subject.
pub(super) trait StoreRecord: Serialize + DeserializeOwned {
    /// The identity of the subject.
    type Subject: PartialEq + ToString;

    fn subject(&self) -> &Self::Subject;

    /// Encodes the record for storage.
    fn encode(&self) -> Result<Bytes, RecordError> {
        let json = serde_json::to_vec_pretty(&Versioned { version: VERSION, record: self })
            .map_err(|e| RecordError::Malformed(e.to_string()))?;
        let len = json.len() as u64;
        if len > LEN_MAX { Err(RecordError::TooLong { len }) } else { Ok(json.into()) }
    }

    /// Decodes a record, which must belong to `subject`.
    fn decode(json: &[u8], subject: &Self::Subject) -> Result<Self, RecordError> {
        let malformed = |e: serde_json::Error| RecordError::Malformed(e.to_string());
        // Check the version first, because records of other versions may have other fields.
        let RecordHeader { version } = serde_json::from_slice(json).map_err(malformed)?;
        if version != u64::from(VERSION) {
            return Err(RecordError::Version { found: version });
        }
        let record: Self = serde_json::from_slice(json).map_err(malformed)?;
        if record.subject() == subject {
            Ok(record)
        } else {
            Err(RecordError::Misplaced { found: record.subject().to_string() })
        }
    }
}

impl StoreRecord for SnapshotRecord {
    type Subject = SnapshotId;

    fn subject(&self) -> &SnapshotId {
        &self.id
    }
}

impl StoreRecord for NameRecord {
    type Subject = Name;

    fn subject(&self) -> &Name {
        &self.name
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct RecordHeader {
    version: u64,
}

#[cfg(test)]
#[path = "records_tests.rs"]
pub(super) mod tests;
