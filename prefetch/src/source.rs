//! Reads byte ranges of blobs from the store.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use inlay_store::ids::BlobId;
use inlay_store::remote::{Arrivals, ObjectKey, Remote, RetryBudget, StoreError};

use crate::want::Class;

/// Maximum attempts of a prefetch request: a reader that needs the bytes later retries anyway.
const AHEAD_ATTEMPTS: u32 = 2;

/// A source of blob ranges.
#[async_trait]
pub trait RangeSource: Send + Sync + 'static {
    /// Returns exactly the bytes of `range` of `blob`, or fails within about `budget`. Reports
    /// bytes to `arrivals` as they arrive. Cancel-safe: dropping the future stops the request.
    async fn get_range(
        &self,
        blob: &BlobId,
        range: Range<u64>,
        class: Class,
        budget: Duration,
        arrivals: Arc<dyn Arrivals>,
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
        arrivals: Arc<dyn Arrivals>,
    ) -> Result<Bytes, StoreError> {
        let usual = self.policy().budget();
        let attempts_max = match class {
            Class::Demand => usual.attempts_max,
            Class::ReadAhead | Class::Directory | Class::Profile | Class::Rest => {
                usual.attempts_max.min(AHEAD_ATTEMPTS)
            }
        };
        let budget = RetryBudget { total: usual.total.min(budget), attempts_max };
        self.get_range_watched(&ObjectKey::Blob(*blob), range, budget, arrivals).await
    }
}
