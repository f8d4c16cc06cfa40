//! The store's records: which snapshots there are, and which names they have.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion};
use tokio::time::timeout;

use super::body;
use super::client::{Remote, within};
use super::error::StoreError;
use super::failure::Failure;
use super::key::{NAMES, Name, ObjectKey, SNAPSHOTS};
use super::records::{LEN_MAX, NameRecord, Record, RecordError, SnapshotRecord};
use super::retry::{Operation, Request};
use crate::ids::SnapshotId;

/// The most records of one sort that are listed.
const LIST_MAX: usize = 1_000_000;
/// About how many bytes a service sends for each object that it lists.
const LIST_ENTRY_BYTES: u64 = 400;
/// How many records are read at once.
const CONCURRENT_READS: usize = 16;
/// How often a name is tried to be set while others set it, too.
const SET_ATTEMPTS_MAX: u32 = 16;

/// A record and the state of its object that a conditional write can refer to.
struct Found {
    record: NameRecord,
    version: UpdateVersion,
}

/// What became of a conditional write.
enum Conditional {
    Written,
    Changed,
    Unsupported,
}

impl Remote {
    /// The record of a snapshot.
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotRecord, StoreError> {
        let key = ObjectKey::Record(*id);
        let json = self.get(&key, LEN_MAX).await?;
        SnapshotRecord::decode(&json, id).map_err(|reason| self.unusable(&key, reason))
    }

    /// Writes a snapshot's record: from here on the snapshot is there for everybody. All that it
    /// refers to must be in the store.
    pub async fn put_snapshot(&self, record: &SnapshotRecord) -> Result<(), StoreError> {
        let key = ObjectKey::Record(record.id);
        let json = record.encode().map_err(|reason| self.unusable(&key, reason))?;
        self.put(&key, json).await
    }

    /// The ids of all snapshots, in order. At most a million.
    pub async fn snapshot_ids(&self) -> Result<Vec<SnapshotId>, StoreError> {
        self.list(SNAPSHOTS, ObjectKey::snapshot_at).await
    }

