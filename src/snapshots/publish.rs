//! Makes a finished tree visible: first its index, then its record, then its name.
//!
//! The blobs are in the store before. Whatever stops this on the way leaves objects that nothing
//! refers to, and that the next try finds and uses.

use std::collections::BTreeMap;
use std::io::{BufReader, Seek};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use inlay_store::format::check::check_index;
use inlay_store::format::packed::pack_index;
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{FormatError, Index};
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::pack::PackedGroups;
use inlay_store::remote::{Name, NameRecord, ObjectKey, SnapshotRecord, TreeCounts};
use inlay_store::tree::Tree;
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use super::open::{index_path, keep};
use crate::host::Host;

/// A snapshot that only needs to be written down.
#[derive(Debug)]
pub struct Draft<'a> {
    /// What it is of.
    pub kind: Kind,
    /// Its tree.
    pub tree: &'a Tree,
    /// Where its files' bytes are.
    pub groups: &'a PackedGroups,
    /// The image's configuration, JSON, or nothing.
    pub config: &'a [u8],
    /// What it was made from, for people.
    pub source: String,
    /// The snapshot that it was made from.
    pub parent: Option<SnapshotId>,
    /// The user's remarks.
    pub labels: BTreeMap<String, String>,
}

/// Writes, checks and uploads the index of `draft`, then its record. With `name`, lets it stand for
/// the snapshot.
pub fn publish(
    host: &Host,
    draft: &Draft<'_>,
    name: Option<&Name>,
) -> Result<SnapshotRecord, SnapshotError> {
    // Beside the indexes on the same file system, so that it can be renamed there.
    let dir = host.state().scratch();
    let mut file = NamedTempFile::new_in(dir).map_err(SnapshotError::at(dir))?;
    let parts = IndexParts {
        kind: draft.kind,
        tree: draft.tree,
        groups: draft.groups,
        config: draft.config,
    };
    let raw_len = write_index(parts, file.as_file_mut())?;
    file.as_file_mut().rewind().map_err(SnapshotError::at(file.path()))?;
    let mut packed = Vec::new();
    let info = pack_index(&mut BufReader::new(file.as_file_mut()), raw_len, &mut packed)
        .map_err(SnapshotError::at(dir))?;
    let id = SnapshotId { kind: draft.kind, index: info.digest };
    let wrong = |source: FormatError| SnapshotError::Index { id, source };
    // What is about to be named for ever is read once as any reader will read it.
    let index = Index::open(file.path()).map_err(wrong)?;
    let checked = check_index(&index).map_err(wrong)?;
    let record = SnapshotRecord {
        id,
        created: now(),
        source: draft.source.clone(),
        parent: draft.parent.filter(|parent| *parent != id),
        counts: TreeCounts {
            files: checked.files,
            directories: checked.directories,
            others: checked.others,
        },
        content_bytes: checked.content_bytes,
        stored_bytes_new: draft.groups.stats.stored_bytes,
        index_bytes: info.raw_len,
        index_packed_bytes: info.packed_len,
        blobs: index.blob_count().into(),
        tool: concat!("inlay ", env!("CARGO_PKG_VERSION")).to_owned(),
        labels: draft.labels.clone(),
    };
    keep(file, &index_path(host.state(), id))?;
    host.wait(async {
        let remote = host.remote();
        remote.put_immutable(&ObjectKey::Index(id.index), Bytes::from(packed)).await?;
        let record = match remote.snapshot(&id).await {
            // Made before, from whatever: the first record stays.
            Ok(known) => known,
            Err(error) if error.is_not_found() => {
                remote.put_snapshot(&record).await?;
                record
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(name) = name {
            let named = NameRecord { name: name.clone(), id, updated: now() };
            remote.set_name(&named).await?;
        }
        Ok(record)
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
