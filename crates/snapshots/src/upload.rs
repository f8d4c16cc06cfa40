//! Uploads finished blobs to the store, a few concurrently.

use std::collections::VecDeque;

use bytes::Bytes;
use inlay_store::ids::BlobId;
use inlay_store::pack::{BlobStore, PackError};
use inlay_store::remote::{Existing, ObjectKey, PutOutcome, Remote, StoreError};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Maximum concurrent uploads. Each holds one blob in memory.
const UPLOADS: usize = 3;

/// Uploads blobs on the runtime while the packer continues.
#[derive(Debug)]
pub struct Uploader {
    remote: Remote,
    existing: Existing,
    runtime: Handle,
    under_way: VecDeque<JoinHandle<Result<PutOutcome, StoreError>>>,
    tally: std::sync::mpsc::Sender<PutOutcome>,
}

impl Uploader {
    /// Sends each outcome to `tally`.
    pub fn new(
        remote: Remote,
        runtime: Handle,
        tally: std::sync::mpsc::Sender<PutOutcome>,
    ) -> Self {
        let existing = Existing::default();
        Self { remote, existing, runtime, under_way: VecDeque::new(), tally }
    }

    /// Sets the verification of blobs that already exist.
    pub(crate) fn with(mut self, existing: Existing) -> Self {
        self.existing = existing;
        self
    }

    fn finish_first(&mut self) -> Result<(), PackError> {
        let Some(upload) = self.under_way.pop_front() else { return Ok(()) };
        match self.runtime.block_on(upload) {
            Ok(Ok(outcome)) => {
                // The receiver is gone if the import has failed elsewhere.
                self.tally.send(outcome).ok();
                Ok(())
            }
            Ok(Err(error)) => Err(PackError::Store(error.to_string())),
            Err(error) => Err(PackError::Store(error.to_string())),
        }
    }
}

impl BlobStore for Uploader {
    fn put(&mut self, id: BlobId, bytes: Vec<u8>) -> Result<(), PackError> {
        while self.under_way.len() >= UPLOADS {
            self.finish_first()?;
        }
        let (remote, existing) = (self.remote.clone(), self.existing);
        let upload = self.runtime.spawn(async move {
            remote.put_checked(&ObjectKey::Blob(id), Bytes::from(bytes), existing).await
        });
        self.under_way.push_back(upload);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), PackError> {
        while !self.under_way.is_empty() {
            self.finish_first()?;
        }
        Ok(())
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        for upload in &self.under_way {
            upload.abort();
        }
    }
}
