//! Tests imports from image layouts.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::import_oci;
use crate::import::image::testing::{
    TestImage, assert_is_the_image, blob_path, digest, message, options,
};
use crate::import::testing::MemorySink;
use crate::import::{ImportError, Imported, NoProgress};

fn import(dir: &Path, tag: Option<&str>, sink: &mut MemorySink) -> Result<Imported, ImportError> {
    import_oci(dir, tag, &options(dir), sink, &NoProgress)
}

fn failure(dir: &Path, tag: Option<&str>) -> String {
    message(import(dir, tag, &mut MemorySink::default()))
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({ "org.opencontainers.image.ref.name": name }))
}

fn layout(image: &TestImage, manifests: &[Value]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    image.write_layout(dir.path(), manifests);
    dir
}

#[test]
fn the_only_image_needs_no_name() {
    let image = TestImage::new();
    let dir = layout(&image, &[image.manifest_descriptor()]);
    let mut sink = MemorySink::default();
    let imported = import(dir.path(), None, &mut sink).unwrap();
    assert_is_the_image(&imported, &sink, &image);
    // Hidden files were never packed.
    assert_eq!(sink.files.len(), 3);
}

#[test]
fn one_of_several_is_chosen_by_its_name() {
    let image = TestImage::new();
    let mut other = image.manifest_descriptor();
    other["digest"] = json!(digest(b"not there"));
    let manifests = [named(other, "v1"), named(image.manifest_descriptor(), "v2")];
    let dir = layout(&image, &manifests);
    let mut sink = MemorySink::default();
    let imported = import(dir.path(), Some("v2"), &mut sink).unwrap();
    assert_is_the_image(&imported, &sink, &image);
    let error = failure(dir.path(), None);
    assert!(error.contains("v1, v2"), "{error}");
    let error = failure(dir.path(), Some("v3"));
    assert!(error.contains("'v3'") && error.contains("v1, v2"), "{error}");
}

#[test]
fn a_nested_index_gives_the_platform() {
    let mut image = TestImage::new();
    let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let foreign = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(b"arm"),
        "size": 3, "platform": platform("arm64"),
    });
    let statement = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(b"said"),
        "size": 3, "platform": { "os": "unknown", "architecture": "unknown" },
    });
    let mine = with(image.manifest_descriptor(), "platform", platform("amd64"));
    let index = json!({ "schemaVersion": 2, "manifests": [statement, foreign, mine] });
    let index = image.add(index.to_string().into_bytes());
    let descriptor = image.descriptor("application/vnd.oci.image.index.v1+json", &index);
    let dir = layout(&image, &[descriptor]);
    let mut sink = MemorySink::default();
    let imported = import(dir.path(), None, &mut sink).unwrap();
    assert_is_the_image(&imported, &sink, &image);
    let mut riscv = options(dir.path());
    riscv.platform.architecture = "riscv64".into();
    let result = import_oci(dir.path(), None, &riscv, &mut MemorySink::default(), &NoProgress);
    let error = message(result);
    assert!(error.contains("linux/riscv64") && error.contains("linux/arm64"), "{error}");
}

#[test]
fn a_blob_with_other_bytes_is_refused_wherever_it_is() {
    let image = TestImage::new();
    for (wrong, bytes) in &image.blobs {
        for change in ["flip", "cut", "longer", "gone"] {
            let dir = layout(&image, &[image.manifest_descriptor()]);
            let path = blob_path(dir.path(), wrong);
            let mut bytes = bytes.clone();
            match change {
                "flip" => *bytes.last_mut().unwrap() ^= 1,
                "cut" => bytes.truncate(bytes.len() - 1),
                "longer" => bytes.push(0),
                _ => {}
            }
            fs::write(&path, bytes).unwrap();
            if change == "gone" {
                fs::remove_file(&path).unwrap();
            }
            let error = failure(dir.path(), None);
            let hex = wrong.trim_start_matches("sha256:");
            assert!(error.contains(hex), "{change} of {wrong}: {error}");
        }
    }
}

#[test]
fn invalid_layouts_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    assert!(failure(dir.path(), None).contains("it has no oci-layout"));
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(failure(dir.path(), None).contains("another version"));
    fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    assert!(failure(dir.path(), None).contains("it has no index.json"));
    let endless = std::os::unix::fs::symlink("/dev/zero", dir.path().join("index.json"));
    endless.unwrap();
    assert!(failure(dir.path(), None).contains("no regular file"));
    fs::remove_file(dir.path().join("index.json")).unwrap();
    fs::write(dir.path().join("index.json"), vec![b' '; 5 << 20]).unwrap();
    assert!(failure(dir.path(), None).contains("4194304 are the most"));
}
