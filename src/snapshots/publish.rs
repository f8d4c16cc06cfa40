//! Makes a finished tree visible: first its index, then its record, then its name.
//!
//! The blobs are in the store before. Whatever stops this on the way leaves objects that nothing
//! refers to, and that the next try finds and uses.

use std::collections::BTreeMap;
use std::io;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use inlay_store::format::Index;
use inlay_store::format::check::{Checked, check_index};
use inlay_store::format::packed::{Effort, PackedIndex, pack_index};
use inlay_store::format::write::{IndexParts, Numbering, write_numbered};
use inlay_store::ids::{Digest, IndexDigest, Kind, SnapshotId};
use inlay_store::pack::PackedGroups;
use inlay_store::remote::{Name, NameRecord, ObjectKey, SnapshotRecord, TreeCounts};
use inlay_store::tree::Tree;
use tempfile::NamedTempFile;

use super::error::SnapshotError;
use super::open::{index_path, keep};
use crate::host::Site;
use crate::inject::{self, Step};

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
    /// How long after its last use it may be removed, in seconds.
    pub ttl_s: Option<u64>,
    /// How hard it is tried to make its index short in the store.
    pub effort: Effort,
}

/// The index of a snapshot that nobody else sees yet.
#[derive(Debug)]
pub(crate) struct Written {
    file: NamedTempFile,
    index: Index,
    id: SnapshotId,
    numbering: Numbering,
}

/// Writes, checks and uploads the index of `draft`, then its record. With `name`, lets it stand for
/// the snapshot.
pub fn publish(
    site: Site<'_>,
    draft: &Draft<'_>,
    name: Option<&Name>,
) -> Result<SnapshotRecord, SnapshotError> {
    Written::new(site, draft)?.publish(site, draft, name)
}

/// Lets `name` stand for the snapshot `id`, which is in the store.
pub(crate) fn set_name(site: Site<'_>, name: &Name, id: SnapshotId) -> Result<(), SnapshotError> {
    let named = NameRecord { name: name.clone(), id, updated: now() };
    site.wait(site.remote.set_name(&named))?;
    Ok(())
}

impl Written {
    /// Writes the index of `draft` into the state's scratch directory.
    pub(crate) fn new(site: Site<'_>, draft: &Draft<'_>) -> Result<Self, SnapshotError> {
        // On the same file system as the indexes, so that it can be renamed there.
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

    /// The snapshot's id.
    pub(crate) fn id(&self) -> SnapshotId {
        self.id
    }

    /// Which inodes the nodes of the draft's tree are.
    pub(crate) fn numbering(&self) -> &Numbering {
        &self.numbering
    }

    /// Checks the index, uploads it, then its record. With `name`, lets it stand for the snapshot.
    pub(crate) fn publish(
        self,
        site: Site<'_>,
        draft: &Draft<'_>,
        name: Option<&Name>,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let Self { file, index, id, .. } = self;
        let (packed, info, checked) = finish(site, draft, file, &index, id)?;
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
            ttl_s: draft.ttl_s,
        };
        let dir = site.state.scratch();
        let injected = |step| inject::point(step).map_err(SnapshotError::at(dir));
        injected(Step::BlobsStored)?;
        site.wait(async {
            let remote = site.remote;
            let known = match remote.snapshot(&id).await {
                Ok(known) => Some(known),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error.into()),
            };
            // One that was packed with another effort is as good, and somebody may be reading it.
            if known.is_none() || draft.effort == Effort::Thorough {
                let key = ObjectKey::Index(id.index);
                remote.put_immutable(&key, Bytes::from(packed)).await?;
            }
            injected(Step::IndexStored)?;
            let record = if let Some(known) = known {
                // Made before, from whatever: the first record stays.
                known
            } else {
                remote.put_snapshot(&record).await?;
                record
            };
            injected(Step::RecordStored)?;
            if let Some(name) = name {
                let named = NameRecord { name: name.clone(), id, updated: now() };
                remote.set_name(&named).await?;
                injected(Step::NameStored)?;
            }
            Ok(record)
        })
    }
}

/// Packs and checks an index and gives it its place in the state, all at once.
fn finish(
    site: Site<'_>,
    draft: &Draft<'_>,
    file: NamedTempFile,
    index: &Index,
    id: SnapshotId,
) -> Result<(Vec<u8>, PackedIndex, Checked), SnapshotError> {
    thread::scope(|scope| {
        let keeping = scope.spawn(|| keep(file, &index_path(site.state, id)));
        // What is about to be named for ever is read once as any reader will read it.
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

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
