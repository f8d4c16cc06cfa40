//! A snapshot opened for one command: its index, and its files' bytes through the host's cache.

use inlay_prefetch::{FetchLimits, Fetcher};
use inlay_store::cache::{Cache, CacheOptions};
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;

use super::error::CliError;
use crate::content::{ContentOptions, SnapshotContent};
use crate::export::FileBytes;
use crate::host::Host;
use crate::snapshots::{open_index, resolve};

/// An open snapshot.
pub(super) struct Reader<'a> {
    host: &'a Host,
    id: SnapshotId,
    index: Index,
    cache: Cache,
    fetcher: Fetcher,
    content: SnapshotContent,
}

impl<'a> Reader<'a> {
    /// Opens what `reference` means.
    pub(super) fn open(host: &'a Host, reference: &str) -> Result<Self, CliError> {
        let id = host.wait(resolve(host.remote(), reference))?;
        let index = host.wait(open_index(host.remote(), host.state(), id))?;
        let cache = host.cache(CacheOptions::default())?;
        let (remote, handle) = (host.remote().clone(), host.handle().clone());
        let fetcher =
            Fetcher::new(remote, Some(cache.clone()), FetchLimits::default(), handle.clone());
        let content = SnapshotContent::new(
            index.clone(),
            Some(cache.clone()),
            fetcher.clone(),
            ContentOptions::default(),
            handle,
        );
        Ok(Self { host, id, index, cache, fetcher, content })
    }

    pub(super) fn id(&self) -> SnapshotId {
        self.id
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn bytes(&self) -> &dyn FileBytes {
        &self.content
    }

    /// Waits for what was still being fetched and kept.
    pub(super) fn close(self) {
        self.host.wait(async {
            self.fetcher.shutdown().await;
            self.content.shutdown().await;
        });
    }
}
