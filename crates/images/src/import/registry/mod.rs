//! Imports images from registries (OCI Distribution Specification 1.1, and docker's Registry HTTP
//! API V2).
//!
//! Layers are downloaded to files in the scratch directory, topmost first, while upper layers are
//! being read.

mod client;
mod credentials;
mod download;
mod error;
mod login;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use client::Registry;
use inlay_store::pack::FileSink;
use oci_client::Reference;
use tokio::runtime::{Builder, Runtime};

use super::image::{
    BlobDigest, BlobHasher, Descriptor, Document, ImageError, ImageManifest, JSON_LEN_MAX,
    Manifests, check_config, resolve,
};
use super::{ImportError, ImportOptions, Imported, Phase, Progress};
pub use error::RegistryError;

/// Policy for registry access without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Only for registries on loopback addresses of this machine.
    #[default]
    Loopback,
    /// For every registry, on explicit request.
    Always,
    /// Never.
    Never,
}

/// Retry policy.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Maximum attempts per request, at least one.
    pub tries: u32,
    /// First backoff; each further one is twice as long.
    pub first_pause: Duration,
    /// Idle timeout after which an attempt counts as failed.
    pub idle_timeout: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 5,
            first_pause: Duration::from_millis(250),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// Access to registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Policy for access without TLS.
    pub plain_http: PlainHttp,
    /// Directory of docker's `config.json`, which contains credentials or names credential helpers.
    /// `None` for anonymous access.
    pub docker_config: Option<PathBuf>,
    /// Retry policy.
    pub retry: Retry,
}

/// Imports the image `reference`, resolved as docker does: `debian` is
/// `docker.io/library/debian:latest`. Blocks, so it must not be called from an async task.
pub fn import_registry(
    reference: &str,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let reference = parse(reference)?;
    progress.phase(Phase::Resolving, &reference.whole());
    let runtime =
        &Builder::new_current_thread().enable_all().build().map_err(RegistryError::Runtime)?;
    let registry = Registry::open(reference, &options.registry)?;
    let mut session = Session { registry: &registry, runtime };
    let manifest = session.manifest(options)?;
    let config = session.config(&manifest)?;
    let layers = manifest.layers;
    download::flatten(&registry, runtime, layers, config, options, sink, progress)
}

fn parse(text: &str) -> Result<Reference, RegistryError> {
    let wrong = |why: String| RegistryError::Reference { text: text.to_owned(), why };
    let reference: Reference =
        text.parse().map_err(|e: oci_client::ParseError| wrong(e.to_string()))?;
    if let Some(digest) = reference.digest() {
        digest.parse::<BlobDigest>().map_err(|error| wrong(error.to_string()))?;
    }
    Ok(reference)
}

struct Session<'a> {
    registry: &'a Registry,
    runtime: &'a Runtime,
}

impl Session<'_> {
    fn manifest(&mut self, options: &ImportOptions) -> Result<ImageManifest, ImportError> {
        let registry = self.registry;
        let reference = registry.reference();
        let name = reference.digest().or(reference.tag()).unwrap_or("latest");
        let bytes = self.runtime.block_on(registry.manifest(name))?;
        if let Some(digest) = reference.digest() {
            check(&bytes, digest.parse::<BlobDigest>().map_err(ImportError::Image)?)?;
        }
        Ok(match Document::parse(&bytes, &reference.whole())? {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => resolve(self, index.manifests, &options.platform)?,
        })
    }

    fn config(&mut self, manifest: &ImageManifest) -> Result<Vec<u8>, ImportError> {
        let Descriptor { digest, size, .. } = &manifest.config;
        if *size > JSON_LEN_MAX {
            return Err(ImageError::TooLarge {
                what: digest.to_string(),
                found: *size,
                of: "bytes",
                limit: JSON_LEN_MAX,
            }
            .into());
        }
        let config = self.runtime.block_on(self.registry.small_blob(digest, *size))?;
        check_config(&config, manifest.layers.len(), &digest.to_string())?;
        Ok(config)
    }
}

impl Manifests for Session<'_> {
    fn get(&mut self, of: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let name = of.digest.to_string();
        let bytes = self.runtime.block_on(self.registry.manifest(&name))?;
        check(&bytes, of.digest.clone())?;
        Ok(bytes)
    }
}

fn check(bytes: &[u8], digest: BlobDigest) -> Result<(), ImageError> {
    let blob = digest.to_string();
    let mut hasher = BlobHasher::new(digest, bytes.len() as u64);
    hasher
        .update(bytes)
        .and_then(|()| hasher.check())
        .map_err(|source| ImageError::Blob { blob, source })
}
