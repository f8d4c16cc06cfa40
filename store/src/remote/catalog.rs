//! Reads and writes the store's catalog: records of snapshots and names.

use std::collections::BTreeSet;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::PutMode;
use object_store::path::Path;
use tokio::time::timeout;

use super::changing::{ChangeStep, Conditional};
use super::client::{Reach, Remote, WholeObject};
use super::error::StoreError;
use super::failure::Failure;
use super::key::{NAMES, Name, ObjectKey, SNAPSHOTS};
use super::records::{LEN_MAX, NameRecord, RecordError, SnapshotRecord, StoreRecord};
use super::retry::{Operation, RetriedRequest};
use crate::ids::SnapshotId;

/// The maximum number of records in a listing.
const LIST_MAX: usize = 1_000_000;
/// Approximate size of a listed object in a service's response, in bytes.
const LIST_ENTRY_BYTES: u64 = 400;
/// Number of records read concurrently.
const CONCURRENT_READS: usize = 16;

/// A listed snapshot with its record, or the error from reading it.
pub type ListedSnapshot = (SnapshotId, Result<SnapshotRecord, StoreError>);
/// The outcome of moving a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameMove {
    /// The name now refers to the snapshot.
    Moved {
        /// The previous target.
        before: Option<SnapshotId>,
    },
    /// The store already had exactly this record.
    There,
    /// The name was not changed.
    Refused {
        /// The record found; `None` if the name is not set.
        found: Option<NameRecord>,
    },
}

impl Remote {
    /// Returns the record of a snapshot.
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotRecord, StoreError> {
        let key = ObjectKey::Record(*id);
        let json = self.get(&key, LEN_MAX).await?;
        SnapshotRecord::decode(&json, id).map_err(|reason| self.unusable(&key, reason))
    }

    /// Writes the record of a snapshot, which publishes it. All objects that it refers to must
    /// already be in the store.
    pub async fn put_snapshot(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let key = ObjectKey::Record(record.id);
        let json = record.encode().map_err(|reason| self.unusable(&key, reason))?;
        self.put(&key, json).await
    }

    /// Writes the record of a snapshot, or merges it into the existing one (see
    /// [`SnapshotRecord::merge`]). Returns the resulting record. All objects that it refers to must
    /// already be in the store.
    ///
    /// A damaged record is replaced. A record of a newer version is an error, because replacing it
    /// would lose its contents.
    pub async fn put_or_merge_snapshot(
        &self,
        record: &SnapshotRecord,
    ) -> Result<SnapshotRecord, StoreError> {
        let key = ObjectKey::Record(record.id);
        let unusable = |reason| self.unusable(&key, reason);
        self.change(&key, LEN_MAX, |found| {
            let Some(body) = found else {
                return Ok(ChangeStep::Write(record.encode().map_err(unusable)?, record.clone()));
            };
            let known = match decode_snapshot(body, &record.id) {
                Ok(known) => known,
                Err(reason @ RecordError::Version { .. }) => return Err(unusable(reason)),
                Err(reason) => {
                    let object = self.object_name(&key);
                    tracing::warn!(object, %reason, "replacing a damaged record");
                    return Ok(ChangeStep::Write(
                        record.encode().map_err(unusable)?,
                        record.clone(),
                    ));
                }
            };
            let mut merged = known.clone();
            merged.merge(record);
            if merged == known {
                return Ok(ChangeStep::Leave(known));
            }
            Ok(ChangeStep::Write(merged.encode().map_err(unusable)?, merged))
        })
        .await
    }

    /// Like [`Self::put_or_merge_snapshot`], but expects that no record exists: takes a single
    /// request in that case.
    pub async fn create_or_merge_snapshot(
        &self,
        record: &SnapshotRecord,
    ) -> Result<SnapshotRecord, StoreError> {
        let key = ObjectKey::Record(record.id);
        let json = record.encode().map_err(|reason| self.unusable(&key, reason))?;
        self.check_writable(&key)?;
        match self.put_if(&key, json, PutMode::Create).await? {
            Conditional::Written => Ok(record.clone()),
            Conditional::Changed | Conditional::Unsupported => {
                self.put_or_merge_snapshot(record).await
            }
        }
    }

