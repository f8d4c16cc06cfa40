//! The small JSON records of the store: what a snapshot is, and what a name stands for.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key::Name;
use crate::ids::SnapshotId;

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// The longest record, in bytes.
pub(super) const LEN_MAX: u64 = 64 * 1024;

/// Why a record can't be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not JSON, or not what a record holds.
    #[error("it is no record of inlay's: {0}")]
    Malformed(String),
    /// A layout that this program does not know.
    #[error(
        "its version {found} is not known to this inlay, which knows {VERSION}; use a newer inlay"
    )]
    Version {
        /// What the record says.
        found: u64,
    },
    /// The record is about something else than its place says.
    #[error("it is about {found}; the store is damaged or lies")]
    Misplaced {
        /// What it is about.
        found: String,
    },
    /// Longer than a record may be.
    #[error("it would have {len} bytes, more than {LEN_MAX}; shorten the labels or the source")]
    TooLong {
        /// Its length in bytes.
        len: u64,
    },
}

/// What is known of a snapshot without its index. Written last, so that all that it refers to is in
/// the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Which snapshot. It says the kind, too.
    pub id: SnapshotId,
    /// When it was made: seconds since 1970-01-01 00:00 UTC.
    pub created: u64,
    /// What it was made from, as the user gave it.
    pub source: String,
    /// The snapshot that it was made from, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// How many of what it holds.
    pub counts: TreeCounts,
    /// Bytes of all files' contents, holes not counted.
    pub content_bytes: u64,
    /// Bytes of blobs that were uploaded for it.
    pub stored_bytes_new: u64,
    /// Bytes of its index as it is mapped.
    pub index_bytes: u64,
    /// Bytes of its index as it is stored.
    pub index_packed_bytes: u64,
    /// How many blobs it refers to.
    pub blobs: u64,
    /// The program and version that made it.
    pub tool: String,
    /// The user's own remarks.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// How many seconds after its last use it may be removed; nothing is said if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// How many of each there are in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TreeCounts {
    /// Regular files, hard links counted once.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// All else: symlinks, devices, FIFOs, sockets.
    pub others: u64,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The name.
    pub name: Name,
    /// The snapshot behind it.
    pub id: SnapshotId,
    /// When it was set: seconds since 1970-01-01 00:00 UTC.
    pub updated: u64,
}

/// A record that says where it belongs.
pub(super) trait Record: Serialize + DeserializeOwned {
    /// What the record is about.
    type Subject: PartialEq + ToString;

    fn subject(&self) -> &Self::Subject;

    /// The record as it is stored.
    fn encode(&self) -> Result<Bytes, RecordError> {
        let json = serde_json::to_vec_pretty(&Versioned { version: VERSION, record: self })
            .map_err(|e| RecordError::Malformed(e.to_string()))?;
        let len = json.len() as u64;
        if len > LEN_MAX { Err(RecordError::TooLong { len }) } else { Ok(json.into()) }
    }

    /// Reads a record that has to be about `subject`.
    fn decode(json: &[u8], subject: &Self::Subject) -> Result<Self, RecordError> {
        let malformed = |e: serde_json::Error| RecordError::Malformed(e.to_string());
        // The version first: what else a record of another version holds is not known here.
        let Header { version } = serde_json::from_slice(json).map_err(malformed)?;
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

impl Record for SnapshotRecord {
    type Subject = SnapshotId;

    fn subject(&self) -> &SnapshotId {
        &self.id
    }
}

impl Record for NameRecord {
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
struct Header {
    version: u64,
}

#[cfg(test)]
#[path = "records_tests.rs"]
pub(super) mod tests;
