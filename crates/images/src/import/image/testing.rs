//! Builds images for tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::import::testing::{ArchiveWriter, Listing, MemorySink, file, list};
use crate::import::{ImportError, ImportOptions, Imported, Platform};

/// An image in memory: its blobs, and its top-level manifest or index.
pub(crate) struct TestImage {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    pub(crate) config: Vec<u8>,
    /// Media type and digest, from the bottom up.
    pub(crate) layers: Vec<(&'static str, String)>,
    pub(crate) manifest: String,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Files of the imported image, with their contents.
pub(crate) fn expected() -> Vec<(&'static str, &'static [u8])> {
    vec![("kept", b"from below"), ("new", b"from above"), ("over", b"upper")]
}

/// Asserts that `imported` is the test image.
pub(crate) fn assert_is_the_image(imported: &Imported, sink: &MemorySink, image: &TestImage) {
    assert_eq!(imported.config, image.config);
    let listing: Listing = list(&imported.tree, sink);
    let files: Vec<_> = listing
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, seen)| (path.clone(), seen.object.clone()))
        .collect();
    let wanted: Vec<_> = expected()
        .into_iter()
        .map(|(path, bytes)| (path.as_bytes().to_vec(), file(bytes)))
        .collect();
    assert_eq!(files, wanted);
}

/// Returns options with a fixed platform and scratch files in `dir`.
pub(crate) fn options(scratch: &Path) -> ImportOptions {
    let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
    ImportOptions { platform, scratch: scratch.to_owned(), ..ImportOptions::default() }
}

pub(crate) fn message(result: Result<Imported, ImportError>) -> String {
    result.unwrap_err().to_string()
}

impl TestImage {
    /// Creates an image of three layers, plain, gzip and zstd; the upper ones hide and replace
    /// files.
    pub(crate) fn new() -> Self {
        let mut bottom = ArchiveWriter::new();
        bottom.add(tar::EntryType::Regular, "kept", "", b"from below");
        bottom.add(tar::EntryType::Regular, "over", "", b"lower");
        bottom.add(tar::EntryType::Regular, "gone", "", b"gone");
        let mut middle = ArchiveWriter::new();
        middle.add(tar::EntryType::Regular, ".wh.gone", "", b"");
        let mut top = ArchiveWriter::new();
        top.add(tar::EntryType::Regular, "new", "", b"from above");
        top.add(tar::EntryType::Regular, "over", "", b"upper");
        let archives = [bottom.finish(), middle.finish(), top.finish()];
        let diff_ids: Vec<String> = archives.iter().map(|archive| digest(archive)).collect();
        let [bottom, middle, top] = archives;
        let mut image = Self {
            blobs: BTreeMap::new(),
            config: Vec::new(),
            layers: Vec::new(),
            manifest: String::new(),
        };
        let top = zstd::encode_all(top.as_slice(), 1).unwrap();
        for (kind, bytes) in [
            ("application/vnd.oci.image.layer.v1.tar", bottom),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip(&middle)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", top),
        ] {
            let digest = image.add(bytes);
            image.layers.push((kind, digest));
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        image.config = config.to_string().into_bytes();
        image.finish();
        image
    }

    fn finish(&mut self) {
        let config = self.add(self.config.clone());
        let layers: Vec<Value> = self
            .layers
            .clone()
            .iter()
            .map(|(kind, digest)| self.descriptor(kind, digest))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        });
        self.manifest = self.add(manifest.to_string().into_bytes());
    }

    pub(crate) fn add(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest(&bytes);
        self.blobs.insert(digest.clone(), bytes);
        digest
    }

    pub(crate) fn descriptor(&self, kind: &str, digest: &str) -> Value {
        json!({ "mediaType": kind, "digest": digest, "size": self.blobs[digest].len() })
    }

    pub(crate) fn manifest_descriptor(&self) -> Value {
        self.descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest)
    }

    /// Writes a layout with an `index.json` that lists `manifests`.
    pub(crate) fn write_layout(&self, dir: &Path, manifests: &[Value]) {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(blob_path(dir, digest), bytes).unwrap();
        }
    }
}

pub(crate) fn blob_path(dir: &Path, digest: &str) -> std::path::PathBuf {
    dir.join("blobs").join(digest.replace(':', "/"))
}
