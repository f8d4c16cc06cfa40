//! Tests copying trees in and out, with GNU cp and tar as the oracle. Most tests need root.

mod messages;
mod oracle;
mod races;

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{FileType, Mode, XattrFlags, lgetxattr, mknodat, setxattr};
use tempfile::TempDir;

use super::*;

const ALL: Keep = Keep { owners: Owners::Kept, privileges: FilePrivileges::Kept };

fn mine() -> Keep {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let owners = Owners::Given { uid: uid.as_raw(), gid: gid.as_raw() };
    Keep { owners, privileges: FilePrivileges::Dropped }
}

fn packed(root: &Path, path: &str) -> (Packed, Vec<u8>) {
    let mut bytes = Vec::new();
    let root = Root::open(root).unwrap();
    let packed = pack(&root, Path::new(path), Holes::Kept, &mut bytes).unwrap();
    (packed, bytes)
}

fn unpacked_as(root: &Path, path: &str, bytes: &[u8], keep: Keep) -> Result<Unpacked, CopyError> {
    let root = Root::open(root)?;
    unpack(&root.place(Path::new(path))?, Cursor::new(bytes.to_vec()), keep)
}

fn unpacked(root: &Path, path: &str, bytes: &[u8]) -> Result<Unpacked, CopyError> {
    unpacked_as(root, path, bytes, mine())
}

fn fifo(path: &Path) {
    mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
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
    fifo(&at("src/pipe"));
    fs::create_dir(at("into")).unwrap();
    dir
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(1_000_000_000);
    header
}

#[test]
fn a_tree_comes_as_it_was_into_a_directory_that_is_there() {
    let (from, to) = (tree(), tree());
    let (sum, bytes) = packed(from.path(), "/src");
    assert_eq!(sum, Packed { objects: 8, bytes: 300_005, left_out: 0 });
    let made = unpacked(to.path(), "/into", &bytes).unwrap();
    let whole = Unpacked { objects: 8, bytes: 300_005, left_out: 0, attributes_left_out: 0 };
    assert_eq!(made, whole);
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
    // An existing file is replaced, and no partial file remains.
    fs::write(root.path().join("into/other"), "old").unwrap();
    unpacked(root.path(), "/into/other", &bytes).unwrap();
    assert_eq!(names(&root.path().join("into")), ["other"]);
    assert_eq!(fs::read(root.path().join("into/other")).unwrap(), b"alpha");
    assert!(unpacked(root.path(), "/nowhere/x", &bytes).is_err());
    let error = unpacked(root.path(), "/nowhere/", &bytes).unwrap_err().to_string();
    assert!(error.contains("make it first"), "{error}");
    let error = unpacked(root.path(), "/into/other/", &bytes).unwrap_err().to_string();
    assert!(error.contains("no directory"), "{error}");
}

#[test]
fn a_trailing_dot_copies_only_the_contents_of_a_directory() {
    let root = tree();
    let (sum, bytes) = packed(root.path(), "/src/.");
    assert_eq!(sum.objects, 8);
    unpacked(root.path(), "/into", &bytes).unwrap();
    assert_eq!(names(&root.path().join("into")), ["a", "deep", "out", "pipe"]);
    unpacked(root.path(), "/new", &bytes).unwrap();
    assert_eq!(names(&root.path().join("new")), ["a", "deep", "out", "pipe"]);
}

