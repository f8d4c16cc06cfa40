//! What a mounted snapshot's objects are: read-only, and like those that were imported.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::time::SystemTime;

use inlay_testkit::Comparison;
use inlay_testkit::acl::{self, Entry};
use inlay_testkit::compare::data_ranges;
use inlay_testkit::tree::EveryKind;
use inlay_testkit::{attributes, content};
use rustix::fs::{CWD, FileType, IFlags, Mode, XattrFlags, makedev, mknodat, setxattr};
use rustix::io::Errno;

use crate::place::Place;

fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), makedev(major, minor)).unwrap();
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// The capability to read every file.
const DAC_READ_SEARCH: u32 = 2;

/// `struct vfs_cap_data`, revision 2, with the effective bit.
fn capability(number: u32) -> Vec<u8> {
    [0x0200_0001, 1 << number, 0, 0, 0].map(u32::to_le_bytes).concat()
}

/// Runs a program in the directory as an ordinary user.
fn as_user(user: u32, dir: &Path, words: &[&str]) -> Output {
    let id = user.to_string();
    Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .args(words)
        .current_dir(dir)
        .output()
        .unwrap()
}

#[test]
fn everything_comes_out_as_it_went_in() {
    let place = Place::new();
    EveryKind { entries: 200, large: 1 << 20 }.make(&place.tree()).unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    Comparison::default().run(&place.tree(), &place.mnt()).unwrap();
    mounted.unmount();
}

#[test]
fn stat_reflects_the_stored_data() {
    let place = Place::new();
    place.write("dir/one/file", content::random("x", 10_000));
    fs::create_dir(place.tree().join("dir/two")).unwrap();
    let hole = File::create(place.tree().join("hole")).unwrap();
    hole.set_len(10 << 20).unwrap();
    hole.write_all_at(b"x", 5 << 20).unwrap();
    let file = File::open(place.tree().join("dir/one/file")).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH;
    file.set_times(FileTimes::new().set_accessed(long_ago)).unwrap();
    let before = fs::metadata(place.tree().join("dir/one/file")).unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    let stat = fs::metadata(mounted.path("dir/one/file")).unwrap();
    let time = (before.mtime(), before.mtime_nsec());
    assert_eq!((stat.mtime(), stat.mtime_nsec()), time);
    assert_eq!((stat.atime(), stat.atime_nsec()), time);
    assert_eq!(
        (stat.blocks(), stat.blksize()),
        (10_000_u64.div_ceil(512).next_multiple_of(8), 4096)
    );
    let stat = fs::metadata(mounted.path("hole")).unwrap();
    assert_eq!((stat.len(), stat.blocks()), (10 << 20, 8));
    let stat = fs::metadata(mounted.path("dir")).unwrap();
    assert_eq!((stat.nlink(), stat.len(), stat.blocks()), (4, 0, 0));
    let inode = fs::metadata(mounted.path("dir/two")).unwrap().ino();
    mounted.unmount();
    let again = place.mount("base", &[]);
    assert_eq!(fs::metadata(again.path("dir/two")).unwrap().ino(), inode);
    again.unmount();
}

#[test]
fn hard_links_are_one_inode() {
    let place = Place::new();
    let file = place.write("a", "linked");
    fs::create_dir(place.tree().join("dir")).unwrap();
    fs::hard_link(&file, place.tree().join("dir/b")).unwrap();
    node(&place.tree().join("fifo"), FileType::Fifo, 0, 0);
    fs::hard_link(place.tree().join("fifo"), place.tree().join("fifo-2")).unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    for (one, two) in [("a", "dir/b"), ("fifo", "fifo-2")] {
        let [one, two] = [one, two].map(|name| fs::symlink_metadata(mounted.path(name)).unwrap());
        assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    }
    mounted.unmount();
}

