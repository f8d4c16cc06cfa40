//! Parses indexes and manifests of OCI (Image Format Specification 1.1) and docker (Image Manifest
//! Version 2, Schema 2), which share their relevant fields.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{BlobDigest, ImageError, LAYERS_MAX};

/// Maximum manifests in an index.
const MANIFESTS_MAX: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

/// Platform of an image in an index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::import) struct RawPlatform {
    #[serde(default)]
    pub(in crate::import) os: String,
    #[serde(default)]
    pub(in crate::import) architecture: String,
    #[serde(default)]
    pub(in crate::import) variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

/// Reference to a blob in another document.
#[derive(Debug, Clone)]
pub(in crate::import) struct Descriptor {
    pub(in crate::import) media_type: String,
    pub(in crate::import) digest: BlobDigest,
    /// Size in bytes.
    pub(in crate::import) size: u64,
    pub(in crate::import) platform: Option<RawPlatform>,
    annotations: HashMap<String, String>,
}

impl Descriptor {
    /// Names of the image, as recorded by image layouts.
    pub(in crate::import) fn names(&self) -> impl Iterator<Item = &str> {
        ["org.opencontainers.image.ref.name", "io.containerd.image.name"]
            .into_iter()
            .filter_map(|key| self.annotations.get(key).map(String::as_str))
    }

    /// Whether this is an attestation about an image rather than an image.
    pub(in crate::import) fn is_statement(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
            || self
                .platform
                .as_ref()
                .is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }
}

impl TryFrom<RawDescriptor> for Descriptor {
    type Error = ImageError;

    fn try_from(raw: RawDescriptor) -> Result<Self, ImageError> {
        Ok(Self {
            media_type: raw.media_type,
            digest: raw.digest.parse()?,
            size: raw.size,
            platform: raw.platform,
            annotations: raw.annotations.unwrap_or_default(),
        })
    }
}

/// Several images, by platform or by name.
#[derive(Debug)]
pub(in crate::import) struct ImageIndex {
    pub(in crate::import) manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug)]
pub(in crate::import) struct ImageManifest {
    pub(in crate::import) config: Descriptor,
    /// From the bottom up.
    pub(in crate::import) layers: Vec<Descriptor>,
}

/// A parsed document.
#[derive(Debug)]
pub(in crate::import) enum Document {
    Index(ImageIndex),
    Manifest(ImageManifest),
}

impl Document {
    /// Parses a document, named `what` in messages. Its fields determine its type, since some
    /// writers omit the media type.
    pub(in crate::import) fn parse(bytes: &[u8], what: &str) -> Result<Self, ImageError> {
        let wrong = |why: String| ImageError::Json { what: what.to_owned(), why };
        let raw: RawDocument = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if raw.schema_version == 1 {
            return Err(ImageError::Unsupported {
                what: format!("{what}: a manifest of docker's schema 1"),
                why: "push the image again with a newer docker",
            });
        }
        if let Some(manifests) = raw.manifests {
            bounded(what, "manifests", manifests.len(), MANIFESTS_MAX)?;
            let manifests =
                manifests.into_iter().map(Descriptor::try_from).collect::<Result<_, _>>()?;
            return Ok(Self::Index(ImageIndex { manifests }));
        }
        let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
            return Err(wrong("it has neither manifests nor a configuration and layers".into()));
        };
        bounded(what, "layers", layers.len(), LAYERS_MAX)?;
        let config = Descriptor::try_from(config)?;
        check_config_type(&config)?;
        let layers = layers
            .into_iter()
            .map(|raw| Descriptor::try_from(raw).and_then(checked_layer))
            .collect::<Result<_, _>>()?;
        Ok(Self::Manifest(ImageManifest { config, layers }))
    }
}

fn bounded(what: &str, of: &'static str, found: usize, limit: usize) -> Result<(), ImageError> {
    if found > limit {
        let (found, limit) = (found as u64, limit as u64);
        return Err(ImageError::TooLarge { what: what.to_owned(), found, of, limit });
    }
    Ok(())
}

