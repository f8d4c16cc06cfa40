//! Tests whole exports. Requires root for owners, devices and `trusted` attributes.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use inlay_store::tree::{NodeId, NodeKind};
use inlay_testkit::compare::Comparison;
use inlay_testkit::scratch::scratch;

use super::testing::{Sink, Snapshot, every_kind, meta, noise};
use super::*;
use crate::import::{FileLayer, ImportOptions, NoProgress, import_dir, import_oci, import_tar};

fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn unpack(archive: &Path, into: &Path) {
    fs::create_dir(into).unwrap();
    run(Command::new("tar")
        .args(["--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*", "-xf"])
        .arg(archive)
        .arg("-C")
        .arg(into));
}

fn exported(snapshot: &Snapshot, target: &Target) -> Report {
    snapshot.export(target).unwrap()
}

#[test]
fn gnu_tar_and_the_directory_give_the_same_tree() {
    let scratch = scratch().unwrap();
    let (archive, left, right) =
        (scratch.path().join("a.tar"), scratch.path().join("tar"), scratch.path().join("dir"));
    let snapshot = every_kind().finish(b"");
    let report = exported(&snapshot, &Target::Tar(archive.clone()));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    unpack(&archive, &left);
    let report = exported(&snapshot, &Target::Dir(right.clone()));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    Comparison::default().run(&left, &right).unwrap();
}

#[test]
fn an_exported_directory_equals_the_snapshot() {
    let scratch = scratch().unwrap();
    let root = scratch.path().join("new");
    let mut builder = every_kind();
    builder.add(NodeId::ROOT, b"socket", meta(0o700), NodeKind::Socket);
    let report = exported(&builder.finish(b""), &Target::Dir(root.clone()));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);

    let stat = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    let of_root = stat("");
    assert_eq!((of_root.mode() & 0o7777, of_root.uid(), of_root.gid()), (0o1711, 3, 4));
    assert_eq!((of_root.mtime(), of_root.mtime_nsec()), (1_600_000_000, 0));
    assert_eq!(fs::read(root.join("large")).unwrap(), noise(b"large", 3 << 20));
    let setuid = stat("owners/setuid");
    assert_eq!((setuid.mode() & 0o7777, setuid.uid(), setuid.gid()), (0o6755, 12, 13));
    assert_eq!(stat("owners/large-ids").uid(), 0xffff_fffe);
    assert_eq!((stat("owners/old").mtime(), stat("owners/old").mtime_nsec()), (-1, 500_000_000));
    assert_eq!((stat("owners/dir").mtime(), stat("owners/dir").mtime_nsec()), (5, 6));
    assert_eq!(stat("owners/dir").mode() & 0o7777, 0o2750);
    assert!(stat("socket").file_type().is_socket());
    assert!(stat("nodes/fifo").file_type().is_fifo());
    assert_eq!(stat("nodes/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("nodes/one").ino(), stat("z/two").ino());
    assert_eq!(stat("three").nlink(), 3);
    assert_eq!(stat("sparse/all-hole").blocks(), 0);
    assert!(stat("sparse/middle").blocks() <= (2 << 20) / 512 + 16);
    let xattrs = inlay_testkit::attributes::read(&root.join("attributes/odd")).unwrap();
    assert_eq!(xattrs[std::ffi::OsStr::from_bytes(b"user.a=b%c")], b"1");
    let plain = inlay_testkit::attributes::read(&root.join("attributes/default/plain")).unwrap();
    assert!(plain.is_empty(), "inherited: {plain:?}");
}

#[test]
fn an_archive_is_the_same_each_time() {
    let scratch = scratch().unwrap();
    let archives = ["a", "b"].map(|name| scratch.path().join(name));
    for archive in &archives {
        exported(&every_kind().finish(b""), &Target::Tar(archive.clone()));
    }
    assert!(fs::read(&archives[0]).unwrap() == fs::read(&archives[1]).unwrap());
}

#[test]
fn a_socket_is_left_out_of_an_archive_and_said_so() {
    let scratch = scratch().unwrap();
    let archive = scratch.path().join("a.tar");
    let mut builder = every_kind();
    builder.add(NodeId::ROOT, b"socket", meta(0o700), NodeKind::Socket);
    let report = exported(&builder.finish(b""), &Target::Tar(archive.clone()));
    let socket = Warning { path: "socket".to_owned(), what: Omission::Socket };
    assert_eq!(report.warnings.first, [socket]);
    assert!(!run(Command::new("tar").arg("-tf").arg(archive)).contains("socket"));
}

#[test]
fn existing_files_are_not_overwritten() {
    let scratch = scratch().unwrap();
    let snapshot = every_kind().finish(b"{}");
    fs::write(scratch.path().join("mine"), "x").unwrap();
    for target in [Target::Dir(scratch.path().into()), Target::Oci(scratch.path().into())] {
        assert!(matches!(snapshot.export(&target), Err(ExportError::NotEmpty(_))));
    }
    let target = Target::Tar(scratch.path().into());
    assert!(matches!(snapshot.export(&target), Err(ExportError::NotAFile(_))));
    let fifo = scratch.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(matches!(snapshot.export(&Target::Tar(fifo)), Err(ExportError::NotAFile(_))));
    let empty = scratch.path().join("empty");
    fs::create_dir(&empty).unwrap();
    exported(&snapshot, &Target::Dir(empty.clone()));
    assert!(empty.join("large").exists());
}

struct Failing;

impl FileBytes for Failing {
    fn copy(
        &self,
        _: inlay_store::format::InodeIdx,
        _: std::ops::Range<u64>,
        out: &mut dyn io::Write,
    ) -> Result<(), CopyError> {
        out.write_all(b"a few bytes")?;
        Ok(())
    }
}

#[test]
fn a_failure_names_the_file_and_leaves_nothing() {
    let scratch = scratch().unwrap();
    let snapshot = every_kind().finish(b"{}");
    let export = Export { bytes: &Failing, ..snapshot.exporter() };
    let path = scratch.path().join("out");
    for target in [Target::Tar(path.clone()), Target::Dir(path.clone()), Target::Oci(path)] {
        let error = export.run(&target).unwrap_err().to_string();
        assert!(error.contains("'attributes/") || error.contains("'large'"), "{error}");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "{target}");
    }
}

