//! Brings an image's layers to files and flattens them as they come.

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
use super::error::Failure;
use super::{Descriptor, RegistryError};
use crate::import::image::VerifiedLayer;
use crate::import::{Flattener, ImportError, ImportOptions, Imported, Markers, Phase, Progress};

/// How many layers are brought at a time.
const CONCURRENCY: usize = 3;

type Brought = Result<PathBuf, RegistryError>;

/// Brings `layers`, which stand from the bottom up, and flattens them. Their files are gone
/// afterwards, whatever happens.
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
        // Dropped at the end of this closure, which ends the downloads; the scope waits for them.
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
        // The sender goes early only if its thread has panicked.
        let path = brought.recv().unwrap_or_else(|_| Err(ended(registry)))?;
        let mut file = VerifiedLayer {
            path: path.clone(),
            offset: 0,
            size: layer.size,
            // It was checked on its way into the file.
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
    /// Brings `layers` in their order, several at a time, until all are here, one can't be had or
    /// `stop` is closed.
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
        // The same layer can be there twice: its place makes the name its own.
        let path = self.dir.join(format!("{place}"));
        let doing = format!("getting the layer {}", layer.digest);
        self.registry
            .retried(&doing, deadline(layer.size), async || self.bring_once(&path, layer).await)
            .await?;
        Ok(path)
    }

    async fn bring_once(&self, path: &Path, layer: &Descriptor) -> Result<(), Failure> {
        let unwritten =
            |source| Failure::Final(RegistryError::Scratch { path: path.to_owned(), source });
        let mut file = File::create(path).await.map_err(unwritten)?;
        self.registry
            .blob_once(&layer.digest, layer.size, async |piece| {
                file.write_all(piece).await.map_err(unwritten)?;
                self.progress.advance(0, piece.len() as u64);
                Ok(())
            })
            .await?;
        file.flush().await.map_err(unwritten)
    }
}
