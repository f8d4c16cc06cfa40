//! Imports images from `docker save` archives.
//!
//! `manifest.json` names a configuration and layers, which are members of the same tar archive.
//! Older versions of docker write a directory per layer, with symbolic links for equal layers;
//! newer ones write the blobs of an OCI layout.

mod members;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use inlay_store::pack::FileSink;
use members::{Member, Members};
use serde::Deserialize;
use tempfile::NamedTempFile;

use super::image::{
    BlobDigest, ImageError, JSON_LEN_MAX, LAYERS_MAX, VerifiedLayer, VerifiedReader, check_config,
    flatten, open_file, read_bounded,
};
use super::{ImportError, ImportOptions, Imported, Layer, Phase, Progress};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Imports the image named `reference` from the archive `file`, or its only image. An archive
/// compressed with gzip or zstd is first decompressed into the scratch directory, because its
/// members are read out of order.
pub fn import_docker_archive(
    file: &Path,
    reference: Option<&str>,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    progress.phase(Phase::Resolving, &file.display().to_string());
    let archive = DockerArchive::open(file, options)?;
    let image = archive.image(reference)?;
    let layers = image.layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(ImageError::TooLarge {
            what: file.display().to_string(),
            found: layers.len() as u64,
            of: "layers",
            limit: LAYERS_MAX as u64,
        }
        .into());
    }
    let config = archive.read(&image.config)?;
    check_config(&config, layers.len(), &image.config)?;
    let layers = layers
        .into_iter()
        .map(|name| {
            let layer = archive.layer(name)?;
            progress.expect(layer.size);
            Ok(Box::new(layer) as Box<dyn Layer>)
        })
        .collect::<Result<_, ImageError>>()?;
    flatten(layers, config, options, sink, progress)
}

struct DockerArchive {
    /// Path given by the user.
    path: PathBuf,
    plain: Plain,
    members: Members,
}

/// The uncompressed archive: the file itself, or a temporary copy.
enum Plain {
    Itself,
    Unpacked(NamedTempFile),
}

impl DockerArchive {
    fn open(path: &Path, options: &ImportOptions) -> Result<Self, ImportError> {
        let read = |source| ImageError::Read { path: path.to_owned(), source };
        let mut file = open_file(path).map_err(read)?;
        let plain = unpack(&mut file, path, options)?;
        let members = match &plain {
            Plain::Itself => Members::scan(&mut file),
            Plain::Unpacked(unpacked) => Members::scan(&mut unpacked.as_file()),
        };
        let members = members.map_err(|error| ImageError::NotAnArchive {
            path: path.into(),
            why: error.to_string(),
        })?;
        Ok(Self { path: path.to_owned(), plain, members })
    }

    fn file_path(&self) -> &Path {
        match &self.plain {
            Plain::Itself => &self.path,
            Plain::Unpacked(unpacked) => unpacked.path(),
        }
    }

    fn not_an_archive(&self, why: String) -> ImageError {
        ImageError::NotAnArchive { path: self.path.clone(), why }
    }

    fn member(&self, name: &str) -> Result<Member, ImageError> {
        self.members
            .find(name.as_bytes())
            .ok_or_else(|| self.not_an_archive(format!("it has no file '{}'", name.escape_debug())))
    }

    /// Reads a small member, and verifies it if its name contains a digest.
    fn read(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let read = |source| ImageError::Read { path: self.path.clone(), source };
        let member = self.member(name)?;
        let mut file = File::open(self.file_path()).map_err(read)?;
        file.seek(SeekFrom::Start(member.offset)).map_err(read)?;
        let mut bytes = file.take(member.size);
        match digest_in(name) {
            Some(digest) => {
                let mut verified = VerifiedReader::new(bytes, digest, member.size);
                read_bounded(&mut verified, JSON_LEN_MAX, name)
            }
            None => read_bounded(&mut bytes, JSON_LEN_MAX, name),
        }
    }

    fn layer(&self, name: String) -> Result<VerifiedLayer, ImageError> {
        let member = self.member(&name)?;
        Ok(VerifiedLayer {
            path: self.file_path().to_owned(),
            offset: member.offset,
            size: member.size,
            digest: digest_in(&name),
            name,
        })
    }

    fn image(&self, reference: Option<&str>) -> Result<Image, ImageError> {
        if self.members.find(b"manifest.json").is_none() {
            return Err(self.not_an_archive(
                "it has no manifest.json; for an OCI layout, unpack it and use oci:DIR".to_owned(),
            ));
        }
        let images: Vec<Image> = serde_json::from_slice(&self.read("manifest.json")?)
            .map_err(|error| self.not_an_archive(format!("manifest.json: {error}")))?;
        let names: Vec<String> = images
            .iter()
            .flat_map(|image| image.repo_tags.iter().flatten())
            .map(|name| name.escape_debug().to_string())
            .collect();
        let Some(reference) = reference else {
            let mut images = images.into_iter();
            return match (images.next(), images.next()) {
                (Some(image), None) => Ok(image),
                (None, _) => Err(self.not_an_archive("it holds no image".to_owned())),
                _ => Err(ImageError::Ambiguous(names)),
            };
        };
        let wanted = normal(reference);
        images
            .into_iter()
            .find(|image| image.repo_tags.iter().flatten().any(|tag| normal(tag) == wanted))
            .ok_or(ImageError::NoSuchImage { wanted: reference.to_owned(), there: names })
    }
}

/// Expands a short reference: docker writes `debian:12`, other tools the full name.
fn normal(reference: &str) -> String {
    reference
        .parse::<oci_client::Reference>()
        .map_or_else(|_| reference.to_owned(), |reference| reference.whole())
}

/// Returns the digest contained in a member's name: `blobs/sha256/…`, or `….json` for a
/// configuration.
fn digest_in(name: &str) -> Option<BlobDigest> {
    let blob = name.strip_prefix("blobs/").map(|rest| rest.replacen('/', ":", 1));
    blob.or_else(|| name.strip_suffix(".json").map(|hex| format!("sha256:{hex}")))?.parse().ok()
}

fn unpack(file: &mut File, path: &Path, options: &ImportOptions) -> Result<Plain, ImportError> {
    let read = |source| ImageError::Read { path: path.to_owned(), source };
    let mut mark = [0; 4];
    let len = file.read(&mut mark).map_err(read)?;
    file.rewind().map_err(read)?;
    let mut decoder: Box<dyn Read + '_> = match mark.get(..len).unwrap_or(&[]) {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file).map_err(read)?),
        _ => return Ok(Plain::Itself),
    };
    let mut unpacked = tempfile::Builder::new()
        .prefix("inlay-archive-")
        .tempfile_in(&options.scratch)
        .map_err(|source| ImportError::Read {
            path: options.scratch.clone(),
            what: "making a temporary file",
            source,
        })?;
    let limit = options.decoded_bytes_max;
    let copied =
        io::copy(&mut (&mut decoder).take(limit.saturating_add(1)), unpacked.as_file_mut())
            .map_err(read)?;
    if copied > limit {
        let what = path.display().to_string();
        return Err(ImportError::Limit { what, of: "bytes when decompressed", limit });
    }
    Ok(Plain::Unpacked(unpacked))
}
