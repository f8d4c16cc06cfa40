//! Tests individual features: overlayfs metadata, paths left out by plans, hostile input.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use inlay_store::format::FileKind;
use inlay_store::ids::Kind;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};

use super::kernel::make_lower;
use super::world::*;
use crate::*;

/// Creates a store with the snapshot of a directory.
fn lower_world() -> (World, tempfile::TempDir, Lower) {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    make_lower(dir.path());
    let lower = world.import(dir.path(), Kind::Directory);
    (world, dir, lower)
}

/// An upper directory written by the test rather than by an overlay.
struct Upper(tempfile::TempDir);

impl Upper {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn subject(&self, lower: Option<Lower>) -> Simple {
        Simple::new(View { lower, upper: Some(self.0.path().to_owned()), owners: None }, "")
    }

    fn mark(&self, name: &str, attribute: &str, value: &[u8]) {
        let attribute = format!("trusted.overlay.{attribute}");
        lsetxattr(self.path(name), attribute, value, XattrFlags::empty()).unwrap();
    }

    fn whiteout(&self, name: &str) {
        mknodat(CWD, self.path(name), FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
            .unwrap();
    }
}

fn names(listing: &Listing) -> Vec<String> {
    listing.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

fn has(listing: &Listing, name: &str) -> bool {
    listing.contains_key(name.as_bytes())
}

#[test]
fn whiteouts_of_both_forms_and_opaque_directories_hide_lower_entries() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    upper.whiteout("zero");
    fs::create_dir(upper.path("g")).unwrap();
    File::create(upper.path("g/file-3")).unwrap();
    upper.mark("g/file-3", "whiteout", b"");
    upper.whiteout("g/never-there");
    fs::create_dir_all(upper.path("a/b")).unwrap();
    upper.mark("a/b", "opaque", b"y");
    fs::write(upper.path("a/b/own"), "new").unwrap();
    let captured = world.capture(&upper.subject(Some(lower))).unwrap();
    let listing = world.list(captured.record.id);
    for gone in ["zero", "g/file-3", "g/never-there", "a/b/small", "a/b/c"] {
        assert!(!has(&listing, gone), "{gone}");
    }
    for there in ["g/file-2", "a/b/own", "a/tiny", "a/d/sparse"] {
        assert!(has(&listing, there), "{there}");
    }
    assert!(
        listing.values().all(|seen| seen.xattrs.keys().all(|k| !k.starts_with(b"trusted.overlay")))
    );
}

#[test]
fn a_directory_hides_a_file_and_a_file_a_directory() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    fs::write(upper.path("a"), "a file now").unwrap();
    fs::create_dir(upper.path("zero")).unwrap();
    fs::write(upper.path("zero/in"), "x").unwrap();
    let listing = world.list(world.capture(&upper.subject(Some(lower))).unwrap().record.id);
    assert_eq!(listing[&b"a"[..]].attr.kind, FileKind::Regular);
    assert!(!has(&listing, "a/b") && has(&listing, "zero/in"));
}

#[test]
fn redirects_lead_to_names_beside_and_to_paths_from_the_root() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    fs::create_dir_all(upper.path("moved/deeper")).unwrap();
    upper.mark("moved", "redirect", b"e");
    // In a moved directory, a sibling name is relative to the directory's origin.
    upper.mark("moved/deeper", "redirect", b"f");
    fs::create_dir(upper.path("far")).unwrap();
    upper.mark("far", "redirect", b"/a/b");
    let listing = world.list(world.capture(&upper.subject(Some(lower.clone()))).unwrap().record.id);
    for there in ["moved/linked", "moved/deeper/x", "moved/f/x", "far/small", "far/c/large"] {
        assert!(has(&listing, there), "{there}: {:?}", names(&listing));
    }
    upper.mark("far", "redirect", b"../b");
    let error = world.capture(&upper.subject(Some(lower))).unwrap_err().to_string();
    assert!(error.contains("far") && error.contains("redirect"), "{error}");
}

