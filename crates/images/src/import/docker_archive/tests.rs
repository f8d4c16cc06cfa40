//! Tests imports of `docker save` archives.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::import_docker_archive;
use crate::import::image::testing::{TestImage, assert_is_the_image, message, options};
use crate::import::testing::MemorySink;
use crate::import::{ImportError, Imported, NoProgress};

type Members = Vec<(String, Result<Vec<u8>, String>)>;

fn write(path: &Path, members: &Members) {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        match content {
            Ok(bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
            }
            Err(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    fs::write(path, builder.into_inner().unwrap()).unwrap();
}

/// Returns an archive as written by docker 25 and later: the blobs of a layout, the manifest last.
fn with_blobs(image: &TestImage) -> Members {
    let name = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let mut members: Members =
        image.blobs.iter().map(|(digest, bytes)| (name(digest), Ok(bytes.clone()))).collect();
    let config = image.blobs.iter().find(|(_, bytes)| **bytes == image.config).unwrap().0;
    let layers: Vec<String> = image.layers.iter().map(|(_, digest)| name(digest)).collect();
    let manifest = json!([{ "Config": name(config), "RepoTags": ["test:1"], "Layers": layers }]);
    members.push(("manifest.json".into(), Ok(manifest.to_string().into_bytes())));
    members
}

/// Returns an archive as written by older versions of docker: a directory per layer, equal layers
/// linked.
fn with_directories(image: &TestImage) -> Members {
    let bytes = |n: usize| Ok(image.blobs[&image.layers[n].1].clone());
    let config = "0".repeat(64) + "-config";
    let manifest = json!([{
        "Config": config, "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"],
    }]);
    vec![
        ("manifest.json".into(), Ok(manifest.to_string().into_bytes())),
        ("a/layer.tar".into(), bytes(0)),
        ("b/layer.tar".into(), Err("../x/layer.tar".into())),
        ("c/layer.tar".into(), bytes(2)),
        ("x/layer.tar".into(), bytes(1)),
        (config, Ok(image.config.clone())),
    ]
}

fn import(
    file: &Path,
    reference: Option<&str>,
    sink: &mut MemorySink,
) -> Result<Imported, ImportError> {
    let options = options(file.parent().unwrap());
    import_docker_archive(file, reference, &options, sink, &NoProgress)
}

#[test]
fn both_forms_are_read_plain_and_compressed() {
    let image = TestImage::new();
    for members in [with_blobs(&image), with_directories(&image)] {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        write(&plain, &members);
        let bytes = fs::read(&plain).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        fs::write(dir.path().join("gzip"), encoder.finish().unwrap()).unwrap();
        fs::write(dir.path().join("zstd"), zstd::encode_all(bytes.as_slice(), 1).unwrap()).unwrap();
        for name in ["plain", "gzip", "zstd"] {
            let mut sink = MemorySink::default();
            let imported = import(&dir.path().join(name), None, &mut sink).unwrap();
            assert_is_the_image(&imported, &sink, &image);
        }
        // No temporary file is left.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}

#[test]
fn an_image_is_found_by_any_spelling_of_its_name() {
    let image = TestImage::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    write(&file, &with_blobs(&image));
    for name in ["test:1", "docker.io/library/test:1"] {
        import(&file, Some(name), &mut MemorySink::default()).unwrap();
    }
    let error = message(import(&file, Some("test:2"), &mut MemorySink::default()));
    assert!(error.contains("'test:2'") && error.contains("test:1"), "{error}");
}

#[test]
fn broken_archives_are_refused() {
    let image = TestImage::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let fails = |members: &Members, part: &str| {
        write(&file, members);
        let error = message(import(&file, None, &mut MemorySink::default()));
        assert!(error.contains(part), "{error}");
    };
    let mut members = with_blobs(&image);
    let layer = format!("blobs/{}", image.layers[0].1.replace(':', "/"));
    let place = members.iter().position(|(name, _)| *name == layer).unwrap();
    *members[place].1.as_mut().unwrap().last_mut().unwrap() ^= 1;
    fails(&members, "not those of its digest");
    drop(members.remove(place));
    fails(&members, &format!("no file '{layer}'"));
    members.pop();
    fails(&members, "no manifest.json");
    let mut members = with_directories(&image);
    members[2].1 = Err("../../../../etc/passwd".into());
    fails(&members, "no file 'b/layer.tar'");
    members[0].1 = Ok(b"[]".to_vec());
    fails(&members, "no image");
    fs::write(&file, "text, and much of it ".repeat(100)).unwrap();
    assert!(message(import(&file, None, &mut MemorySink::default())).contains("no tar archive"));
}

#[test]
fn an_archive_that_unpacks_to_too_much_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bomb");
    fs::write(&file, zstd::encode_all(vec![0; 8 << 20].as_slice(), 3).unwrap()).unwrap();
    let mut options = options(dir.path());
    options.decoded_bytes_max = 1 << 20;
    let result =
        import_docker_archive(&file, None, &options, &mut MemorySink::default(), &NoProgress);
    assert!(matches!(result, Err(ImportError::Limit { limit: 1_048_576, .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