#[test]
fn extended_attributes_are_kept() {
    let place = Place::new();
    let file = place.write("file", "x");
    set_attribute(&file, "user.binary", b"\0\xff\n");
    set_attribute(&file, "user.empty", b"");
    set_attribute(&file, "trusted.root", b"for root alone");
    set_attribute(&file, "security.capability", &capability(DAC_READ_SEARCH));
    let wanted = attributes::read(&file).unwrap();
    assert_eq!(wanted.len(), 4);
    place.import("base");
    let mounted = place.mount("base", &[]);
    assert_eq!(attributes::read(&mounted.path("file")).unwrap(), wanted);
    // As on any file system: names of trusted.* are root's alone to see.
    let seen = as_user(1000, &place.mnt(), &["getfattr", "-m-", "file"]);
    let seen = String::from_utf8(seen.stdout).unwrap();
    assert!(seen.contains("user.binary") && !seen.contains("trusted"), "{seen}");
    mounted.unmount();
}

#[test]
fn files_without_attributes_report_none() {
    let place = Place::with(&[("small", b"x"), ("dir/inside", b"y")]);
    for large in [false, true] {
        if large {
            place.write("large", content::random("large", 2 << 20));
        }
        place.import("base");
        for options in [&[][..], &["--rw", "--scratch"]] {
            let mounted = place.mount("base", options);
            for name in ["", "small", "dir", "large"] {
                let path = mounted.path(name);
                if name == "large" && !large {
                    continue;
                }
                let names = rustix::fs::listxattr(&path, &mut [0_u8; 64][..]);
                assert_eq!(names, Ok(0), "{name} {options:?}");
                let value = rustix::fs::getxattr(&path, "user.none", &mut [0_u8; 64][..]);
                assert_eq!(value, Err(Errno::NODATA), "{name} {options:?}");
                // Neither has it inode flags, and lsattr says so without an error.
                let flags = rustix::fs::ioctl_getflags(File::open(&path).unwrap()).unwrap();
                assert_eq!(flags & CHOSEN_FLAGS, IFlags::empty(), "{name} {options:?}");
            }
            mounted.unmount();
        }
    }
}

/// Flags that users set: file systems of this host show others of their own.
const CHOSEN_FLAGS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND).union(IFlags::NOATIME);

#[test]
fn access_lists_are_enforced() {
    let place = Place::new();
    let file = place.write("file", "secret");
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    let list = [
        Entry::Owner(6),
        Entry::User(1000, 4),
        Entry::OwningGroup(0),
        Entry::Mask(4),
        Entry::Other(0),
    ];
    set_attribute(&file, "system.posix_acl_access", &acl::encode(&list));
    fs::set_permissions(place.tree(), Permissions::from_mode(0o755)).unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    let read = |user| as_user(user, &place.mnt(), &["cat", "file"]);
    assert_eq!(read(1000).stdout, b"secret");
    assert!(!read(1001).status.success());
    mounted.unmount();
}