#[test]
fn only_attributes_of_a_metacopy_are_its_own() {
    let (world, _dir, lower) = lower_world();
    let whole = world.list_index(&lower.index);
    let upper = Upper::new();
    let large = File::create(upper.path("renamed")).unwrap();
    large.set_len(400_000).unwrap();
    large.set_permissions(Permissions::from_mode(0o600)).unwrap();
    upper.mark("renamed", "metacopy", b"");
    upper.mark("renamed", "redirect", b"/a/b/c/large");
    let captured = world.capture(&upper.subject(Some(lower.clone()))).unwrap();
    assert_eq!(captured.stats.files_read, 0);
    let listing = world.list(captured.record.id);
    let renamed = &listing[&b"renamed"[..]];
    assert_eq!(renamed.contents, whole[&b"a/b/c/large"[..]].contents);
    assert_eq!(renamed.attr.perm, 0o600);
    // If its content is missing, it is an error rather than an empty file.
    for redirect in ["/a/b/c/gone", "/a/b", "/a/tiny"] {
        upper.mark("renamed", "redirect", redirect.as_bytes());
        let error = world.capture(&upper.subject(Some(lower.clone()))).unwrap_err();
        assert!(matches!(error, CaptureError::Overlay { .. }), "{redirect}: {error}");
    }
}

#[test]
fn lower_layers_are_neither_read_nor_stored_again() {
    let (world, dir, lower) = lower_world();
    let upper = Upper::new();
    fs::create_dir(upper.path("g")).unwrap();
    fs::write(upper.path("g/new"), vec![7; 5000]).unwrap();
    let before = world.blobs();
    let captured = world.capture(&upper.subject(Some(lower.clone()))).unwrap();
    assert_eq!((captured.stats.files_read, captured.stats.bytes_read), (1, 5000));
    assert_eq!(world.blobs(), before + 1);
    assert_eq!(captured.record.parent, Some(lower.id));
    // Content that the lower snapshot has under any name is not stored again either.
    fs::copy(dir.path().join("a/b/c/large"), upper.path("g/copy")).unwrap();
    let captured = world.capture(&upper.subject(Some(lower))).unwrap();
    assert_eq!(captured.stats.stored_bytes, 0);
}

#[test]
fn unchanged_files_are_neither_read_nor_stored_again() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    for n in 0..50 {
        fs::write(upper.path(&format!("file-{n}")), vec![n; 1000 * usize::from(n) + 1]).unwrap();
    }
    symlink("file-1", upper.path("link")).unwrap();
    lsetxattr(upper.path("file-7"), "user.note", b"seen", XattrFlags::empty()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let subject = upper.subject(Some(lower));
    let first = world.capture(&subject).unwrap();
    assert_eq!(
        (first.unchanged, first.stats.files_read, first.stats.files_set_aside),
        (false, 50, 0)
    );
    let blobs = world.blobs();
    let second = world.capture(&subject).unwrap();
    assert_eq!((second.unchanged, second.stats.files_read), (true, 0));
    assert_eq!((second.record.id, world.blobs()), (first.record.id, blobs));
    fs::write(upper.path("file-3"), b"other").unwrap();
    let third = world.capture(&subject).unwrap();
    assert_eq!((third.unchanged, third.stats.files_read), (false, 1));
    assert_eq!(third.record.parent, Some(first.record.id));
    let listing = world.list(third.record.id);
    assert_eq!(listing[&b"file-7"[..]].xattrs[&b"user.note"[..]], b"seen");
    assert_eq!(listing[&b"link"[..]].target, b"file-1");
}

#[test]
fn a_damaged_list_of_seen_files_is_harmless() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    fs::write(upper.path("file"), vec![1; 3000]).unwrap();
    fs::write(upper.path("other"), vec![2; 3000]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let subject = upper.subject(Some(lower));
    let first = world.capture(&subject).unwrap();
    let seen = world.seen_files().pop().unwrap();
    let good = fs::read(&seen).unwrap();
    for bad in [&b""[..], b"nonsense", &good[..good.len() / 2]] {
        fs::write(&seen, bad).unwrap();
        let again = world.capture(&subject).unwrap();
        assert_eq!((again.record.id, again.stats.files_read), (first.record.id, 2));
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&seen, bad).unwrap();
        assert_eq!(world.capture(&subject).unwrap().record.id, first.record.id);
    }
    // Intact, but of a snapshot that the store has lost.
    fs::write(&seen, good).unwrap();
    let store = world.host.state().embedded_store();
    fs::remove_file(store.join(format!("snapshots/{}.json", first.record.id))).unwrap();
    let again = world.capture(&subject).unwrap();
    assert_eq!((again.record.id, again.stats.files_read), (first.record.id, 2));
}

