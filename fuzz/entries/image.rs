//! Images in files: OCI layouts and archives of `docker save`.

use std::fs;
use std::io;
use std::path::Path;

use inlay_images::import::{ImportOptions, NoProgress, import_docker_archive, import_oci};
use sha2::{Digest as _, Sha256};

use super::tar::{Checks, options};

/// What stands between the documents of a layout.
const BREAK: &[u8] = b"\n--\n";
/// How the documents refer to each other.
const BLOBS: [&str; 3] = ["MANIFEST", "CONFIG", "LAYER"];

/// Takes the bytes as an archive of `docker save`.
pub(crate) fn run_docker_archive(bytes: &[u8]) {
    // What is found wrong does not matter: that it is found without a panic does.
    let _ = docker_archive(bytes);
}

/// Imports the bytes as an archive of `docker save`; an error if that fails.
pub(crate) fn docker_archive(bytes: &[u8]) -> io::Result<()> {
    with_scratch(|dir, options| {
        let file = dir.join("archive.tar");
        fs::write(&file, bytes)?;
        import_docker_archive(&file, None, options, &mut Checks, &NoProgress)
            .map(drop)
            .map_err(io::Error::other)
    })
}

/// Takes the bytes as the parts of a layout, see [`oci`].
pub(crate) fn run_oci(bytes: &[u8]) {
    let _ = oci(bytes);
}

/// Imports the bytes as `index.json`, the manifest, the configuration and a layer, in this order. In
/// the documents, `@LAYER` and so on stand for the digest of a later part, `#LAYER` for its length:
/// so that what follows the check of a digest is reached as well.
pub(crate) fn oci(bytes: &[u8]) -> io::Result<()> {
    with_scratch(|dir, options| {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut parts = split(bytes);
        // From the last to the first, as each refers to those after it.
        let mut known: Vec<(&str, String, usize)> = Vec::new();
        for name in BLOBS.into_iter().rev() {
            let part = resolved(parts.pop().unwrap_or_default(), &known);
            let digest = Sha256::digest(&part)
                .iter()
                .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            fs::write(blobs.join(&digest), &part)?;
            known.push((name, digest, part.len()));
        }
        fs::write(dir.join("index.json"), resolved(parts.pop().unwrap_or_default(), &known))?;
        import_oci(dir, None, options, &mut Checks, &NoProgress).map(drop).map_err(io::Error::other)
    })
}

/// The four parts; those that are not there are empty, and the last one takes the rest.
fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut parts = Vec::new();
    for _ in 0..BLOBS.len() {
        let at = rest.windows(BREAK.len()).position(|bytes| bytes == BREAK);
        let (part, after) = rest.split_at(at.unwrap_or(rest.len()));
        parts.push(part.to_vec());
        rest = after.get(BREAK.len()..).unwrap_or_default();
    }
    parts.push(rest.to_vec());
    parts
}

fn resolved(part: Vec<u8>, known: &[(&str, String, usize)]) -> Vec<u8> {
    let Ok(mut text) = String::from_utf8(part.clone()) else { return part };
    for (name, digest, len) in known {
        text = text.replace(&format!("@{name}"), digest);
        text = text.replace(&format!("#{name}"), &len.to_string());
    }
    text.into_bytes()
}

fn with_scratch(run: impl FnOnce(&Path, &ImportOptions) -> io::Result<()>) -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let options = ImportOptions { scratch: dir.path().to_path_buf(), ..options() };
    run(dir.path(), &options)
}