#[test]
fn programs_have_the_rights_they_were_given() {
    let place = Place::new();
    fs::set_permissions(place.tree(), Permissions::from_mode(0o755)).unwrap();
    let programs = [("id", "id", 0o4755), ("plain", "id", 0o755), ("cat", "cat", 0o755)];
    for (name, program, mode) in programs {
        let path = place.tree().join(name);
        fs::copy(Path::new("/usr/bin").join(program), &path).unwrap();
        chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    set_attribute(&place.tree().join("cat"), "security.capability", &capability(DAC_READ_SEARCH));
    let secret = place.write("secret", "read");
    fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    assert_eq!(as_user(1000, &place.mnt(), &["./id", "-u"]).stdout, b"0\n");
    assert_eq!(as_user(1000, &place.mnt(), &["./plain", "-u"]).stdout, b"1000\n");
    assert_eq!(as_user(1000, &place.mnt(), &["./cat", "secret"]).stdout, b"read");
    assert!(!as_user(1000, &place.mnt(), &["cat", "secret"]).status.success());
    mounted.unmount();
}

#[test]
fn device_nodes_work() {
    let place = Place::new();
    node(&place.tree().join("null"), FileType::CharacterDevice, 1, 3);
    node(&place.tree().join("zero"), FileType::CharacterDevice, 1, 5);
    node(&place.tree().join("fifo"), FileType::Fifo, 0, 0);
    node(&place.tree().join("socket"), FileType::Socket, 0, 0);
    place.import("base");
    let mounted = place.mount("base", &[]);
    // A device is not the snapshot's: it can be written though the mount is read-only.
    fs::write(mounted.path("null"), "anything").unwrap();
    let mut bytes = [1; 8];
    File::open(mounted.path("zero")).unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
    let kind = |name| fs::symlink_metadata(mounted.path(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    mounted.unmount();
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let path = place.tree().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(4 << 20).unwrap();
    for at in [64 << 10, 2 << 20] {
        file.write_all_at(&content::random("hole", 8192), at).unwrap();
    }
    // Zeros that were written are no hole.
    place.write("zeros", vec![0; 64 << 10]);
    // Blocks of attributes and preallocated ones do not fill a hole.
    let beside = place.tree().join("beside");
    for (name, hole_at) in [("attribute", 4096), ("preallocated", 1 << 20)] {
        let file = File::create(beside.with_file_name(name)).unwrap();
        for at in [0, hole_at + 4096] {
            file.write_all_at(&[1; 4096], at).unwrap();
        }
        if name == "preallocated" {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, 2 << 20, 4 << 20).unwrap();
        } else {
            set_attribute(&beside.with_file_name(name), "user.note", &[b'z'; 1000]);
        }
    }
    place.import("base");
    let mounted = place.mount("base", &[]);
    let ranges = |path: &Path| {
        let file = File::open(path).unwrap();
        data_ranges(&file, file.metadata().unwrap().len()).unwrap()
    };
    assert_eq!(ranges(&mounted.path("sparse")), [(65536, 73728), (2 << 20, (2 << 20) + 8192)]);
    assert_eq!(ranges(&mounted.path("zeros")), [(0, 64 << 10)]);
    for name in ["attribute", "preallocated"] {
        let wanted = ranges(&place.tree().join(name));
        assert_eq!(wanted.len(), 2, "{name}");
        assert_eq!(ranges(&mounted.path(name)), wanted, "{name}");
    }
    assert!(mounted.read("sparse") == fs::read(&path).unwrap());
    mounted.unmount();
}

#[test]
fn names_are_any_bytes() {
    let place = Place::new();
    let long = [0xe9; 255];
    let names: [&[u8]; 6] = [b"\xff\xfe", b"new\nline", b"\x01", b"-rf *", b".wh.plain", &long];
    for name in names {
        fs::write(place.tree().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let target = OsStr::from_bytes(b"not \xff UTF-8");
    symlink(target, place.tree().join("link")).unwrap();
    place.import("base");
    let mounted = place.mount("base", &[]);
    for name in names {
        assert_eq!(fs::read(place.mnt().join(OsStr::from_bytes(name))).unwrap(), name);
    }
    assert_eq!(fs::read_link(mounted.path("link")).unwrap(), Path::new(target));
    assert_eq!(fs::read_dir(place.mnt()).unwrap().count(), names.len() + 1);
    mounted.unmount();
}

#[test]
fn a_read_only_mount_takes_no_change() {
    let place = Place::with(&[("file", b"x"), ("dir/inside", b"y")]);
    let mounted = place.mount("base", &[]);
    let (file, new) = (mounted.path("file"), mounted.path("new"));
    let changes: [(&str, io::Result<()>); 12] = [
        ("create", fs::write(&new, "x")),
        ("write", OpenOptions::new().write(true).open(&file).map(drop)),
        ("append", OpenOptions::new().append(true).open(&file).map(drop)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(mounted.path("dir"))),
        ("mkdir", fs::create_dir(&new)),
        ("rename", fs::rename(&file, &new)),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", symlink("file", &new)),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o600))),
        ("chown", chown(&file, Some(1), None)),
        ("setxattr", setxattr(&file, "user.a", b"b", XattrFlags::empty()).map_err(Into::into)),
    ];
    for (what, outcome) in changes {
        let error = outcome.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()), "{what}: {error}");
    }
    assert_eq!(mounted.read("file"), b"x");
    mounted.unmount();
}
