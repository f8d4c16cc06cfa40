//! The comparison of trees finds each kind of difference, and finds none in equal trees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at the first surprise")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, lchown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use inlay_testkit::compare::{Difference, NotSame, What};
use inlay_testkit::tree::EveryKind;
use inlay_testkit::{Comparison, Holes, acl, scratch};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lremovexattr, lsetxattr, makedev, mknodat};

const RECIPE: EveryKind = EveryKind { entries: 5, large: 300_000 };

fn differences(comparison: &Comparison, left: &Path, right: &Path) -> Vec<Difference> {
    match comparison.run(left, right) {
        Ok(()) => Vec::new(),
        Err(NotSame::Different(differences)) => differences.0,
        Err(NotSame::Unreadable(path, error)) => panic!("{}: {error}", path.display()),
    }
}

#[test]
fn trees_of_one_recipe_are_the_same() {
    let scratch = scratch().unwrap();
    let (left, right) = (scratch.path().join("left"), scratch.path().join("right"));
    for root in [&left, &right] {
        fs::create_dir(root).unwrap();
        RECIPE.make(root).unwrap();
    }
    Comparison::default().run(&left, &right).unwrap();
}

/// What is done to one of two equal trees, with the path and the field that must be reported.
type Case = (&'static str, &'static str, fn(&Path));

fn keep_time(path: &Path, change: impl FnOnce(&Path)) {
    let time = fs::metadata(path).unwrap().modified().unwrap();
    change(path);
    File::open(path).unwrap().set_modified(time).unwrap();
}

const CASES: &[Case] = &[
    ("added", "right", |root| fs::write(root.join("added"), b"").unwrap()),
    ("sizes/text-1", "left", |root| fs::remove_file(root.join("sizes/text-1")).unwrap()),
    ("sizes/text-4096", "bytes", |root| {
        keep_time(&root.join("sizes/text-4096"), |path| {
            File::options().write(true).open(path).unwrap().write_all_at(b"X", 4000).unwrap();
        });
    }),
    ("sizes/text-4096", "size", |root| {
        let file = File::options().write(true).open(root.join("sizes/text-4096")).unwrap();
        file.set_len(4095).unwrap();
    }),
    ("sizes/text-0", "permissions", |root| {
        fs::set_permissions(root.join("sizes/text-0"), Permissions::from_mode(0o4644)).unwrap();
    }),
    ("sizes", "permissions", |root| {
        fs::set_permissions(root.join("sizes"), Permissions::from_mode(0o1755)).unwrap();
    }),
    ("", "permissions", |root| {
        fs::set_permissions(root, Permissions::from_mode(0o700)).unwrap();
    }),
    ("sizes/text-0", "owner", |root| lchown(root.join("sizes/text-0"), Some(3), None).unwrap()),
    ("sizes/text-0", "group", |root| lchown(root.join("sizes/text-0"), None, Some(3)).unwrap()),
    ("symbolic-links/dangling", "group", |root| {
        lchown(root.join("symbolic-links/dangling"), None, Some(3)).unwrap();
    }),
    ("times/one-nanosecond", "modified", |root| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(2);
        File::open(root.join("times/one-nanosecond")).unwrap().set_modified(time).unwrap();
    }),
    ("times/before-1970", "modified", |root| {
        let time = SystemTime::UNIX_EPOCH - Duration::from_millis(501);
        File::open(root.join("times/before-1970")).unwrap().set_modified(time).unwrap();
    }),
    ("symbolic-links/dangling", "target", |root| {
        fs::remove_file(root.join("symbolic-links/dangling")).unwrap();
        symlink("nowhere/at/alL", root.join("symbolic-links/dangling")).unwrap();
    }),
    ("special/null", "device", |root| {
        fs::remove_file(root.join("special/null")).unwrap();
        let mode = Mode::from_raw_mode(0o640);
        let device = makedev(1, 5);
        mknodat(CWD, root.join("special/null"), FileType::CharacterDevice, mode, device).unwrap();
    }),
    ("special/fifo", "type", |root| {
        fs::remove_file(root.join("special/fifo")).unwrap();
        fs::write(root.join("special/fifo"), b"").unwrap();
    }),
    ("hard-links/file-2", "hard links", |root| {
        fs::remove_file(root.join("hard-links/file-2")).unwrap();
        fs::write(root.join("hard-links/file-2"), b"one inode, three names\n").unwrap();
    }),
    ("duplicates/one", "link count", |root| {
        fs::remove_file(root.join("duplicates/one")).unwrap();
        fs::hard_link(root.join("duplicates/two"), root.join("duplicates/one")).unwrap();
    }),
    ("attributes/file", "user.plain", |root| {
        let path = root.join("attributes/file");
        lsetxattr(&path, "user.plain", b"other", XattrFlags::empty()).unwrap();
    }),
    ("attributes/file", "user.empty", |root| {
        lremovexattr(root.join("attributes/file"), "user.empty").unwrap();
    }),
    ("attributes/symlink", "trusted.more", |root| {
        let path = root.join("attributes/symlink");
        lsetxattr(&path, "trusted.more", b"", XattrFlags::empty()).unwrap();
    }),
    ("attributes/program-with-capability", "security.capability", |root| {
        let path = root.join("attributes/program-with-capability");
        lremovexattr(path, "security.capability").unwrap();
    }),
    ("access-lists/file", "system.posix_acl_access", |root| {
        use acl::Entry::{Mask, Other, Owner, OwningGroup, User};
        let entries = [Owner(6), User(1000, 4), OwningGroup(4), Mask(7), Other(0)];
        let path = root.join("access-lists/file");
        let name = "system.posix_acl_access";
        lsetxattr(&path, name, &acl::encode(&entries), XattrFlags::empty()).unwrap();
    }),
    ("access-lists/default", "system.posix_acl_default", |root| {
        lremovexattr(root.join("access-lists/default"), "system.posix_acl_default").unwrap();
    }),
    ("sparse/leading-hole", "data", |root| {
        keep_time(&root.join("sparse/leading-hole"), |path| {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[0; 4096], 0).unwrap();
        });
    }),
];