fn blob(layout: &Path, descriptor: &serde_json::Value) -> Vec<u8> {
    use sha2::Digest as _;
    let digest = descriptor["digest"].as_str().unwrap();
    let (_, hex) = digest.split_once("sha256:").unwrap();
    let bytes = fs::read(layout.join("blobs/sha256").join(hex)).unwrap();
    assert_eq!(hex::encode(sha2::Sha256::digest(&bytes)), hex);
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

#[test]
fn a_layout_holds_one_layer_and_the_kept_configuration() {
    use sha2::Digest as _;
    let scratch = scratch().unwrap();
    let mut builder = every_kind();
    builder.file(NodeId::ROOT, b".wh.gone", meta(0o644), 0, &[]);
    let config = r#"{"architecture":"arm64","variant":"v8","config":{"Env":["A=b"]},
        "history":[{"x":1},{"y":2}],"rootfs":{"type":"layers","diff_ids":["a","b"]}}"#;
    let snapshot = builder.finish(config.as_bytes());
    let archive = scratch.path().join("a.tar");
    exported(&snapshot, &Target::Tar(archive.clone()));
    for (name, compression, command) in
        [("gzip", LayerCompression::Gzip, "gzip"), ("zstd", LayerCompression::Zstd, "zstd")]
    {
        let layout = scratch.path().join(name);
        let export = Export { compression, ..snapshot.exporter() };
        let report = export.run(&Target::Oci(layout.clone())).unwrap();
        let left_out = Warning { path: ".wh.gone".to_owned(), what: Omission::LooksLikeWhiteout };
        assert_eq!(report.warnings.first, [left_out]);

        let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let marker = parse(&fs::read(layout.join("oci-layout")).unwrap());
        assert_eq!(marker["imageLayoutVersion"], "1.0.0");
        let index = parse(&fs::read(layout.join("index.json")).unwrap());
        let descriptor = &index["manifests"][0];
        assert_eq!(descriptor["platform"]["architecture"], "arm64");
        assert_eq!(descriptor["platform"]["variant"], "v8");
        let manifest = parse(&blob(&layout, descriptor));
        let config = parse(&blob(&layout, &manifest["config"]));
        assert_eq!(config["config"]["Env"][0], "A=b");
        assert_eq!(config["os"], "linux");
        assert_eq!(config["history"].as_array().unwrap().len(), 1);
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        assert!(layers[0]["mediaType"].as_str().unwrap().ends_with(name));
        let layer = scratch.path().join(format!("{name}.layer"));
        fs::write(&layer, blob(&layout, &layers[0])).unwrap();
        let out =
            Command::new(command).arg("-dc").stdin(File::open(&layer).unwrap()).output().unwrap();
        assert!(out.status.success());
        let diff_id = format!("sha256:{}", hex::encode(sha2::Sha256::digest(&out.stdout)));
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([diff_id]));
        // Everything but the file that looks like a whiteout.
        assert!(out.stdout.len() < fs::read(&archive).unwrap().len());
        assert_eq!(fs::read_dir(layout.join("blobs/sha256")).unwrap().count(), 3);
    }
}