#[test]
fn grafts_show_mounted_trees_and_left_out_paths_stay_empty() {
    let (world, dir, lower) = lower_world();
    let upper = Upper::new();
    fs::create_dir_all(upper.path("run/secrets")).unwrap();
    fs::write(upper.path("run/secrets/under"), "hidden").unwrap();
    fs::write(upper.path("hosts"), "of the image").unwrap();
    let inner = Upper::new();
    fs::create_dir_all(inner.path("project/deep")).unwrap();
    fs::write(inner.path("project/mine"), "from the graft").unwrap();
    fs::write(inner.path("project/deep/tmpfs-here"), "hidden").unwrap();
    let mut subject = upper.subject(Some(lower.clone()));
    let graft = |at: &str, view: View, path: &str| Graft { at: at.into(), view, path: path.into() };
    let inner_view =
        View { lower: Some(lower.clone()), upper: Some(inner.0.path().to_owned()), owners: None };
    let read_only = View { lower: Some(lower), upper: None, owners: None };
    subject.0.grafts = vec![
        graft("a/b", inner_view, "project"),
        graft("a/b/deep/nested", read_only.clone(), "g"),
        graft("g/file-1", read_only.clone(), ""),
        graft("run/secrets/lost", read_only, ""),
    ];
    fs::create_dir(inner.path("project/deep/nested")).unwrap();
    let left_out = |path: &str, why, underneath| LeftOut { path: path.into(), why, underneath };
    subject.0.left_out = vec![
        left_out("run/secrets", LeftOutWhy::Secret, Underneath::Empty),
        left_out("hosts", LeftOutWhy::FileSystem("ext4".into()), Underneath::Empty),
        left_out("a/b/deep/tmpfs-here", LeftOutWhy::LiveMount, Underneath::Empty),
        left_out("e", LeftOutWhy::LiveMount, Underneath::Kept),
    ];
    let captured = world.capture(&subject).unwrap();
    let listing = world.list(captured.record.id);
    for there in ["a/b/mine", "a/b/deep/nested/file-0", "e/f/x", "run/secrets", "g/file-1/a/tiny"] {
        assert!(has(&listing, there), "{there}: {:?}", names(&listing));
    }
    for gone in ["a/b/small", "a/b/c", "run/secrets/under", "run/secrets/lost"] {
        assert!(!has(&listing, gone), "{gone}");
    }
    for empty in ["hosts", "a/b/deep/tmpfs-here"] {
        assert_eq!(listing[empty.as_bytes()].attr.size, 0, "{empty}");
    }
    let said: Vec<_> = captured.left_out.iter().map(|l| (l.path.as_path(), &l.why)).collect();
    assert!(said.contains(&(Path::new("run/secrets"), &LeftOutWhy::Secret)));
    let inside = LeftOutWhy::Inside("run/secrets".into());
    assert!(said.contains(&(Path::new("run/secrets/lost"), &inside)), "{said:?}");
    drop(dir);
}

#[test]
fn excluded_patterns_are_left_out_of_both_layers_and_said() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    fs::create_dir_all(upper.path("a/target/deep")).unwrap();
    fs::write(upper.path("a/target/deep/out"), vec![1; 5000]).unwrap();
    fs::write(upper.path("a/note.log"), "x").unwrap();
    fs::write(upper.path("a/keep.log"), "x").unwrap();
    let options = CaptureOptions {
        exclude: ["target/", "*.log", "!keep.log", "/g"].map(str::to_owned).into(),
        ..world.options()
    };
    let captured = world.capture_with(&upper.subject(Some(lower)), &options).unwrap();
    let listing = world.list(captured.record.id);
    assert!(has(&listing, "a/keep.log") && has(&listing, "a/b/small"));
    for gone in ["a/target", "a/target/deep/out", "a/note.log", "g", "g/file-0"] {
        assert!(!has(&listing, gone), "{gone}");
    }
    assert_eq!(captured.stats.files_read, 1);
    let mut said: Vec<_> = captured.left_out.iter().map(|l| l.path.to_str().unwrap()).collect();
    said.sort_unstable();
    assert_eq!(said, ["a/note.log", "a/target", "g"]);
}

#[test]
fn a_filesystem_keeps_its_images_configuration_and_is_its_child() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    let options = CaptureOptions {
        kind: Kind::Filesystem,
        ttl: Some(Duration::from_mins(1)),
        ..world.options()
    };
    let captured = world.capture_with(&upper.subject(Some(lower.clone())), &options).unwrap();
    assert_eq!(captured.record.id.kind, Kind::Filesystem);
    assert_eq!((captured.record.parent, captured.record.ttl_s), (Some(lower.id), Some(60)));
    let index = world.lower(captured.record.id).index;
    assert_eq!(index.config(), lower.index.config());
    let memory = CaptureOptions { kind: Kind::Memory, ..world.options() };
    let refused = world.capture_with(&upper.subject(None), &memory).unwrap_err();
    assert!(matches!(refused, CaptureError::Kind(Kind::Memory)));
}