    /// Returns the record of a snapshot in the store itself, ignoring the outbox directory; `None` if
    /// the store has none.
    pub async fn stored_snapshot(
        &self,
        id: &SnapshotId,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        let key = ObjectKey::Record(*id);
        let Some(found) = self.find(&key, LEN_MAX, Reach::StoreOnly).await? else {
            return Ok(None);
        };
        let record = decode_snapshot(&found.body, id);
        record.map(Some).map_err(|reason| self.unusable(&key, reason))
    }

    /// Returns the ids of all snapshots, sorted. Fails above one million.
    pub async fn snapshot_ids(&self) -> Result<Vec<SnapshotId>, StoreError> {
        self.list(&Path::from(SNAPSHOTS), ObjectKey::snapshot_at).await
    }

    /// Streams the records of all snapshots, sorted by id. Reads several concurrently.
    ///
    /// An unusable record is an error item and does not end the stream. A record that is deleted
    /// concurrently is skipped.
    pub async fn snapshots(&self) -> Result<BoxStream<'static, ListedSnapshot>, StoreError> {
        let ids = self.snapshot_ids().await?;
        let remote = self.clone();
        Ok(stream::iter(ids)
            .map(move |id| {
                let remote = remote.clone();
                async move { present(remote.snapshot(&id).await).map(|read| (id, read)) }
            })
            .buffered(CONCURRENT_READS)
            .filter_map(std::future::ready)
            .boxed())
    }

    /// Returns the record of a name, or `None` if it is not set.
    pub async fn name(&self, name: &Name) -> Result<Option<NameRecord>, StoreError> {
        // Check before reading: if the name is uploaded in between, the record found is the
        // store's.
        let waits = self.outbox_dir().is_some_and(|outbox_dir| outbox_dir.has_name(name));
        let found = self.name_record(name).await?;
        if let Some(outbox_dir) = self.outbox_dir().filter(|_| !waits) {
            outbox_dir.note(name, found.as_ref().map(|record| record.id));
        }
        Ok(found)
    }

    async fn name_record(&self, name: &Name) -> Result<Option<NameRecord>, StoreError> {
        let key = ObjectKey::Name(name.clone());
        let found = self.find(&key, LEN_MAX, Reach::OutboxFirst).await?;
        let Some(found) = found else { return Ok(None) };
        decode_name(&found.body, name).map(Some).map_err(|reason| self.unusable(&key, reason))
    }

    /// Sets a name, and returns its previous target in the store.
    ///
    /// With conditional writes, concurrent updates are serialized and none is lost. Without them,
    /// the last one wins, and the returned target may be stale. A name with a damaged record is
    /// treated as unset. A record of a newer version is left unchanged and is an error.
    pub async fn set_name(&self, record: &NameRecord) -> Result<Option<SnapshotId>, StoreError> {
        let moved = self.move_name(record, |_| true).await?;
        let before = match moved {
            NameMove::Moved { before } => before,
            // `|_| true` refuses nothing.
            NameMove::There | NameMove::Refused { .. } => Some(record.id),
        };
        if let Some(outbox_dir) = self.outbox_dir() {
            outbox_dir.name_was_set(&record.name, Some(record.id));
        }
        Ok(before)
    }

    /// Moves a name if `may` accepts its current record in the store.
    ///
    /// With conditional writes, the check and the move are atomic.
    pub async fn move_name(
        &self,
        record: &NameRecord,
        may: impl Fn(Option<&NameRecord>) -> bool,
    ) -> Result<NameMove, StoreError> {
        let key = ObjectKey::Name(record.name.clone());
        let json = record.encode().map_err(|reason| self.unusable(&key, reason))?;
        self.change(&key, LEN_MAX, |found| {
            let known = match found.map(|body| decode_name(body, &record.name)).transpose() {
                Ok(known) => known,
                Err(reason @ RecordError::Version { .. }) => {
                    return Err(self.unusable(&key, reason));
                }
                Err(reason) => {
                    let object = self.object_name(&key);
                    tracing::warn!(object, %reason, "replacing a damaged record");
                    None
                }
            };
            match known {
                Some(known) if known == *record => Ok(ChangeStep::Leave(NameMove::There)),
                known if may(known.as_ref()) => {
                    let before = known.map(|known| known.id);
                    Ok(ChangeStep::Write(json.clone(), NameMove::Moved { before }))
                }
                found => Ok(ChangeStep::Leave(NameMove::Refused { found })),
            }
        })
        .await
    }

    /// Removes a name. Idempotent.
    pub async fn remove_name(&self, name: &Name) -> Result<(), StoreError> {
        self.remove(&ObjectKey::Name(name.clone())).await?;
        if let Some(outbox_dir) = self.outbox_dir() {
            outbox_dir.name_was_set(name, None);
        }
        Ok(())
    }

    /// Streams the records of all names, sorted by name, like [`Self::snapshots`].
    pub async fn names(
        &self,
    ) -> Result<BoxStream<'static, Result<NameRecord, StoreError>>, StoreError> {
        let names = self.list(&Path::from(NAMES), ObjectKey::name_at).await?;
        let remote = self.clone();
        Ok(stream::iter(names)
            .map(move |name| {
                let remote = remote.clone();
                async move { remote.name_record(&name).await.transpose() }
            })
            .buffered(CONCURRENT_READS)
            .filter_map(std::future::ready)
            .boxed())
    }

    /// Lists `directory`, a path below the root, and parses each object's path. Skips paths that
    /// `parse` rejects.
    pub(super) async fn list<T: Ord>(
        &self,
        directory: &Path,
        parse: fn(&Path) -> Option<T>,
    ) -> Result<Vec<T>, StoreError> {
        let object = self.full_name(directory);
        let prefix = directory.parts().fold(self.root().clone(), Path::join);
        let stall = self.policy().stall;
        let request = RetriedRequest {
            operation: Operation::List,
            object: object.clone(),
            bytes: LIST_ENTRY_BYTES * LIST_MAX as u64,
            known: None,
            budget: self.policy().budget(),
        };
        let found = self
            .run(request, |store| {
                let prefix = prefix.clone();
                async move {
                    let mut entries = store.list(Some(&prefix));
                    let mut found = BTreeSet::new();
                    loop {
                        let next = timeout(stall, entries.try_next()).await;
                        let next = next.map_err(|_| Failure::Timeout(stall))?;
                        match next? {
                            Some(entry) if found.len() <= LIST_MAX => {
                                found.extend(parse(&entry.location));
                            }
                            _ => return Ok(found),
                        }
                    }
                }
            })
            .await?;
        if found.len() > LIST_MAX {
            return Err(StoreError::TooMany { object, max: LIST_MAX });
        }
        Ok(found.into_iter().collect())
    }

    fn unusable(&self, key: &ObjectKey, reason: RecordError) -> StoreError {
        StoreError::Record { object: self.object_name(key), reason }
    }
}

fn decode_snapshot(body: &WholeObject, id: &SnapshotId) -> Result<SnapshotRecord, RecordError> {
    match body {
        WholeObject::Bytes(json) => SnapshotRecord::decode(json, id),
        WholeObject::TooLong(len) => Err(RecordError::TooLong { len: *len }),
    }
}

/// Decodes the record of `name`.
fn decode_name(body: &WholeObject, name: &Name) -> Result<NameRecord, RecordError> {
    match body {
        WholeObject::Bytes(json) => NameRecord::decode(json, name),
        WholeObject::TooLong(len) => Err(RecordError::TooLong { len: *len }),
    }
}

/// Returns `None` for an object that was deleted concurrently.
fn present<T>(read: Result<T, StoreError>) -> Option<Result<T, StoreError>> {
    match read {
        Err(error) if error.is_not_found() => None,
        read => Some(read),
    }
}