#[test]
fn a_configuration_that_is_none_makes_no_image() {
    let scratch = scratch().unwrap();
    let target = Target::Oci(scratch.path().join("o"));
    for config in [b"[]".as_slice(), b"{", b"\xff"] {
        let error = every_kind().finish(config).export(&target).unwrap_err();
        assert!(matches!(error, ExportError::Config(_)));
    }
    exported(&every_kind().finish(b""), &target);
}

fn archive_of(snapshot: &Snapshot, path: &Path) -> Vec<u8> {
    let report = exported(snapshot, &Target::Tar(path.to_owned()));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    fs::read(path).unwrap()
}

#[test]
fn an_archive_comes_back_as_it_was() {
    let scratch = scratch().unwrap();
    let (first, second) = (scratch.path().join("1"), scratch.path().join("2"));
    let before = archive_of(&every_kind().finish(b""), &first);
    let mut sink = Sink::new();
    let mut layer = FileLayer::new(first);
    let options = ImportOptions::default();
    let tree = import_tar(&mut layer, &options, sink.packer(), &NoProgress).unwrap();
    let after = archive_of(&sink.snapshot(&tree, b""), &second);
    assert!(before == after);
}

#[test]
fn a_layout_comes_back_as_it_was() {
    let scratch = scratch().unwrap();
    let config = br#"{"architecture":"riscv64","os":"linux","config":{"Cmd":["x"]}}"#;
    let snapshot = every_kind().finish(config);
    let before = archive_of(&snapshot, &scratch.path().join("before"));
    let mut options = ImportOptions::default();
    options.platform.architecture = "riscv64".into();
    for compression in [LayerCompression::Gzip, LayerCompression::Zstd] {
        let layout = scratch.path().join(format!("{compression:?}"));
        let export = Export { compression, ..snapshot.exporter() };
        export.run(&Target::Oci(layout.clone())).unwrap();
        let mut sink = Sink::new();
        let imported = import_oci(&layout, None, &options, sink.packer(), &NoProgress).unwrap();
        let after = sink.snapshot(&imported.tree, &imported.config);
        assert!(archive_of(&after, &scratch.path().join("after")) == before);
        let config: serde_json::Value = serde_json::from_slice(after.index.config()).unwrap();
        assert_eq!(config["config"]["Cmd"][0], "x");
    }
}

#[test]
fn a_directory_comes_back_as_it_was() {
    let scratch = scratch().unwrap();
    let (before, after) = (scratch.path().join("before"), scratch.path().join("after"));
    fs::create_dir(&before).unwrap();
    let recipe = inlay_testkit::tree::EveryKind { entries: 200, large: 2 << 20 };
    recipe.make(&before).unwrap();
    let mut sink = Sink::new();
    let options = ImportOptions::default();
    let tree = import_dir(&before, &options, sink.packer(), &NoProgress).unwrap();
    let snapshot = sink.snapshot(&tree, b"");
    let report = exported(&snapshot, &Target::Dir(after.clone()));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    Comparison::default().run(&before, &after).unwrap();

    // Also through an archive, which lacks only the sockets.
    let archive = scratch.path().join("a.tar");
    let report = exported(&snapshot, &Target::Tar(archive.clone()));
    assert!(report.warnings.first.iter().all(|w| w.what == Omission::Socket));
    for warning in &report.warnings.first {
        let socket = before.join(&warning.path);
        let dir = File::open(socket.parent().unwrap()).unwrap();
        let modified = dir.metadata().unwrap().modified().unwrap();
        fs::remove_file(&socket).unwrap();
        dir.set_times(fs::FileTimes::new().set_modified(modified)).unwrap();
    }
    let mut sink = Sink::new();
    let mut layer = FileLayer::new(archive);
    let tree = import_tar(&mut layer, &options, sink.packer(), &NoProgress).unwrap();
    let again = scratch.path().join("again");
    exported(&sink.snapshot(&tree, b""), &Target::Dir(again.clone()));
    Comparison::default().run(&before, &again).unwrap();
}
