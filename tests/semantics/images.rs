//! Images, archives and exports.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use inlay_testkit::Comparison;
use inlay_testkit::tree::EveryKind;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::place::{Place, source, system};

/// Writes a blob of an OCI layout and gives its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = hex::encode(Sha256::digest(bytes));
    fs::write(layout.join("blobs/sha256").join(&digest), bytes).unwrap();
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
}

/// A layer with empty directories (their names end with a slash) and files of one word.
fn layer(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in entries {
        let mut header = tar::Header::new_gnu();
        let is_dir = name.ends_with('/');
        header.set_entry_type(if is_dir {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(if is_dir { 0o755 } else { 0o644 });
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An image of layers, the lowest first.
fn image(layout: &Path, layers: &[Vec<u8>]) {
    const OCI: &str = "application/vnd.oci.image";
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let ids: Vec<_> =
        layers.iter().map(|l| format!("sha256:{}", hex::encode(Sha256::digest(l)))).collect();
    let config = json!({
        "os": "linux",
        "architecture": "amd64",
        "config": { "Entrypoint": ["/bin/app"], "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    let config = blob(layout, &format!("{OCI}.config.v1+json"), config.to_string().as_bytes());
    let layers: Vec<_> =
        layers.iter().map(|bytes| blob(layout, &format!("{OCI}.layer.v1.tar"), bytes)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest =
        blob(layout, &format!("{OCI}.manifest.v1+json"), manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn layers_become_one_tree() {
    let place = Place::new();
    let layout = place.path("layout");
    let lower = layer(&[
        ("etc/", ""),
        ("etc/kept", "lower"),
        ("etc/replaced", "lower"),
        ("etc/deleted", "lower"),
        ("emptied/", ""),
        ("emptied/below", "lower"),
    ]);
    let upper = layer(&[
        ("etc/replaced", "upper"),
        ("etc/.wh.deleted", ""),
        ("emptied/", ""),
        ("emptied/.wh..wh..opq", ""),
        ("emptied/new", "upper"),
    ]);
    image(&layout, &[lower, upper]);
    place.import_as(&source("oci", &layout), &["--name", "app", "--platform", "linux/amd64"]);
    let mounted = place.mount("app", &[]);
    assert_eq!(mounted.read("etc/kept"), b"lower");
    assert_eq!(mounted.read("etc/replaced"), b"upper");
    let names = |dir| {
        let entries = fs::read_dir(mounted.path(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("etc"), ["kept", "replaced"]);
    assert_eq!(names("emptied"), ["new"]);
    mounted.unmount();
    let config = place.json(["show", "app"]);
    assert_eq!(config["config"]["config"]["Entrypoint"], json!(["/bin/app"]));
}

#[test]
fn a_tar_archive_is_taken_as_it_is() {
    let place = Place::new();
    let archive = place.path("archive.tar");
    fs::write(&archive, layer(&[("dir/", ""), ("dir/.wh.file", "x"), ("dir/file", "y")])).unwrap();
    place.import_as(&source("tar", &archive), &["--name", "base"]);
    assert_eq!(place.cat("base:/dir/.wh.file"), b"x");
    assert_eq!(place.cat("base:/dir/file"), b"y");
}

#[test]
fn archive_entries_outside_the_tree_are_refused() {
    let place = Place::new();
    let archive = place.path("archive.tar");
    // The library refuses to write such a name, so it is patched in.
    let mut bytes = layer(&[("xx/escaped", "x")]);
    bytes[..2].copy_from_slice(b"..");
    let sum: u32 = bytes[..512].iter().enumerate().fold(0, |sum, (at, byte)| {
        sum + if (148..156).contains(&at) { 32 } else { u32::from(*byte) }
    });
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    fs::write(&archive, bytes).unwrap();
    let said = place.refused(["import", &source("tar", &archive)]);
    assert!(said.contains("../escaped"), "{said}");
    assert_eq!(place.json(["snapshots"]), json!([]));
}

#[test]
fn an_export_gives_everything_back() {
    let place = Place::new();
    EveryKind { entries: 20, large: 300_000 }.make(&place.tree()).unwrap();
    place.import("base");
    let dir = place.path("dir");
    let report = place.json(["export", "base", &source("dir", &dir)]);
    assert_eq!(report["warnings"], json!([]));
    Comparison::default().run(&place.tree(), &dir).unwrap();
    // What neither a tar nor a layer can hold.
    fs::remove_file(place.tree().join("special/socket")).unwrap();
    system(Command::new("touch").arg("-d@7").arg(place.tree().join("special")));
    place.import("base");
    for form in ["tar", "oci"] {
        let exported = source(form, &place.path(form));
        place.run(["export", "base", &exported]);
        place.import_as(&exported, &["--name", form]);
        let again = place.path(&format!("from-{form}"));
        place.run(["export", form, &source("dir", &again)]);
        Comparison::default().run(&place.tree(), &again).unwrap();
    }
}

#[test]
fn files_that_a_tar_cannot_hold_are_reported() {
    let place = Place::new();
    place.write("file", "x");
    drop(std::os::unix::net::UnixListener::bind(place.tree().join("socket")).unwrap());
    place.import("base");
    let target = source("tar", &place.path("base.tar"));
    let ran = place.run(["export", "base", &target, "--json"]);
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["warnings"], json!(["'socket' left out: a tar can't hold a socket"]));
    assert!(ran.stderr.contains("'socket' left out"), "{ran:?}");
}

#[test]
fn an_export_is_whole_or_not_there() {
    let place = Place::with(&[("file", &inlay_testkit::content::random("x", 1 << 20))]);
    let full = place.path("full");
    fs::create_dir(&full).unwrap();
    File::create(full.join("mine")).unwrap();
    assert!(place.refused(["export", "base", &source("dir", &full)]).contains("not empty"));
    fs::rename(place.inlay.state().join("store/blobs"), place.path("away")).unwrap();
    for form in ["tar", "dir", "oci"] {
        let target = place.path(form);
        place.refused(["export", "base", &source(form, &target)]);
        assert!(!target.exists(), "{form}");
    }
}