fn is_about(what: &What, field: &str) -> bool {
    match what {
        What::OnlyLeft => field == "left",
        What::OnlyRight => field == "right",
        What::Bytes(_) => field == "bytes",
        What::Field(name, ..) => *name == field,
        What::Attribute(name, ..) => name == field,
    }
}

#[test]
fn each_kind_of_difference_is_found() {
    let scratch = scratch().unwrap();
    let left = scratch.path().join("left");
    fs::create_dir(&left).unwrap();
    RECIPE.make(&left).unwrap();
    for (number, (path, field, change)) in CASES.iter().enumerate() {
        let right = scratch.path().join(format!("right-{number}"));
        fs::create_dir(&right).unwrap();
        RECIPE.make(&right).unwrap();
        change(&right);
        let found = differences(&Comparison::default(), &left, &right);
        assert!(
            found.iter().any(|d| d.path == Path::new(path) && is_about(&d.what, field)),
            "{path}: {field} is not among {found:?}"
        );
        fs::remove_dir_all(&right).unwrap();
    }
}

#[test]
fn ignored_properties_are_not_compared() {
    let scratch = scratch().unwrap();
    let (left, right) = (scratch.path().join("left"), scratch.path().join("right"));
    for root in [&left, &right] {
        fs::create_dir(root).unwrap();
        let file = File::create(root.join("file")).unwrap();
        file.set_len(1 << 20).unwrap();
    }
    let file = File::options().write(true).open(right.join("file")).unwrap();
    file.write_all_at(&[0; 4096], 0).unwrap();
    lsetxattr(right.join("file"), "user.a", b"", XattrFlags::empty()).unwrap();
    for root in [&left, &right] {
        File::open(root.join("file")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        File::open(root).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    let comparison = Comparison::default();
    assert_eq!(differences(&comparison, &left, &right).len(), 2);
    let comparison = comparison.holes(Holes::Ignore);
    assert_eq!(differences(&comparison, &left, &right).len(), 1);
    let comparison = comparison.without_attributes("user.");
    assert_eq!(differences(&comparison, &left, &right), []);
}
