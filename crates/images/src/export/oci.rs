//! Exports a snapshot as an OCI image layout (OCI Image Format Specification 1.1) with one layer.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::error::ExportError;
use super::staging::{StagedDir, unwritten};
use super::tar::{self, Purpose};
use super::{BUFFER_LEN, Export, Report};
use crate::import::Platform;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Compression of an image's layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerCompression {
    /// Supported by every container engine.
    #[default]
    Gzip,
    /// Smaller and faster; engines before 2021 do not support it.
    Zstd,
}

impl LayerCompression {
    fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A blob written to the layout.
struct Written {
    digest: String,
    size: u64,
}

impl Written {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

/// Writes the whole snapshot as a layout into the directory `target`, which must be missing or
/// empty.
pub(super) fn write(export: &Export<'_>, target: &Path) -> Result<Report, ExportError> {
    // A missing configuration gets defaults; a damaged one is an error.
    let config = parse_config(export.index.config())?;
    let staged = StagedDir::new(target, 0o777)?;
    let layout = LayoutWriter { blobs: staged.path().join("blobs/sha256"), target };
    fs::create_dir_all(&layout.blobs).map_err(unwritten(target))?;

    let (layer, diff_id, report) = layout.layer(export)?;
    let platform = platform_of(&config);
    let config = layout.json(&with_one_layer(config, &diff_id))?;
    let manifest = layout.json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config.descriptor(CONFIG_TYPE),
        "layers": [layer.descriptor(export.compression.media_type())],
    }))?;
    let mut descriptor = manifest.descriptor(MANIFEST_TYPE);
    if let Value::Object(fields) = &mut descriptor {
        fields.insert("platform".to_owned(), platform);
        // Some tools ignore an image without a name.
        let name = json!({ "org.opencontainers.image.ref.name": "latest" });
        fields.insert("annotations".to_owned(), name);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [descriptor] });
    let files = [("index.json", index), ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }))];
    for (name, value) in files {
        fs::write(staged.path().join(name), value.to_string()).map_err(unwritten(target))?;
    }
    let handle = staged.open().map_err(unwritten(target))?;
    staged.commit(&handle)?;
    Ok(report)
}

fn parse_config(bytes: &[u8]) -> Result<Map<String, Value>, ExportError> {
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(bytes).map_err(ExportError::Config)
}

/// Returns the platform, which the specification requires; defaults to the host's.
fn platform_of(config: &Map<String, Value>) -> Value {
    let host = Platform::default();
    let text = |key: &str, otherwise: String| match config.get(key) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        _ => otherwise,
    };
    let mut platform = Map::new();
    platform.insert("architecture".to_owned(), text("architecture", host.architecture).into());
    platform.insert("os".to_owned(), text("os", host.os).into());
    if let Some(variant @ Value::String(_)) = config.get("variant") {
        platform.insert("variant".to_owned(), variant.clone());
    }
    Value::Object(platform)
}

fn with_one_layer(mut config: Map<String, Value>, diff_id: &str) -> Value {
    if let Value::Object(platform) = platform_of(&config) {
        config.extend(platform);
    }
    config.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": [diff_id] }));
    config.insert("history".to_owned(), json!([{ "created_by": "inlay export" }]));
    Value::Object(config)
}

struct LayoutWriter<'a> {
    blobs: PathBuf,
    target: &'a Path,
}

impl LayoutWriter<'_> {
    /// Writes the layer. Returns its blob, and the digest of the uncompressed archive.
    fn layer(&self, export: &Export<'_>) -> Result<(Written, String, Report), ExportError> {
        let failed = unwritten(self.target);
        let path = self.blobs.join("layer");
        let file = File::create_new(&path).map_err(&failed)?;
        let blob = Hashing::new(BufWriter::with_capacity(BUFFER_LEN, file));
        let (blob, diff_id, report) = match export.compression {
            LayerCompression::Gzip => {
                // No timestamp in the header, so that equal snapshots yield equal bytes.
                let encoder = GzBuilder::new().mtime(0).write(blob, Compression::default());
                let mut archive = Hashing::new(encoder);
                let report = tar::write(export, Purpose::Layer, &mut archive)?;
                let (encoder, diff_id, _) = archive.finish();
                (encoder.finish().map_err(&failed)?, diff_id, report)
            }
            LayerCompression::Zstd => {
                let encoder =
                    zstd::Encoder::new(blob, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(&failed)?;
                let mut archive = Hashing::new(encoder);
                let report = tar::write(export, Purpose::Layer, &mut archive)?;
                let (encoder, diff_id, _) = archive.finish();
                (encoder.finish().map_err(&failed)?, diff_id, report)
            }
        };
        let (mut out, digest, size) = blob.finish();
        out.flush().map_err(&failed)?;
        self.name(&path, &digest)?;
        Ok((Written { digest, size }, diff_id, report))
    }

    fn json(&self, value: &Value) -> Result<Written, ExportError> {
        let bytes = value.to_string();
        let digest = printed(Sha256::new_with_prefix(bytes.as_bytes()));
        let path = self.blobs.join("json");
        fs::write(&path, &bytes).map_err(unwritten(self.target))?;
        self.name(&path, &digest)?;
        Ok(Written { digest, size: bytes.len() as u64 })
    }

    fn name(&self, path: &Path, digest: &str) -> Result<(), ExportError> {
        let hex = digest.trim_start_matches("sha256:");
        fs::rename(path, self.blobs.join(hex)).map_err(unwritten(self.target))
    }
}

/// Writer that hashes and counts the bytes it passes through.
struct Hashing<W> {
    out: W,
    hasher: Sha256,
    len: u64,
}

impl<W: Write> Hashing<W> {
    fn new(out: W) -> Self {
        Self { out, hasher: Sha256::new(), len: 0 }
    }

    fn finish(self) -> (W, String, u64) {
        (self.out, printed(self.hasher), self.len)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf)?;
        self.hasher.update(buf.get(..written).unwrap_or(buf));
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn printed(hasher: Sha256) -> String {
    format!("sha256:{}", hex::encode(hasher.finalize()))
}