#[test]
fn an_unchanged_directory_gets_its_name_too() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    let first = world.capture(&upper.subject(Some(lower.clone()))).unwrap();
    let name: inlay_store::remote::Name = "kept".parse().unwrap();
    let options = CaptureOptions { name: Some(name.clone()), ..world.options() };
    let second = world.capture_with(&upper.subject(Some(lower)), &options).unwrap();
    assert!(second.unchanged);
    let record = world.host.wait(world.host.remote().name(&name)).unwrap().unwrap();
    assert_eq!(record.id, first.record.id);
}

#[test]
fn paths_that_are_no_directories_are_told() {
    let (world, _dir, lower) = lower_world();
    let upper = Upper::new();
    upper.whiteout("e");
    symlink("/etc", upper.path("link")).unwrap();
    for path in ["gone", "a/tiny", "a/tiny/x", "e", "e/f", "link", "link/x", "to-b"] {
        let mut subject = upper.subject(Some(lower.clone()));
        subject.0.path = path.into();
        let error = world.capture(&subject).unwrap_err();
        assert!(matches!(error, CaptureError::NoDirectory { .. }), "{path}: {error}");
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn pipes_and_devices_are_taken_without_being_opened() {
    let world = World::new();
    let upper = Upper::new();
    mknodat(CWD, upper.path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, upper.path("dev"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 1)).unwrap();
    mknodat(CWD, upper.path("sock"), FileType::Socket, Mode::RUSR, 0).unwrap();
    let listing = world.list(world.capture(&upper.subject(None)).unwrap().record.id);
    let kinds: Vec<_> = listing.values().map(|seen| seen.attr.kind).collect();
    let expected = [FileKind::Directory, FileKind::CharDevice, FileKind::Fifo, FileKind::Socket];
    assert_eq!(kinds, expected);
}

#[test]
fn limits_are_clear_errors() {
    let world = World::new();
    let upper = Upper::new();
    for n in 0..300 {
        fs::write(upper.path(&format!("{n}")), "").unwrap();
    }
    let with = |limits| CaptureOptions { limits, ..world.options() };
    let limits = CaptureLimits { entries: 200, ..CaptureLimits::default() };
    let error = world.capture_with(&upper.subject(None), &with(limits)).unwrap_err().to_string();
    assert!(error.contains("200 entries"), "{error}");
    fs::write(upper.path("large"), vec![1; 100_000]).unwrap();
    let sparse = File::create(upper.path("sparse")).unwrap();
    sparse.write_all_at(b"x", 1 << 40).unwrap();
    let limits = CaptureLimits { file_bytes: 99_999, ..CaptureLimits::default() };
    let error = world.capture_with(&upper.subject(None), &with(limits)).unwrap_err().to_string();
    assert!(error.contains("large") && error.contains("99999 bytes"), "{error}");
    let limits = CaptureLimits { read_bytes: 99_999, ..CaptureLimits::default() };
    let error = world.capture_with(&upper.subject(None), &with(limits)).unwrap_err().to_string();
    assert!(error.contains("99999 bytes that have to be read"), "{error}");
    world.capture(&upper.subject(None)).unwrap();
}

#[test]
fn a_deep_tree_is_walked_without_a_deep_stack_and_has_a_limit() {
    let world = World::new();
    let upper = Upper::new();
    let make = |from: &mut rustix::fd::OwnedFd, levels: u32| {
        for _ in 0..levels {
            let (dir, flags) = (&*from, rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::PATH);
            rustix::fs::mkdirat(dir, "deep-deep", Mode::RWXU).unwrap();
            *from = rustix::fs::openat(dir, "deep-deep", flags, Mode::empty()).unwrap();
        }
    };
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::PATH;
    let mut at = rustix::fs::open(upper.0.path(), flags, Mode::empty()).unwrap();
    make(&mut at, 4000);
    let captured = world.capture(&upper.subject(None)).unwrap();
    assert_eq!(captured.record.counts.directories, 4001);
    make(&mut at, 200);
    let error = world.capture(&upper.subject(None)).unwrap_err().to_string();
    assert!(error.contains("4096 levels"), "{error}");
}
