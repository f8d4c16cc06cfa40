//! What goes into a store comes out of it, identical: through mounts and exports.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Source, import, local, of, s3};
use inlay_testkit::cli::Inlay;
use inlay_testkit::rootfs::{self, Fixture};
use inlay_testkit::tree::EveryKind;
use inlay_testkit::weed::Weed;
use inlay_testkit::{Comparison, Holes, scratch};

fn same(left: &Path, right: &Path) {
    Comparison::default().run(left, right).unwrap();
}

/// Runs a program that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Exports to a directory and to a tar archive, which `tar` unpacks, and compares both.
fn exports_are_the_same(inlay: &Inlay, name: &str, expected: &Path) {
    let scratch = scratch().unwrap();
    let dir = scratch.path().join("dir");
    inlay.succeed(["export", name, &of("dir", &dir)]).unwrap();
    same(expected, &dir);

    let archive = scratch.path().join("archive.tar");
    inlay.succeed(["export", name, &of("tar", &archive)]).unwrap();
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run(Command::new("tar")
        .args(["--extract", "--numeric-owner", "--same-owner", "--same-permissions"])
        .args(["--xattrs", "--xattrs-include=*", "--delay-directory-restore"])
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&unpacked));
    without_sockets().run(expected, &unpacked).unwrap();
}

/// A tar archive has no word for a socket.
fn without_sockets() -> Comparison {
    Comparison::default().without_path("special/socket")
}

#[test]
fn every_kind_of_object_through_s3_and_a_mount() {
    let weed = Weed::start().unwrap();
    let source = Source::every_kind(EveryKind::default());
    let importer = s3(weed.address(), "a");
    import(&importer, &of("dir", &source.path()), "every-kind");

    // Another host, which has nothing yet.
    let host = s3(weed.address(), "a");
    let mounted = host.mount("every-kind", &[]).unwrap();
    same(&source.path(), mounted.path());
    // Once more, now from the cache.
    same(&source.path(), mounted.path());
    mounted.unmount().unwrap();

    exports_are_the_same(&host, "every-kind", &source.path());
    host.succeed(["verify", "every-kind"]).unwrap();
}

#[test]
fn every_kind_of_object_through_the_embedded_store() {
    let source = Source::every_kind(EveryKind { entries: 3000, large: 3 << 20 });
    let inlay = local();
    import(&inlay, &of("dir", &source.path()), "every-kind");
    let mounted = inlay.mount("every-kind", &[]).unwrap();
    same(&source.path(), mounted.path());
    drop(mounted);
    let writable = inlay.mount("every-kind", &["--rw"]).unwrap();
    // An overlay does not tell where holes are below it, nor how many directories are in its root.
    let comparison =
        Comparison::default().holes(Holes::Ignore).without_field("directory", "link count");
    comparison.run(&source.path(), writable.path()).unwrap();
}

#[test]
fn an_exported_oci_layout_imports_as_the_same_tree() {
    let source = Source::every_kind(EveryKind { entries: 50, large: 1 << 20 });
    let inlay = local();
    import(&inlay, &of("dir", &source.path()), "first");
    let scratch = scratch().unwrap();
    let layout = scratch.path().join("layout");
    inlay.succeed(["export", "first", &of("oci", &layout)]).unwrap();
    import(&inlay, &of("oci", &layout), "second");
    let mounted = inlay.mount("second", &[]).unwrap();
    without_sockets().run(&source.path(), mounted.path()).unwrap();
}

#[test]
fn importing_twice_gives_the_same_id_and_stores_nothing_new() {
    let source = Source::every_kind(EveryKind { entries: 50, large: 2 << 20 });
    let inlay = local();
    let first = import(&inlay, &of("dir", &source.path()), "first");
    let second = import(&inlay, &of("dir", &source.path()), "second");
    assert_eq!(first["id"], second["id"]);
    assert_eq!(second["blobs_uploaded"], 0);
}

#[test]
fn a_debian_root_through_s3() {
    let root = rootfs::find(Fixture::Directory).unwrap();
    let tar = rootfs::find(Fixture::Tar).unwrap();
    let weed = Weed::start().unwrap();
    let importer = s3(weed.address(), "debian");
    import(&importer, &of("dir", &root), "from-dir");
    import(&importer, &of("tar", &tar), "from-tar");

    let host = s3(weed.address(), "debian");
    for name in ["from-dir", "from-tar"] {
        let mounted = host.mount(name, &[]).unwrap();
        same(&root, mounted.path());
        mounted.unmount().unwrap();
    }
    exports_are_the_same(&host, "from-dir", &root);
}

#[test]
fn the_layers_of_a_debian_image_are_flattened_as_umoci_does() {
    let layout = rootfs::find(Fixture::OciLayout).unwrap();
    let inlay = local();
    import(&inlay, &format!("{}:test", of("oci", &layout)), "image");

    let scratch = scratch().unwrap();
    let unpacked = scratch.path().join("unpacked");
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:test", layout.display()))
        .arg(&unpacked));
    let mounted = inlay.mount("image", &[]).unwrap();
    // umoci fills the holes.
    let comparison = Comparison::default().holes(Holes::Ignore);
    comparison.run(&unpacked, mounted.path()).unwrap();
    assert!(!mounted.path().join("etc/motd").exists());
    assert!(mounted.path().join("etc/inlay-layer").exists());
    let documents = fs::read_dir(mounted.path().join("usr/share/doc")).unwrap().count();
    assert_eq!(documents, 1, "the directory was replaced as a whole");

    let shown = inlay.succeed(["show", "--json", "image"]).unwrap().text();
    assert!(shown.contains("INLAY_FIXTURE=yes"), "{shown}");
}

#[test]
fn python_runs_in_a_writable_mount() {
    let root = rootfs::find(Fixture::Directory).unwrap();
    let inlay = local();
    import(&inlay, &of("dir", &root), "python");
    let mounted = inlay.mount("python", &["--rw"]).unwrap();
    let script = "import json, ssl, sqlite3; open('/new', 'w').write(json.dumps([1])); print('hi')";
    let output = mounted.chroot("python3").args(["-c", script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hi\n", "{output:?}");
    assert_eq!(fs::read_to_string(mounted.path().join("new")).unwrap(), "[1]");
    // A directory of the snapshot can be renamed.
    fs::rename(mounted.path().join("usr/share/doc"), mounted.path().join("usr/doc")).unwrap();
    assert!(mounted.path().join("usr/doc/base-files").exists());
}