#[test]
fn attributes_are_kept_and_rights_only_where_they_are_wanted() {
    let root = tree();
    let at = |path: &str| root.path().join(path);
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (name, value) in [
        ("user.note", &b"with\nlines=\xff\0"[..]),
        ("trusted.note", b"t"),
        ("security.capability", &capability),
    ] {
        setxattr(at("src/a"), name, value, XattrFlags::empty()).unwrap();
    }
    setxattr(at("src/deep"), "user.dir", b"d", XattrFlags::empty()).unwrap();
    chown(at("src/a"), Some(1234), Some(5678)).unwrap();
    setxattr(at("src/a"), "security.capability", &capability, XattrFlags::empty()).unwrap();
    fs::set_permissions(at("src/a"), fs::Permissions::from_mode(0o6755)).unwrap();
    let (_, bytes) = packed(root.path(), "/src");
    let value = |path: &str, name: &str| {
        let mut value = vec![0; 64];
        let len = lgetxattr(at(path), name, value.as_mut_slice()).ok()?;
        value.truncate(len);
        Some(value)
    };
    unpacked_as(root.path(), "/kept", &bytes, ALL).unwrap();
    unpacked(root.path(), "/dropped", &bytes).unwrap();
    for top in ["kept", "dropped"] {
        let note = value(&format!("{top}/a"), "user.note");
        assert_eq!(note.as_deref(), Some(&b"with\nlines=\xff\0"[..]), "{top}");
        assert_eq!(value(&format!("{top}/deep"), "user.dir"), Some(b"d".to_vec()), "{top}");
    }
    let stat = |path: &str| fs::symlink_metadata(at(path)).unwrap();
    let kept = stat("kept/a");
    assert_eq!((kept.uid(), kept.gid(), kept.mode() & 0o7777), (1234, 5678, 0o6755));
    assert_eq!(value("kept/a", "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(value("kept/a", "trusted.note"), Some(b"t".to_vec()));
    let dropped = stat("dropped/a");
    assert_eq!((dropped.uid(), dropped.mode() & 0o7777), (0, 0o755));
    assert_eq!(value("dropped/a", "security.capability"), None);
    assert_eq!(value("dropped/a", "trusted.note"), None);
}

#[test]
fn links_do_not_lead_out_of_the_root() {
    let root = tree();
    let outside = TempDir::new().unwrap();
    symlink(outside.path(), root.path().join("escape")).unwrap();
    let (_, bytes) = packed(root.path(), "/src/a");
    // The link's target is resolved beneath the root, and does not exist there.
    assert!(unpacked(root.path(), "/escape", &bytes).is_ok());
    assert!(unpacked(root.path(), "/escape/x", &bytes).is_err());
    assert_eq!(names(outside.path()), [""; 0]);
    // `/out` is copied as a symlink.
    let (sum, _) = packed(root.path(), "/src/out");
    assert_eq!(sum, Packed { objects: 1, bytes: 0, left_out: 0 });
}

#[test]
fn hostile_archives_stay_below_their_target() {
    let outside = TempDir::new().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = header(tar::EntryType::Symlink, 0);
    builder.append_link(&mut link, "top/door", outside.path()).unwrap();
    builder
        .append_data(&mut header(tar::EntryType::Regular, 4), "top/door/evil", &b"evil"[..])
        .unwrap();
    let through = builder.into_inner().unwrap();
    let root = tree();
    fs::create_dir(root.path().join("into/top")).unwrap();
    let error = unpacked(root.path(), "/into", &through).unwrap_err();
    assert!(matches!(error, CopyError::InTheWay { .. }), "{error}");
    assert_eq!(names(outside.path()), [""; 0]);

    for name in ["../evil", "a/../../evil", "/abs", ".."] {
        let mut header = header(tar::EntryType::Regular, 0);
        // Set by hand: the library rejects such names.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 1024]);
        for target in ["/into", "/into/new"] {
            let outcome = unpacked(root.path(), target, &bytes);
            if let Err(error) = outcome {
                assert!(matches!(error, CopyError::Name { .. }), "{name}: {error}");
            } else {
                // The first component is replaced by the requested name.
                assert_eq!((name, target), ("a/../../evil", "never"), "{name} {target}");
            }
        }
    }
    assert_eq!(names(outside.path()), [""; 0]);
}

#[test]
fn hard_links_lead_only_to_files_of_the_archive() {
    let root = tree();
    fs::write(root.path().join("into/secret"), "s").unwrap();
    for (target, refused) in [
        ("secret", true),
        ("../src/a", true),
        ("/etc/passwd", true),
        ("top/nothing", true),
        ("top/file", false),
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut file = header(tar::EntryType::Regular, 1);
        builder.append_data(&mut file, "top/file", &b"x"[..]).unwrap();
        let mut link = header(tar::EntryType::Link, 0);
        link.set_link_name_literal(target).unwrap();
        builder.append_data(&mut link, "top/link", &b""[..]).unwrap();
        // Twice, so that the name of the link exists the second time.
        builder.append_data(&mut link, "top/link", &b""[..]).unwrap();
        let outcome = unpacked(root.path(), "/into", &builder.into_inner().unwrap());
        assert_eq!(outcome.is_err(), refused, "{target}: {outcome:?}");
        let top = root.path().join("into/top");
        assert_eq!(names(&top).len(), 1 + usize::from(!refused), "{target}");
        if !refused {
            assert_eq!(fs::metadata(top.join("link")).unwrap().nlink(), 2);
        }
    }
}

#[test]
fn a_hard_link_does_not_claim_the_directory_that_it_is_in() {
    let root = tree();
    fs::create_dir(root.path().join("into/there")).unwrap();
    fs::write(root.path().join("into/there/secret"), "s").unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut link = header(tar::EntryType::Link, 0);
    link.set_link_name_literal("there/secret").unwrap();
    builder.append_data(&mut link, "there/link", &b""[..]).unwrap();
    let error = unpacked(root.path(), "/into", &builder.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, CopyError::Link { .. }), "{error}");
    assert_eq!(names(&root.path().join("into/there")), ["secret"]);
}

#[test]
fn an_archive_of_several_objects_does_not_become_one() {
    let file = |builder: &mut tar::Builder<Vec<u8>>, name: &str| {
        let mut file = header(tar::EntryType::Regular, 1);
        builder.append_data(&mut file, name, &b"x"[..]).unwrap();
    };
    for others in [["one", "two"], ["one/a", "two/b"], ["./one", "two"]] {
        let root = tree();
        let mut builder = tar::Builder::new(Vec::new());
        // The library would drop the './'.
        for name in others {
            let mut header = header(tar::EntryType::Regular, 0);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let error = unpacked(root.path(), "/into/new", &bytes).unwrap_err();
        assert!(matches!(error, CopyError::SeveralTops { .. }), "{error}");
        assert!(error.to_string().contains("copy to a directory"), "{error}");
        // In a directory, each keeps its name.
        unpacked(root.path(), "/into", &bytes).unwrap();
    }
    // A link to an object other than the one that is renamed does not refer to the archive.
    let root = tree();
    let mut builder = tar::Builder::new(Vec::new());
    file(&mut builder, "one/a");
    let mut link = header(tar::EntryType::Link, 0);
    link.set_link_name_literal("two/a").unwrap();
    builder.append_data(&mut link, "one/b", &b""[..]).unwrap();
    let error = unpacked(root.path(), "/into/new", &builder.into_inner().unwrap()).unwrap_err();
    assert!(matches!(error, CopyError::Link { .. }), "{error}");
}

#[test]
fn a_cut_archive_leaves_no_partial_file() {
    let root = tree();
    let (_, bytes) = packed(root.path(), "/src/deep/er/b");
    for cut in [100_000, 600, bytes.len() - 1024] {
        let error = unpacked(root.path(), "/into", &bytes[..cut]).unwrap_err();
        assert!(error.to_string().contains("cut short"), "{error}");
    }
    fs::remove_file(root.path().join("into/b")).unwrap();
    assert_eq!(names(&root.path().join("into")), [""; 0]);
    let error = unpacked(root.path(), "/into", &[1; 2048]).unwrap_err();
    assert!(matches!(error, CopyError::Archive(_)), "{error}");
}

#[test]
fn files_that_do_not_tell_their_size_are_copied_with_their_contents() {
    let to = TempDir::new().unwrap();
    for path in ["/proc/cpuinfo", "/proc/self/mountinfo", "/sys/kernel/mm/ksm/run"] {
        if !Path::new(path).exists() {
            continue;
        }
        let (sum, bytes) = packed(Path::new("/"), path);
        unpacked(to.path(), "/copy", &bytes).unwrap();
        let copied = fs::read(to.path().join("copy")).unwrap();
        assert!(!copied.is_empty() && sum.bytes == copied.len() as u64, "{path}");
        if !path.contains("mountinfo") {
            assert_eq!(copied.len(), fs::read(path).unwrap().len(), "{path}");
        }
    }
}

#[test]
fn holes_are_kept_or_filled() {
    let root = TempDir::new().unwrap();
    for (name, size, pieces) in [
        ("small", 50_000, &[(4096, 1), (40_960, 4096)][..]),
        ("large", 9 << 20, &[(0, 4096), (4 << 20, 100_000)]),
        ("empty", 1 << 20, &[]),
        ("ends", 1 << 20, &[((1 << 20) - 4096, 4096)]),
    ] {
        let file = File::create(root.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, len) in pieces {
            file.write_all_at(&vec![9; *len], *at).unwrap();
        }
        setxattr(root.path().join(name), "user.x", &[1; 900], XattrFlags::empty()).unwrap();
        let ranges = |path: &Path| {
            let file = File::open(path).unwrap();
            inlay_images::import::dir::content::data_ranges(&file, size).unwrap()
        };
        let (from, to) = (root.path().join(name), root.path().join("copy"));
        for (holes, kept) in [(Holes::Kept, true), (Holes::Filled, false)] {
            let mut bytes = Vec::new();
            pack(&Root::open(root.path()).unwrap(), Path::new(name), holes, &mut bytes).unwrap();
            assert_eq!(bytes.len() as u64 > size, !kept, "{name}");
            unpacked(root.path(), "/copy", &bytes).unwrap();
            assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap(), "{name}");
            assert!(!kept || ranges(&to) == ranges(&from), "{name}");
        }
    }
}

#[test]
fn a_tree_deeper_than_any_path_is_copied() {
    let (from, to) = (TempDir::new_in("/dev/shm").unwrap(), TempDir::new_in("/dev/shm").unwrap());
    let mut at = rustix::fs::open(from.path(), rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    let depth = 5000;
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "dd", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "dd", rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    let (sum, bytes) = packed(from.path(), "/dd");
    assert_eq!(sum.objects, depth);
    let made = unpacked(to.path(), "/", &bytes).unwrap();
    assert_eq!(made.objects, depth);
    let (again, _) = packed(to.path(), "/dd");
    assert_eq!(again.objects, depth);
    for dir in [from, to] {
        inlay_base::remove::remove_tree(&dir.keep()).unwrap();
    }
}

#[test]
fn a_path_that_no_archive_holds_is_an_error_that_says_so() {
    let from = TempDir::new_in("/dev/shm").unwrap();
    let mut at = rustix::fs::open(from.path(), rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    let name = "n".repeat(255);
    for _ in 0..600 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &name, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    }
    let root = Root::open(from.path()).unwrap();
    let below = Path::new(&name).join(&name);
    for path in [name.clone(), format!("{name}/.")] {
        let error = pack(&root, Path::new(&path), Holes::Kept, std::io::sink()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a path of more than 131072 bytes") && text.len() < 2000, "{text}");
        let CopyError::TooLong { path, .. } = error else { panic!("{text}") };
        assert!(path.starts_with(&below), "{text}");
    }
    inlay_base::remove::remove_tree(&from.keep()).unwrap();
}

#[test]
fn wide_directories_are_listed_in_parts() {
    let from = TempDir::new_in("/dev/shm").unwrap();
    // Deeper than the number of directories kept open, and with more of them than names are kept.
    let deep = from.path().join("top").join("d/".repeat(40));
    for number in 0..3000 {
        fs::create_dir_all(deep.join(format!("{number:04}/in"))).unwrap();
    }
    let (sum, bytes) = packed(from.path(), "/top");
    assert_eq!(sum, Packed { objects: 41 + 6000, bytes: 0, left_out: 0 });
    let to = TempDir::new_in("/dev/shm").unwrap();
    assert_eq!(unpacked(to.path(), "/", &bytes).unwrap().objects, 41 + 6000);
    assert_eq!(names(&to.path().join("top").join("d/".repeat(40))).len(), 3000);
}

#[test]
fn archives_in_any_order_keep_the_times_of_directories() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, bytes: &'static [u8]| {
        builder.append_data(&mut header(kind, bytes.len() as u64), name, bytes).unwrap();
    };
    add("t/dir/", tar::EntryType::Directory, b"");
    add("t/other/", tar::EntryType::Directory, b"");
    add("t/other/file", tar::EntryType::Regular, b"1");
    add("t/dir/file", tar::EntryType::Regular, b"2");
    add("t/unmentioned/file", tar::EntryType::Regular, b"3");
    add("t/other/late", tar::EntryType::Regular, b"4");
    let plain = builder.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let compressed = [plain.clone(), gzip.finish().unwrap(), zstd::encode_all(&*plain, 1).unwrap()];
    for bytes in compressed {
        let to = TempDir::new().unwrap();
        unpacked(to.path(), "/", &bytes).unwrap();
        let stat = |name: &str| fs::metadata(to.path().join("t").join(name)).unwrap();
        for dir in ["dir", "other"] {
            assert_eq!(stat(dir).mtime(), 1_000_000_000, "{dir}");
            assert_eq!(stat(dir).mode() & 0o7777, 0o644, "{dir}");
        }
        assert_eq!(stat("unmentioned").mode() & 0o7777, 0o755);
        assert!(stat("unmentioned").mtime() > 1_500_000_000, "as if made by mkdir");
        assert_eq!(names(&to.path().join("t/other")), ["file", "late"]);
    }
}

#[test]
fn objects_of_other_kinds_take_each_others_places() {
    let root = tree();
    let (_, file) = packed(root.path(), "/src/a");
    let (_, link) = packed(root.path(), "/src/out");
    let (_, pipe) = packed(root.path(), "/src/pipe");
    let (_, dir) = packed(root.path(), "/src/deep");
    fs::create_dir(root.path().join("x")).unwrap();
    for (bytes, kind) in
        [(&file, 0o100_000), (&link, 0o120_000), (&pipe, 0o010_000), (&file, 0o100_000)]
    {
        // A symlink is replaced, not followed, even a dangling one.
        unpacked(&root.path().join("x"), "/name", bytes).unwrap();
        let found = fs::symlink_metadata(root.path().join("x/name")).unwrap();
        assert_eq!(found.mode() & 0o170_000, kind);
    }
    let error = unpacked(root.path(), "/x/name", &dir).unwrap_err().to_string();
    assert!(error.contains("not a directory"), "{error}");
    // A directory is not replaced by another kind of object.
    fs::create_dir(root.path().join("x/a")).unwrap();
    let error = unpacked(root.path(), "/x", &file).unwrap_err().to_string();
    assert!(error.contains("a directory is in the way"), "{error}");
    assert_eq!(names(&root.path().join("x")), ["a", "name"]);
}

#[test]
fn devices_are_not_made_and_sockets_are_left_out() {
    let root = tree();
    let device = rustix::fs::makedev(1, 3);
    let (cwd, null) = (rustix::fs::CWD, root.path().join("src/null"));
    mknodat(cwd, &null, FileType::CharacterDevice, Mode::RWXU, device).unwrap();
    mknodat(cwd, root.path().join("src/disk"), FileType::BlockDevice, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("src/socket")).unwrap();
    let (sum, bytes) = packed(root.path(), "/src");
    assert_eq!((sum.objects, sum.left_out), (10, 1));
    let made = unpacked(root.path(), "/into", &bytes).unwrap();
    assert_eq!((made.objects, made.left_out), (8, 2));
    assert!(!root.path().join("into/src/null").exists());
}

#[test]
fn a_file_that_is_a_mount_point_gets_its_contents_and_stays_one() {
    let root = tree();
    let (mounted, target) = (root.path().join("mounted"), root.path().join("into/a"));
    fs::write(&mounted, "much longer than it will be").unwrap();
    fs::write(&target, "below").unwrap();
    rustix::mount::mount_bind(&mounted, &target).unwrap();
    let (_, bytes) = packed(root.path(), "/src/a");
    let copied = unpacked(root.path(), "/into", &bytes);
    let seen = fs::read(&target).unwrap();
    // A symlink would detach the mount, as does a rename from another mount namespace.
    let (_, link) = packed(root.path(), "/src/out");
    let refused = unpacked(&root.path().join("into"), "/a", &link);
    let stays = fs::read(&target).unwrap();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    copied.unwrap();
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("something is mounted there") && stays == b"alpha", "{error}");
    assert_eq!((seen, fs::read(&mounted).unwrap()), (b"alpha".to_vec(), b"alpha".to_vec()));
    assert_eq!(fs::metadata(&mounted).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read(&target).unwrap(), b"below");
    assert_eq!(names(&root.path().join("into")), ["a"]);
}

