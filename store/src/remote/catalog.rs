//! The store's records: which snapshots there are, and which names they have.

use std::collections::BTreeSet;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio::time::timeout;

use super::changing::Step;
use super::client::{Remote, Whole};
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
        self.list(&Path::from(SNAPSHOTS), ObjectKey::snapshot_at).await
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
        let key = ObjectKey::Name(name.clone());
        let Some(found) = self.find(&key, LEN_MAX).await? else { return Ok(None) };
        decode_name(&found.body, name).map(Some).map_err(|reason| self.unusable(&key, reason))
    }

    /// Sets a name, and returns what it stood for before.
    ///
    /// A store with conditional writes never loses what another set in the same moment: one of the
    /// two comes after the other. In one without them the later one wins, and what is returned may
    /// be out of date. A name whose record is damaged is set as if it stood for nothing.
    pub async fn set_name(&self, record: &NameRecord) -> Result<Option<SnapshotId>, StoreError> {
        let key = ObjectKey::Name(record.name.clone());
        let json = record.encode().map_err(|reason| self.unusable(&key, reason))?;
        self.change(&key, LEN_MAX, |found| {
            let known = found.map(|body| decode_name(body, &record.name)).transpose();
            let known = known.unwrap_or_else(|reason| {
                let object = self.object_name(&key);
                tracing::warn!(object, %reason, "replacing a record that can't be used");
                None
            });
            let before = known.as_ref().map(|known| known.id);
            if known.as_ref() == Some(record) {
                return Ok(Step::Leave(before));
            }
            Ok(Step::Write(json.clone(), before))
        })
        .await
    }

    /// Removes a name. One that is not there is removed already.
    pub async fn remove_name(&self, name: &Name) -> Result<(), StoreError> {
        self.remove(&ObjectKey::Name(name.clone())).await
    }

    /// All names and what they stand for, in the order of the names, as [`Self::snapshots`] does it.
    pub async fn names(
        &self,
    ) -> Result<BoxStream<'static, Result<NameRecord, StoreError>>, StoreError> {
        let names = self.list(&Path::from(NAMES), ObjectKey::name_at).await?;
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

    /// Lists what `parse` makes of the paths in `directory`, which is below the root. What it does
    /// not know is passed over.
    pub(super) async fn list<T: Ord>(
        &self,
        directory: &Path,
        parse: fn(&Path) -> Option<T>,
    ) -> Result<Vec<T>, StoreError> {
        let object = self.full_name(directory);
        let prefix = directory.parts().fold(self.root().clone(), Path::join);
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

/// Reads the record of `name`.
fn decode_name(body: &Whole, name: &Name) -> Result<NameRecord, RecordError> {
    match body {
        Whole::Bytes(json) => NameRecord::decode(json, name),
        Whole::TooLong(len) => Err(RecordError::TooLong { len: *len }),
    }
}

fn present<T>(read: Result<T, StoreError>) -> Option<Result<T, StoreError>> {
    match read {
        Err(error) if error.is_not_found() => None,
        read => Some(read),
    }
}
