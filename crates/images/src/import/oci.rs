//! Imports images from OCI image layouts (OCI Image Format Specification 1.1, "Image Layout").

use std::io;
use std::path::{Path, PathBuf};

use inlay_store::pack::FileSink;
use serde::Deserialize;

use super::image::{
    Descriptor, Document, ImageError, JSON_LEN_MAX, Manifests, VerifiedLayer, VerifiedReader,
    check_config, flatten, open_file, read_bounded, resolve, with_tag,
};
use super::{ImportError, ImportOptions, Imported, Layer, Phase, Progress};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutMarker {
    image_layout_version: String,
}

/// Imports the image named `tag` from the layout at `dir`, or its only image.
pub fn import_oci(
    dir: &Path,
    tag: Option<&str>,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    progress.phase(Phase::Resolving, &dir.display().to_string());
    let mut layout = LayoutReader::open(dir)?;
    let index = layout.json("index.json")?;
    let list = match Document::parse(&index, "index.json")? {
        Document::Index(index) => with_tag(index.manifests, tag)?,
        Document::Manifest(_) => {
            return Err(layout.no_layout("index.json is no index".to_owned()).into());
        }
    };
    let manifest = resolve(&mut layout, list, &options.platform)?;
    let config = layout.get(&manifest.config)?;
    check_config(&config, manifest.layers.len(), &manifest.config.digest.to_string())?;
    let layers = manifest
        .layers
        .into_iter()
        .map(|layer| {
            progress.expect(layer.size);
            Box::new(VerifiedLayer {
                path: dir.join(layer.digest.path()),
                offset: 0,
                size: layer.size,
                name: layer.digest.to_string(),
                digest: Some(layer.digest),
            }) as Box<dyn Layer>
        })
        .collect();
    flatten(layers, config, options, sink, progress)
}

struct LayoutReader {
    dir: PathBuf,
}

impl LayoutReader {
    fn open(dir: &Path) -> Result<Self, ImageError> {
        let layout = Self { dir: dir.to_owned() };
        let marker = layout.json("oci-layout")?;
        let marker: LayoutMarker = serde_json::from_slice(&marker)
            .map_err(|error| layout.no_layout(format!("oci-layout: {error}")))?;
        if !marker.image_layout_version.starts_with("1.") {
            return Err(layout.no_layout("oci-layout names another version".to_owned()));
        }
        Ok(layout)
    }

    fn no_layout(&self, why: String) -> ImageError {
        ImageError::NotALayout { path: self.dir.clone(), why }
    }

    fn json(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.dir.join(name);
        let mut file = open_file(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => self.no_layout(format!("it has no {name}")),
            _ => ImageError::Read { path: path.clone(), source },
        })?;
        read_bounded(&mut file, JSON_LEN_MAX, name)
    }
}

impl Manifests for LayoutReader {
    fn get(&mut self, of: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let path = self.dir.join(of.digest.path());
        let file = open_file(&path).map_err(|source| ImageError::Read { path, source })?;
        let mut reader = VerifiedReader::new(file, of.digest.clone(), of.size);
        read_bounded(&mut reader, JSON_LEN_MAX, &of.digest.to_string())
    }
}