#[test]
fn files_without_holes_are_regular_entries() {
    let root = tree();
    let (_, bytes) = packed(root.path(), "/src");
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    let entries = archive.entries().unwrap().raw(true).map(Result::unwrap);
    let headers: Vec<_> = entries.filter(|entry| entry.header().entry_type().is_file()).collect();
    assert_eq!(headers.len(), 2);
    assert!(headers.iter().all(|entry| !entry.path_bytes().windows(9).any(|w| w == b"GNUSparse")));
}

#[test]
fn the_id_that_means_no_change_is_replaced_by_the_largest_one() {
    let root = tree();
    let (_, bytes) = packed(root.path(), "/src/a");
    let owners = Owners::Given { uid: u32::MAX, gid: u32::MAX };
    let keep = Keep { owners, privileges: FilePrivileges::Dropped };
    unpacked_as(root.path(), "/copy", &bytes, keep).unwrap();
    let found = fs::metadata(root.path().join("copy")).unwrap();
    assert_eq!((found.uid(), found.gid()), (u32::MAX - 1, u32::MAX - 1));
}

#[test]
fn hard_links_are_kept_for_as_many_files_as_there_are() {
    let root = TempDir::new().unwrap();
    let at = |name: &str| root.path().join(name);
    for dir in ["from/a", "from/b", "from/c"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for file in 0..50 {
        fs::write(at(&format!("from/a/{file}")), file.to_string()).unwrap();
        for dir in ["b", "c"] {
            fs::hard_link(at(&format!("from/a/{file}")), at(&format!("from/{dir}/{file}")))
                .unwrap();
        }
    }
    let (sum, bytes) = packed(root.path(), "/from");
    assert_eq!((sum.objects, sum.left_out), (154, 0));
    unpacked(root.path(), "/to", &bytes).unwrap();
    for file in 0..50 {
        let ids = ["a", "b", "c"].map(|dir| {
            let path = at(&format!("to/{dir}/{file}"));
            assert_eq!(fs::read(&path).unwrap(), file.to_string().into_bytes());
            fs::metadata(&path).unwrap().ino()
        });
        assert!(ids.iter().all(|id| id == ids.first().unwrap()), "{file}: {ids:?}");
    }
}