fn check_config_type(config: &Descriptor) -> Result<(), ImageError> {
    match config.media_type.as_str() {
        ""
        | "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json"
        | "application/octet-stream" => Ok(()),
        other => Err(ImageError::Unsupported {
            what: format!("an artifact of type '{}'", other.escape_debug()),
            why: "only container images can be imported",
        }),
    }
}

/// Checks the media type of a layer. Its compression is detected from its bytes.
fn checked_layer(layer: Descriptor) -> Result<Descriptor, ImageError> {
    let media_type = layer.media_type.as_str();
    if media_type.contains(".foreign.") || media_type.contains(".nondistributable.") {
        return Err(ImageError::Unsupported {
            what: format!("layer {}, which is not distributed with the image", layer.digest),
            why: "use an image without foreign layers",
        });
    }
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.diff.tar+zstd" => Ok(layer),
        other => Err(ImageError::Unsupported {
            what: format!("layer {} of type '{}'", layer.digest, other.escape_debug()),
            why: "only tar, gzip and zstd layers can be imported",
        }),
    }
}

/// Checks that an image's configuration is a JSON object with bounded nesting, and that its layer
/// count matches the manifest's.
pub(in crate::import) fn check_config(
    bytes: &[u8],
    layers: usize,
    what: &str,
) -> Result<(), ImageError> {
    let wrong = |why: String| ImageError::Json { what: what.to_owned(), why };
    // The parser limits nesting to 128 levels.
    let config: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    let diff_ids = config.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids"));
    match diff_ids {
        Some(Value::Array(ids)) if ids.len() != layers => {
            Err(wrong(format!("it speaks of {} layers, and the manifest of {layers}", ids.len())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "0".repeat(64))
    }

    fn manifest(config_type: &str, layer_type: &str) -> String {
        let digest = digest();
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config_type}","digest":"{digest}",
            "size":2}},"layers":[{{"mediaType":"{layer_type}","digest":"{digest}","size":1}}]}}"#
        )
    }

    #[test]
    fn docker_and_oci_are_read_alike() {
        for (config, layer) in [
            (
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ),
            (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        ] {
            let document = Document::parse(manifest(config, layer).as_bytes(), "m").unwrap();
            let Document::Manifest(manifest) = document else { panic!() };
            assert_eq!((manifest.layers.len(), manifest.config.size), (1, 2));
        }
    }

    #[test]
    fn manifests_of_other_kinds_are_refused_with_the_reason() {
        let config = "application/vnd.oci.image.config.v1+json";
        let layer = "application/vnd.oci.image.layer.v1.tar";
        for (text, part) in [
            (manifest("application/vnd.cncf.helm.config.v1+json", layer), "artifact"),
            (
                manifest(config, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
                "foreign",
            ),
            (
                manifest(config, "application/vnd.oci.image.layer.nondistributable.v1.tar"),
                "foreign",
            ),
            (manifest(config, "application/wasm"), "application/wasm"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "schema 1"),
            ("{}".to_owned(), "neither"),
            ("{\"a\":".repeat(100_000), "EOF"),
            (manifest(config, layer).replace("sha256:", "sha256:/"), "not a digest"),
            (format!("{{\"schemaVersion\":2,\"manifests\":[{}1]}}", "1,".repeat(3)), "invalid"),
        ] {
            let error = Document::parse(text.as_bytes(), "m").unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let layers = vec![format!(r#"{{"digest":"{}","size":1}}"#, digest()); LAYERS_MAX + 1];
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":1}},"layers":[{}]}}"#,
            digest(),
            layers.join(",")
        );
        assert!(matches!(
            Document::parse(text.as_bytes(), "m"),
            Err(ImageError::TooLarge { of: "layers", .. })
        ));
    }

    #[test]
    fn a_configuration_is_an_object_that_fits_the_layers() {
        let two = br#"{"rootfs":{"type":"layers","diff_ids":["a","b"]}}"#;
        assert!(check_config(two, 2, "c").is_ok());
        assert!(check_config(two, 1, "c").is_err());
        assert!(check_config(b"{}", 3, "c").is_ok());
        assert!(check_config(b"[]", 0, "c").is_err());
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
        assert!(check_config(deep.as_bytes(), 0, "c").is_err());
    }
}
