//! A store double for tests: blobs in memory, gates that hold requests, and injected faults.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use inlay_store::format::{BlobIdx, Group};
use inlay_store::ids::{BlobId, Digest, GroupDigest};
use inlay_store::remote::{Arrivals, Failure, Operation, StoreError};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::source::RangeSource;
use crate::want::{Class, GroupRef};

/// Fault injected into a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Fails,
    Missing,
    /// Never responds.
    Stalls,
    /// Responds with one byte flipped.
    Lies,
    Panics,
}

/// A request received by the double.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) range: Range<u64>,
    pub(crate) class: Class,
}

/// The store double.
pub(crate) struct Double {
    pub(crate) blobs: HashMap<BlobId, Bytes>,
    /// Returns the fault for the n-th request.
    pub(crate) fault: Box<dyn Fn(usize) -> Fault + Send + Sync>,
    /// Requests of a gated class take a permit before they are answered.
    pub(crate) gates: HashMap<Class, Semaphore>,
    pub(crate) seen: Mutex<Vec<Seen>>,
    /// Number of requests dropped before they were answered.
    pub(crate) cut: Mutex<usize>,
}

impl Double {
    pub(crate) fn new(blobs: &[&Blob]) -> Self {
        Self {
            blobs: blobs.iter().map(|blob| (blob.id, blob.bytes.clone())).collect(),
            fault: Box::new(|_| Fault::None),
            gates: HashMap::new(),
            seen: Mutex::new(Vec::new()),
            cut: Mutex::new(0),
        }
    }

    pub(crate) fn gated(mut self, class: Class) -> Self {
        self.gates.insert(class, Semaphore::new(0));
        self
    }

    pub(crate) fn faulty(mut self, fault: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Self {
        self.fault = Box::new(fault);
        self
    }

    pub(crate) fn open(&self, class: Class, permits: usize) {
        self.gates[&class].add_permits(permits);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

struct Cut<'a>(&'a Mutex<usize>);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        *self.0.lock() += 1;
    }
}

/// The double as a fetcher's source; the test keeps the other reference.
pub(crate) struct SharedStore(pub(crate) Arc<Double>);

#[async_trait]
impl RangeSource for SharedStore {
    async fn get_range(
        &self,
        blob: &BlobId,
        range: Range<u64>,
        class: Class,
        _budget: Duration,
        arrivals: Arc<dyn Arrivals>,
    ) -> Result<Bytes, StoreError> {
        let double = &self.0;
        let number = {
            let mut seen = double.seen.lock();
            seen.push(Seen { range: range.clone(), class });
            seen.len() - 1
        };
        let cut = Cut(&double.cut);
        if let Some(gate) = double.gates.get(&class) {
            gate.acquire().await.unwrap().forget();
        }
        let (operation, object) = (Operation::GetRange, format!("memory:/{blob}"));
        let fault = (double.fault)(number);
        assert!(fault != Fault::Panics, "on purpose");
        if fault == Fault::Stalls {
            std::future::pending::<()>().await;
        }
        std::mem::forget(cut);
        arrivals.came(range.end - range.start);
        let part = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let bytes = double.blobs.get(blob).filter(|bytes| part.end <= bytes.len());
        match (fault, bytes) {
            (Fault::Missing, _) | (_, None) => Err(StoreError::NotFound { operation, object }),
            (Fault::Lies, Some(bytes)) => {
                let mut lie = bytes[part].to_vec();
                lie[0] ^= 1;
                Ok(Bytes::from(lie))
            }
            (Fault::Fails, _) => Err(StoreError::Failed {
                operation,
                object,
                attempts: 3,
                elapsed: Duration::from_secs(1),
                cause: Failure::Transport("reset".into()),
            }),
            (Fault::None | Fault::Stalls | Fault::Panics, Some(bytes)) => Ok(bytes.slice(part)),
        }
    }
}

/// A blob of groups, with their decoded contents.
pub(crate) struct Blob {
    pub(crate) id: BlobId,
    pub(crate) bytes: Bytes,
    pub(crate) wants: Vec<GroupRef>,
    pub(crate) raw: Vec<Bytes>,
}

impl Blob {
    /// Creates a blob of `groups` consecutive groups of `raw_len` incompressible bytes.
    pub(crate) fn new(seed: u64, groups: u64, raw_len: usize) -> Self {
        let (mut bytes, mut places, mut raw) = (Vec::new(), Vec::new(), Vec::new());
        for group in 0..groups {
            let mut decoded = vec![0; raw_len];
            let name = [seed.to_le_bytes(), group.to_le_bytes()].concat();
            blake3::Hasher::new().update(&name).finalize_xof().fill(&mut decoded);
            let stored = zstd::bulk::compress(&decoded, 1).unwrap();
            places.push(Group {
                digest: GroupDigest(Digest::of(&stored)),
                blob: BlobIdx(0),
                ordinal: u32::try_from(group).unwrap(),
                offset: bytes.len() as u64,
                stored_len: u32::try_from(stored.len()).unwrap(),
                raw_len: u32::try_from(raw_len).unwrap(),
                owner: None,
            });
            bytes.extend(stored);
            raw.push(Bytes::from(decoded));
        }
        let id = BlobId(Digest::of(&bytes));
        let wants =
            places.into_iter().map(|group| GroupRef { blob: id, group, home: None }).collect();
        Self { id, bytes: Bytes::from(bytes), wants, raw }
    }
}