    /// The records of all snapshots, in the order of their ids. A few are read at once.
    ///
    /// A record that can't be used is an error of its own, after which the stream goes on; one that
    /// goes away meanwhile is left out.
    pub async fn snapshots(
        &self,
    ) -> Result<BoxStream<'static, Result<SnapshotRecord, StoreError>>, StoreError> {
        let ids = self.snapshot_ids().await?;
        let remote = self.clone();
        Ok(stream::iter(ids)
            .map(move |id| {
                let remote = remote.clone();
                async move { present(remote.snapshot(&id).await) }
            })
            .buffered(CONCURRENT_READS)
            .filter_map(std::future::ready)
            .boxed())
    }

    /// What a name stands for, or nothing if nobody has set it.
    pub async fn name(&self, name: &Name) -> Result<Option<NameRecord>, StoreError> {
        Ok(self.find(name).await?.map(|found| found.record))
    }

    /// Sets a name, and returns what it stood for before.
    ///
    /// A store with conditional writes never loses what another set in the same moment: one of the
    /// two comes after the other. In one without them the later one wins, and what is returned may
    /// be out of date.
    pub async fn set_name(&self, record: &NameRecord) -> Result<Option<SnapshotId>, StoreError> {
        let key = ObjectKey::Name(record.name.clone());
        self.check_writable(&key)?;
        let json = record.encode().map_err(|reason| self.unusable(&key, reason))?;
        let mut before = None;
        for attempt in 0..SET_ATTEMPTS_MAX {
            let found = match self.find(&record.name).await {
                // A name whose record is damaged can be set again.
                Err(StoreError::Record { object, reason }) => {
                    tracing::warn!(object, %reason, "replacing a record that can't be used");
                    self.put(&key, json).await?;
                    return Ok(None);
                }
                found => found?,
            };
            let known = found.as_ref().map(|found| &found.record);
            if known == Some(record) {
                // There is nothing to do, or an attempt that seemed to fail had succeeded after all.
                return Ok(if attempt == 0 { Some(record.id) } else { before });
            }
            before = known.map(|known| known.id);
            let mode = match found {
                Some(found) => PutMode::Update(found.version),
                None => PutMode::Create,
            };
            match self.put_if(&key, json.clone(), mode).await? {
                Conditional::Written => return Ok(before),
                Conditional::Changed => {}
                Conditional::Unsupported => {
                    tracing::warn!(store = self.description(), "no conditional writes");
                    return self.put(&key, json).await.map(|()| before);
                }
            }
        }
        Err(StoreError::Contended { name: record.name.clone(), attempts: SET_ATTEMPTS_MAX })
    }

    /// Removes a name. One that is not there is removed already.
    pub async fn remove_name(&self, name: &Name) -> Result<(), StoreError> {
        let key = ObjectKey::Name(name.clone());
        self.check_writable(&key)?;
        let path = key.path(self.root());
        let removed = self
            .run(self.request(Operation::Delete, &key, 0), |store| {
                let path = path.clone();
                async move { Ok(store.delete(&path).await?) }
            })
            .await;
        match removed {
            Err(error) if error.is_not_found() => Ok(()),
            removed => removed,
        }
    }

    /// All names and what they stand for, in the order of the names, as [`Self::snapshots`] does it.
    pub async fn names(
        &self,
    ) -> Result<BoxStream<'static, Result<NameRecord, StoreError>>, StoreError> {
        let names = self.list(NAMES, ObjectKey::name_at).await?;
        let remote = self.clone();
        Ok(stream::iter(names)
            .map(move |name| {
                let remote = remote.clone();
                async move { remote.name(&name).await.transpose() }
            })
            .buffered(CONCURRENT_READS)
            .filter_map(std::future::ready)
            .boxed())
    }

    async fn find(&self, name: &Name) -> Result<Option<Found>, StoreError> {
        let key = ObjectKey::Name(name.clone());
        let path = key.path(self.root());
        let stall = self.policy().stall;
        let got = self
            .run(self.request(Operation::Get, &key, LEN_MAX), |store| {
                let path = path.clone();
                async move {
                    let answer = within(stall, store.get(&path)).await?;
                    let meta = answer.meta.clone();
                    if meta.size > LEN_MAX {
                        return Ok((meta, Bytes::new()));
                    }
                    let bytes = body::read(answer, meta.size, stall, &body::Unwatched).await?;
                    Ok((meta, bytes))
                }
            })
            .await;
        let (meta, json) = match got {
            Err(error) if error.is_not_found() => return Ok(None),
            got => got?,
        };
        if meta.size > LEN_MAX {
            let reason = RecordError::TooLong { len: meta.size };
            return Err(self.unusable(&key, reason));
        }
        let record =
            NameRecord::decode(&json, name).map_err(|reason| self.unusable(&key, reason))?;
        let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
        Ok(Some(Found { record, version }))
    }

    async fn put_if(
        &self,
        key: &ObjectKey,
        json: Bytes,
        mode: PutMode,
    ) -> Result<Conditional, StoreError> {
        let path = key.path(self.root());
        let written = self
            .run(self.request(Operation::Put, key, json.len() as u64), |store| {
                let (path, payload) = (path.clone(), PutPayload::from_bytes(json.clone()));
                let options = PutOptions::from(mode.clone());
                async move {
                    store.put_opts(&path, payload, options).await?;
                    Ok(())
                }
            })
            .await;
        match written {
            Ok(()) => Ok(Conditional::Written),
            Err(StoreError::Failed { cause: Failure::Conflict, .. }) => Ok(Conditional::Changed),
            Err(StoreError::Failed { cause: Failure::Unsupported(_), .. }) => {
                Ok(Conditional::Unsupported)
            }
            Err(error) => Err(error),
        }
    }

    /// Lists what `parse` makes of the paths in `directory`. What it does not know is passed over.
    async fn list<T: Ord>(
        &self,
        directory: &'static str,
        parse: fn(&Path) -> Option<T>,
    ) -> Result<Vec<T>, StoreError> {
        let below_root = Path::from(directory);
        let object = self.full_name(&below_root);
        let prefix = self.root().clone().join(directory);
        let stall = self.policy().stall;
        let request = Request {
            operation: Operation::List,
            object: object.clone(),
            bytes: LIST_ENTRY_BYTES * LIST_MAX as u64,
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

fn present<T>(read: Result<T, StoreError>) -> Option<Result<T, StoreError>> {
    match read {
        Err(error) if error.is_not_found() => None,
        read => Some(read),
    }
}
