//! Downloads an image's layers to files and flattens them as they arrive.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use futures::{StreamExt, stream};
use inlay_store::pack::FileSink;
use tempfile::TempDir;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::client::{Registry, deadline};
use super::error::AttemptFailure;
use super::{Descriptor, RegistryError};
use crate::import::image::VerifiedLayer;
use crate::import::{Flattener, ImportError, ImportOptions, Imported, Markers, Phase, Progress};

/// Maximum concurrent layer downloads.
const CONCURRENCY: usize = 3;

type Brought = Result<PathBuf, RegistryError>;

/// Downloads `layers`, given from the bottom up, and flattens them. Their files are removed
/// afterwards, also on failure.
pub(super) fn flatten(
    registry: &Registry,
    runtime: &Runtime,
    mut layers: Vec<Descriptor>,
    config: Vec<u8>,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let dir = scratch(&options.scratch)?;
    layers.reverse();
    progress.phase(Phase::Downloading, &registry.reference().whole());
    progress.expect(layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add));
    let flattener = Flattener::new(options, Markers::Apply, sink, progress);
    thread::scope(|scope| {
        let (ready, brought) = channel();
        // Dropped at the end of this closure, which cancels the downloads; the scope then joins
        // their thread.
        let (_going, stop) = oneshot::channel::<()>();
        let downloads = Downloads { registry, dir: dir.path(), progress };
        let layers = &layers;
        scope.spawn(move || runtime.block_on(downloads.run(layers, ready, stop)));
        let flattened = flatten_as_they_come(flattener, layers, &brought, registry);
        flattened.map(|tree| Imported { tree, config })
    })
}

fn flatten_as_they_come(
    mut flattener: Flattener<'_>,
    layers: &[Descriptor],
    brought: &Receiver<Brought>,
    registry: &Registry,
) -> Result<inlay_store::tree::Tree, ImportError> {
    for layer in layers {
        // The channel closes early only if the download thread panicked.
        let path = brought.recv().unwrap_or_else(|_| Err(ended(registry)))?;
        let mut file = VerifiedLayer {
            path: path.clone(),
            offset: 0,
            size: layer.size,
            // The download has verified it.
            digest: None,
            name: layer.digest.to_string(),
        };
        flattener.layer(&mut file)?;
        fs::remove_file(&path).map_err(|source| RegistryError::Scratch { path, source })?;
    }
    Ok(flattener.finish())
}

fn ended(registry: &Registry) -> RegistryError {
    RegistryError::Failed {
        reference: registry.reference().whole(),
        doing: "bringing the layers".to_owned(),
        tries: 1,
        why: "a defect of this program".to_owned(),
    }
}

fn scratch(parent: &Path) -> Result<TempDir, RegistryError> {
    tempfile::Builder::new()
        .prefix("inlay-layers-")
        .tempdir_in(parent)
        .map_err(|source| RegistryError::Scratch { path: parent.to_owned(), source })
}

#[derive(Clone, Copy)]
struct Downloads<'a> {
    registry: &'a Registry,
    dir: &'a Path,
    progress: &'a dyn Progress,
}

impl Downloads<'_> {
    /// Downloads `layers` in order, several concurrently, until all are done, one fails, or `stop`
    /// closes.
    async fn run(self, layers: &[Descriptor], ready: Sender<Brought>, stop: oneshot::Receiver<()>) {
        let bring = async {
            let mut files = stream::iter(layers.iter().enumerate())
                .map(|(place, layer)| self.bring(place, layer))
                .buffered(CONCURRENCY);
            while let Some(file) = files.next().await {
                let failed = file.is_err();
                if ready.send(file).is_err() || failed {
                    break;
                }
            }
        };
        tokio::select! {
            () = bring => {}
            _ = stop => {}
        }
    }

    async fn bring(&self, place: usize, layer: &Descriptor) -> Brought {
        // An image may contain a layer twice; its position makes the file name unique.
        let path = self.dir.join(format!("{place}"));
        let doing = format!("getting the layer {}", layer.digest);
        let mut counted = 0;
        self.registry
            .retried(&doing, deadline(layer.size), async || {
                self.bring_once(&path, layer, &mut counted).await
            })
            .await?;
        Ok(path)
    }

    /// Attempts once to download a layer. `counted` is the number of its bytes that earlier attempts
    /// have reported as progress: each byte is reported once.
    async fn bring_once(
        &self,
        path: &Path,
        layer: &Descriptor,
        counted: &mut u64,
    ) -> Result<(), AttemptFailure> {
        let mut received = 0_u64;
        let unwritten = |source| {
            AttemptFailure::Final(RegistryError::Scratch { path: path.to_owned(), source })
        };
        let mut file = File::create(path).await.map_err(unwritten)?;
        self.registry
            .blob_once(&layer.digest, layer.size, async |piece| {
                file.write_all(piece).await.map_err(unwritten)?;
                received = received.saturating_add(piece.len() as u64);
                if received > *counted {
                    self.progress.advance(0, received - *counted);
                    *counted = received;
                }
                Ok(())
            })
            .await?;
        file.flush().await.map_err(unwritten)
    }
}
