//! Publishes a finished tree: first its index, then its record, then its name.
//!
//! The blobs are already in the store. An interruption leaves unreferenced objects, which the next
//! attempt finds and reuses.

use std::collections::BTreeMap;
use std::io;
use std::thread;

use bytes::Bytes;
use inlay_base::inject::{self, Step};
use inlay_base::time::since_epoch;
use inlay_store::format::Index;
use inlay_store::format::check::{Checked, check_index};
use inlay_store::format::packed::{Effort, PackedIndex, pack_index};
use inlay_store::format::write::{IndexParts, Numbering, write_numbered};
use inlay_store::ids::{Digest, IndexDigest, Kind, SnapshotId};
use inlay_store::pack::PackedGroups;
use inlay_store::remote::{Existing, Name, NameRecord, ObjectKey, SnapshotRecord, TreeCounts};
use inlay_store::tree::Tree;
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use super::open::{index_path, keep};
use super::ship::ship_waiting_blobs;
use crate::host::Site;

/// A snapshot ready to be published.
#[derive(Debug)]
pub struct Draft<'a> {
    /// Kind of the snapshot.
    pub kind: Kind,
    /// Its tree.
    pub tree: &'a Tree,
    /// Location of the files' data.
    pub groups: &'a PackedGroups,
    /// The image configuration as JSON, or empty.
    pub config: &'a [u8],
    /// Description of its source, for display.
    pub source: String,
    /// Parent snapshot.
    pub parent: Option<SnapshotId>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Seconds after its last use until it may be removed.
    pub ttl_s: Option<u64>,
    /// Compression effort for the packed index.
    pub effort: Effort,
    /// Verification of an index that already exists in the store.
    pub existing: Existing,
}

/// The index of a snapshot not yet visible to others.
#[derive(Debug)]
pub struct Written {
    file: NamedTempFile,
    index: Index,
    id: SnapshotId,
    numbering: Numbering,
}

/// Writes, checks and uploads the index of `draft`, then its record. Then sets `name`, if any.
pub fn publish(
    site: Site<'_>,
    draft: &Draft<'_>,
    name: Option<&Name>,
) -> Result<SnapshotRecord, SnapshotError> {
    Written::new(site, draft)?.publish(site, draft, name)
}

/// Sets `name` to the snapshot `id`, which must be in the store.
pub fn set_name(site: Site<'_>, name: &Name, id: SnapshotId) -> Result<(), SnapshotError> {
    site.wait(site.remote.set_name(&NameRecord::now(name.clone(), id)))?;
    Ok(())
}

/// Merges the labels and the time to live of `draft` into the record of a snapshot in the store.
/// Returns the resulting record. Makes no request if nothing changes.
pub fn add_to(
    site: Site<'_>,
    draft: &Draft<'_>,
    known: SnapshotRecord,
) -> Result<SnapshotRecord, SnapshotError> {
    let mut wanted = known.clone();
    wanted.merge(&SnapshotRecord {
        labels: draft.labels.clone(),
        ttl_s: draft.ttl_s,
        ..known.clone()
    });
    if wanted == known {
        return Ok(known);
    }
    Ok(site.wait(site.remote.put_or_merge_snapshot(&wanted))?)
}

impl Written {
    /// Writes the index of `draft` into the state's scratch directory.
    pub fn new(site: Site<'_>, draft: &Draft<'_>) -> Result<Self, SnapshotError> {
        // On the same filesystem as the indexes, so that it can be renamed there.
        let dir = site.state.scratch();
        let mut file = NamedTempFile::new_in(dir).map_err(SnapshotError::at(dir))?;
        let parts = IndexParts {
            kind: draft.kind,
            tree: draft.tree,
            groups: draft.groups,
            config: draft.config,
        };
        let (_, numbering) = write_numbered(parts, file.as_file_mut())?;
        let id = |index| SnapshotId { kind: draft.kind, index };
        let index = Index::open(file.path()).map_err(|source| {
            let id = id(IndexDigest(Digest::from_bytes([0; 32])));
            SnapshotError::Index { id, source }
        })?;
        Ok(Self { id: id(index.digest()), file, index, numbering })
    }

    /// Id of the snapshot.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Maps nodes of the draft's tree to inodes of the index.
    pub fn numbering(&self) -> &Numbering {
        &self.numbering
    }

    /// Checks and uploads the index, then the record. Then sets `name`, if any.
    pub fn publish(
        self,
        site: Site<'_>,
        draft: &Draft<'_>,
        name: Option<&Name>,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let Self { file, index, id, .. } = self;
        let (packed, info, checked) = finish(site, draft, file, &index, id)?;
        let record = SnapshotRecord {
            id,
            created: since_epoch().as_secs(),
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
            ttl_s: draft.ttl_s,
        };
        let dir = site.state.scratch();
        let injected = |step| inject::point(step).map_err(SnapshotError::at(dir));
        injected(Step::BlobsStored)?;
        site.wait(async {
            let remote = site.remote;
            let (known, damaged) = match remote.stored_snapshot(&id).await {
                Ok(known) => (known, false),
                Err(error) if error.is_damage() => {
                    tracing::warn!(snapshot = %id, %error, "replacing a damaged record");
                    (None, true)
                }
                Err(error) => return Err(error.into()),
            };
            ship_waiting_blobs(remote, &index, id).await?;
            // An index packed with another effort is equally valid, and may be in use by a reader.
            if known.is_none() || draft.effort == Effort::Thorough {
                let key = ObjectKey::Index(id.index);
                remote.put_checked(&key, Bytes::from(packed), draft.existing).await?;
            }
            injected(Step::IndexStored)?;
            // If the same tree was snapshotted before, its record is kept, and merged with new
            // labels.
            let record = if known.is_some() {
                remote.put_or_merge_snapshot(&record).await?
            } else if damaged {
                remote.put_snapshot(&record).await?;
                record
            } else {
                remote.create_or_merge_snapshot(&record).await?
            };
            injected(Step::RecordStored)?;
            if let Some(name) = name {
                remote.set_name(&NameRecord::now(name.clone(), id)).await?;
                injected(Step::NameStored)?;
            }
            Ok(record)
        })
    }
}

/// Packs, checks and stores an index in the state directory, all concurrently.
fn finish(
    site: Site<'_>,
    draft: &Draft<'_>,
    file: NamedTempFile,
    index: &Index,
    id: SnapshotId,
) -> Result<(Vec<u8>, PackedIndex, Checked), SnapshotError> {
    thread::scope(|scope| {
        let keeping = scope.spawn(|| keep(file, &index_path(site.state, id)));
        // Read the index once like any reader would, before its id is published for good.
        let checking = scope.spawn(|| check_index(index));
        let mut packed = Vec::new();
        let info = pack_index(index.bytes(), draft.effort, &mut packed);
        let panicked = |_| SnapshotError::at(site.state.indexes())(io::Error::other("a panic"));
        let checked = checking.join().map_err(panicked)?;
        let checked = checked.map_err(|source| SnapshotError::Index { id, source })?;
        keeping.join().map_err(panicked)??;
        let info = info.map_err(SnapshotError::at(site.state.scratch()))?;
        Ok((packed, info, checked))
    })
}
