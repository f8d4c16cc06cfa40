//! Tests that errors of a copy name the object, and that its counts are right.

use super::*;

fn archive(entries: &[(&str, tar::EntryType)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind) in entries {
        let bytes: &[u8] = if *kind == tar::EntryType::Regular { b"x" } else { b"" };
        builder.append_data(&mut header(*kind, bytes.len() as u64), name, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn in_the_way(to: &Path, path: &str, bytes: &[u8]) -> (std::path::PathBuf, &'static str) {
    match unpacked(to, path, bytes).unwrap_err() {
        CopyError::InTheWay { path, why } => (path, why),
        other => panic!("{other}"),
    }
}

#[test]
fn an_object_in_the_way_is_named_by_its_path() {
    use tar::EntryType::{Directory, Regular};
    let to = TempDir::new().unwrap();
    fs::create_dir_all(to.path().join("there/src/b")).unwrap();
    fs::write(to.path().join("there/src/b/file"), "").unwrap();
    let bytes =
        archive(&[("src/", Directory), ("src/a/deep/x", Regular), ("src/b/file/below", Regular)]);
    let (path, why) = in_the_way(to.path(), "/there", &bytes);
    assert_eq!(path, Path::new("/there/src/b/file"));
    assert!(why.contains("the copy has something below it"), "{why}");

    // Renamed by the copy.
    let bytes = archive(&[
        ("src/", Directory),
        ("src/a/deep/x", Regular),
        ("src/b", Regular),
        ("src/b/below", Regular),
    ]);
    let (path, _) = in_the_way(to.path(), "/new", &bytes);
    assert_eq!(path, Path::new("/new/b"));
    let bytes = archive(&[("src", Regular), ("src/below", Regular)]);
    let (path, _) = in_the_way(to.path(), "/newer", &bytes);
    assert_eq!(path, Path::new("/newer"));
}

#[test]
fn attributes_are_kept_on_any_object_or_counted_as_left_out() {
    let root = tree();
    let at = |path: &str| root.path().join(path);
    let (file, dir, link, pipe) = ("src/a", "src/deep", "src/out", "src/pipe");
    for path in [file, dir, link, pipe] {
        rustix::fs::lsetxattr(at(path), "trusted.note", b"t", XattrFlags::empty()).unwrap();
    }
    let (_, bytes) = packed(root.path(), "/src");
    let copied = unpacked_as(root.path(), "/into", &bytes, ALL).unwrap();
    assert_eq!((copied.objects, copied.attributes_left_out), (8, 0));
    for path in [file, dir, link, pipe] {
        let mut value = [0; 8];
        let len = lgetxattr(at("into").join(path), "trusted.note", &mut value[..]);
        assert_eq!(len.map(|len| value[..len].to_vec()), Ok(b"t".to_vec()), "{path}");
    }
    // A filesystem without extended attributes.
    let plain = at("plain");
    fs::create_dir(&plain).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &plain, "ramfs", flags, None).unwrap();
    let copied = unpacked_as(root.path(), "/plain", &bytes, ALL);
    rustix::mount::unmount(&plain, rustix::mount::UnmountFlags::DETACH).unwrap();
    let copied = copied.unwrap();
    assert_eq!((copied.objects, copied.attributes_left_out), (8, 4));
}
