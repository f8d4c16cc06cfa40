use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::*;

const THIS_USER: fn() -> Owners = || Owners::Given {
    uid: rustix::process::geteuid().as_raw(),
    gid: rustix::process::getegid().as_raw(),
};

fn packed(root: &Path, path: &str) -> (Packed, Vec<u8>) {
    let mut bytes = Vec::new();
    let packed = pack(&Root::open(root).unwrap(), Path::new(path), &mut bytes).unwrap();
    (packed, bytes)
}

fn unpacked(root: &Path, path: &str, bytes: &[u8]) -> Result<Unpacked, CopyError> {
    let root = Root::open(root)?;
    unpack(&root.place(Path::new(path))?, bytes, THIS_USER())
}

fn tree() -> TempDir {
    let dir = TempDir::new().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("src/deep/er")).unwrap();
    fs::write(at("src/a"), "alpha").unwrap();
    fs::set_permissions(at("src/a"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(at("src/deep/er/b"), vec![7; 300_000]).unwrap();
    symlink("../a", at("src/deep/link")).unwrap();
    symlink("/etc/passwd", at("src/out")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("src/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::create_dir(at("into")).unwrap();
    dir
}

#[test]
fn a_tree_comes_as_it_was_into_a_directory_that_is_there() {
    let (from, to) = (tree(), tree());
    let (sum, bytes) = packed(from.path(), "/src");
    assert_eq!(sum, Packed { objects: 8, bytes: 300_005, left_out: 0 });
    let made = unpacked(to.path(), "/into", &bytes).unwrap();
    assert_eq!((made.objects, made.bytes), (8, 300_005));
    let at = |path: &str| to.path().join("into/src").join(path);
    assert_eq!(fs::read(at("deep/er/b")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_link(at("deep/link")).unwrap(), Path::new("../a"));
    assert_eq!(fs::read_link(at("out")).unwrap(), Path::new("/etc/passwd"));
    let (old, new) =
        (fs::metadata(from.path().join("src/a")).unwrap(), fs::metadata(at("a")).unwrap());
    assert_eq!((new.mode() & 0o7777, new.mtime()), (0o751, old.mtime()));
}

#[test]
fn a_name_that_is_not_there_is_the_copys_name() {
    let root = tree();
    let (_, bytes) = packed(root.path(), "/src");
    unpacked(root.path(), "/new", &bytes).unwrap();
    assert_eq!(fs::read(root.path().join("new/a")).unwrap(), b"alpha");
    let (_, bytes) = packed(root.path(), "/src/a");
    unpacked(root.path(), "/into/other", &bytes).unwrap();
    assert_eq!(fs::read(root.path().join("into/other")).unwrap(), b"alpha");
    // A file that is there is replaced, and nothing partial stays.
    fs::write(root.path().join("into/other"), "old").unwrap();
    unpacked(root.path(), "/into/other", &bytes).unwrap();
    let names: Vec<_> = fs::read_dir(root.path().join("into")).unwrap().collect();
    assert_eq!(
        (names.len(), fs::read(root.path().join("into/other")).unwrap()),
        (1, b"alpha".to_vec())
    );
    assert!(unpacked(root.path(), "/nowhere/x", &bytes).is_err());
    assert!(
        unpacked(root.path(), "/nowhere/", &bytes)
            .unwrap_err()
            .to_string()
            .contains("make it first")
    );
}

#[test]
fn links_do_not_lead_out_of_the_root() {
    let root = tree();
    let outside = TempDir::new().unwrap();
    symlink(outside.path(), root.path().join("escape")).unwrap();
    let (_, bytes) = packed(root.path(), "/src/a");
    // The link's target is looked for below the root, and is not there.
    assert!(unpacked(root.path(), "/escape", &bytes).is_ok());
    assert!(unpacked(root.path(), "/escape/x", &bytes).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // `/out` is copied as the link that it is.
    let (sum, _) = packed(root.path(), "/src/out");
    assert_eq!(sum, Packed { objects: 1, bytes: 0, left_out: 0 });
}

#[test]
fn hostile_archives_stay_below_their_target() {
    let outside = TempDir::new().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    builder.append_link(&mut link, "top/door", outside.path()).unwrap();
    let mut file = tar::Header::new_gnu();
    file.set_size(4);
    file.set_mode(0o644);
    builder.append_data(&mut file, "top/door/evil", &b"evil"[..]).unwrap();
    let through = builder.into_inner().unwrap();
    let root = tree();
    fs::create_dir(root.path().join("into/top")).unwrap();
    assert!(unpacked(root.path(), "/into", &through).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);

    for name in ["../evil", "a/../../evil", "/abs"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o644);
        // Set by hand: the library would not.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 1024]);
        let error = unpacked(root.path(), "/into", &bytes).unwrap_err();
        assert!(matches!(error, CopyError::Name { .. }), "{name}: {error}");
    }
}

#[test]
fn a_cut_archive_leaves_no_partial_file() {
    let root = tree();
    let (_, bytes) = packed(root.path(), "/src/deep/er/b");
    let error = unpacked(root.path(), "/into", &bytes[..100_000]).unwrap_err();
    assert!(matches!(error, CopyError::Read(_)), "{error}");
    assert_eq!(fs::read_dir(root.path().join("into")).unwrap().count(), 0);
}
