//! Small images: as the documents of an OCI layout, and as `docker save` writes one.

use std::fs;
use std::io;

use inlay_testkit::scratch;

use super::archives::tar;

const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":["sh"]},
"rootfs":{"type":"layers","diff_ids":["sha256:@LAYER"]}}"#;

const MANIFEST: &str = r#"{"schemaVersion":2,
"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json",
"digest":"sha256:@CONFIG","size":#CONFIG},
"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",
"digest":"sha256:@LAYER","size":#LAYER}]}"#;

const INDEX: &str = r#"{"schemaVersion":2,
"mediaType":"application/vnd.oci.image.index.v1+json",
"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",
"digest":"sha256:@MANIFEST","size":#MANIFEST,
"platform":{"architecture":"amd64","os":"linux"},
"annotations":{"org.opencontainers.image.ref.name":"test"}}]}"#;

fn layer() -> io::Result<Vec<u8>> {
    let dir = scratch()?;
    fs::write(dir.path().join("file"), b"contents")?;
    tar(dir.path(), &["--format=ustar"], ".")
}

/// The documents of a layout, and its layer, as the fuzz target takes them.
pub(crate) fn oci_layout() -> io::Result<Vec<u8>> {
    let documents = [INDEX, MANIFEST, CONFIG].map(str::as_bytes);
    Ok([documents.join(b"\n--\n".as_slice()), layer()?].join(b"\n--\n".as_slice()))
}

/// The archive.
pub(crate) fn docker_archive() -> io::Result<Vec<u8>> {
    let dir = scratch()?;
    let manifest = r#"[{"Config":"config.json","RepoTags":["a:b"],"Layers":["1/layer.tar"]}]"#;
    fs::write(dir.path().join("manifest.json"), manifest)?;
    fs::write(dir.path().join("config.json"), CONFIG)?;
    fs::create_dir(dir.path().join("1"))?;
    fs::write(dir.path().join("1/layer.tar"), layer()?)?;
    tar(dir.path(), &["--format=ustar"], ".")
}
