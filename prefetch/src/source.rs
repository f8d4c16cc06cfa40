//! Where stored bytes come from.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use inlay_store::ids::BlobId;
use inlay_store::remote::{ObjectKey, Remote, RetryBudget, StoreError};

use crate::want::Class;

/// The most attempts of a request that nobody waits for: a reader that comes later asks again.
const READ_AHEAD_ATTEMPTS: u32 = 2;

/// Gives ranges of blobs.
#[async_trait]
pub trait RangeSource: Send + Sync + 'static {
    /// Exactly the bytes of `range` of `blob`, or an error, in about `budget` at most. Stops when
    /// it is dropped.
    async fn get_range(
        &self,
        blob: &BlobId,
        range: Range<u64>,
        class: Class,
        budget: Duration,
    ) -> Result<Bytes, StoreError>;
}

#[async_trait]
impl RangeSource for Remote {
    async fn get_range(
        &self,
        blob: &BlobId,
        range: Range<u64>,
        class: Class,
        budget: Duration,
    ) -> Result<Bytes, StoreError> {
        let usual = self.policy().budget();
        let attempts_max = match class {
            Class::Demand => usual.attempts_max,
            Class::ReadAhead => usual.attempts_max.min(READ_AHEAD_ATTEMPTS),
        };
        let budget = RetryBudget { total: usual.total.min(budget), attempts_max };
        Self::get_range(self, &ObjectKey::Blob(*blob), range, budget).await
    }
}
