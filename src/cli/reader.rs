//! Opens a snapshot for one command and reads file contents through the host's cache.

use inlay_images::export::FileBytes;
use inlay_prefetch::{FetchLimits, Fetcher};
use inlay_snapshots::content::{ContentOptions, SnapshotContent};
use inlay_snapshots::host::Host;
use inlay_snapshots::{open_index, resolve};
use inlay_store::cache::{Cache, CacheOptions};
use inlay_store::format::Index;
use inlay_store::ids::SnapshotId;

use super::error::CliError;

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
    /// Opens the snapshot with the name or id `reference`.
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

    /// Drains fetches and cache writes in flight.
    pub(super) fn close(self) {
        self.host.wait(async {
            self.fetcher.shutdown().await;
            self.content.shutdown().await;
        });
    }
}
