//! Real mounts: what a program sees through the kernel. They need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use common::{Delayed, Place, Snapshot};
use inlay_fusefs::{ContentError, IfBusy, Mount, RequestCounts};
use inlay_store::pack::Content;
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use inlay_testkit::{Comparison, acl, content, tree::EveryKind};

fn is_mounted(path: &Path) -> bool {
    fs::metadata(path).unwrap().dev() != fs::metadata(path.parent().unwrap()).unwrap().dev()
}

fn counts(mount: &Mount) -> RequestCounts {
    mount.counters().snapshot()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn every_kind_of_object_comes_out_as_it_went_in() {
    let place = Place::new();
    EveryKind::default().make(&place.tree()).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mut mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    Comparison::default().run(&place.tree(), &place.mnt()).unwrap();
    let sparse = "sparse/several-holes";
    assert_eq!(
        fs::metadata(place.tree().join(sparse)).unwrap().blocks(),
        fs::metadata(place.mnt().join(sparse)).unwrap().blocks()
    );
    mount.unmount(IfBusy::Refuse).unwrap();
    assert!(!is_mounted(&place.mnt()));
}

#[test]
fn what_was_seen_once_is_not_asked_for_again() {
    let place = Place::new();
    EveryKind { entries: 300, large: 3 << 20 }.make(&place.tree()).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    let walk = || {
        let out =
            Command::new("find").arg(place.mnt()).args(["-printf", "%p %s %T@ %l\n"]).output();
        let absent = fs::symlink_metadata(place.mnt().join("sizes/no-such-file"));
        assert_eq!(absent.unwrap_err().kind(), io::ErrorKind::NotFound);
        let text = fs::read(place.mnt().join("sizes/text-4097")).unwrap();
        (out.unwrap().stdout, text)
    };
    let first = walk();
    assert!(first.0.len() > 10_000);
    let before = counts(&mount);
    assert!(before.lookup > 0 && before.readdirplus > 0 && before.readlink > 0);
    assert_eq!(walk(), first);
    let after = counts(&mount);
    // Opening and closing is all that the kernel still tells the server.
    let quiet = |c: RequestCounts| {
        (c.lookup, c.getattr, c.readlink, c.readdir, c.readdirplus, c.read_hit, c.read_miss)
    };
    assert_eq!(quiet(after), quiet(before));
}

#[test]
fn a_directory_of_100_000_entries_is_listed_completely() {
    let place = Place::new();
    let mut tree = Tree::new(TreeLimits::default());
    for number in 0..100_000 {
        let name = format!("{number}-with-a-name-of-some-length");
        let kind = NodeKind::Regular { size: number, content: Content::Hole };
        tree.insert(NodeId::ROOT, name.as_bytes(), Meta::default(), kind).unwrap();
    }
    let snapshot = Snapshot::written(&tree, common::packer(), &place.tree());
    let _mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    // Each has a size of its own.
    let mut sizes: Vec<_> = fs::read_dir(place.mnt())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    sizes.sort_unstable();
    assert!(sizes.into_iter().eq(0..100_000));
}

#[test]
fn access_lists_are_enforced_for_other_users() {
    let place = Place::new();
    let file = place.tree().join("file");
    fs::write(&file, "secret").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let list = acl::encode(&[
        acl::Entry::Owner(6),
        acl::Entry::User(4711, 4),
        acl::Entry::OwningGroup(0),
        acl::Entry::Mask(4),
        acl::Entry::Other(0),
    ]);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&file, "system.posix_acl_access", &list, flags).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    // A place that other users can reach, whatever the build directory's permissions are.
    let public = tempfile::Builder::new().prefix("inlay-test-").tempdir().unwrap();
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let _mount = snapshot.mount(snapshot.at_hand(), public.path());
    let read_as = |uid: &str| {
        let who = ["--reuid", uid, "--regid", uid, "--clear-groups", "cat"];
        Command::new("setpriv").args(who).arg(public.path().join("file")).output().unwrap()
    };
    assert_eq!(read_as("4711").stdout, b"secret");
    assert!(!read_as("4712").status.success());
    let groups = read_as("4712").stderr;
    assert!(String::from_utf8_lossy(&groups).contains("denied"));
}

#[test]
fn setuid_and_devices_work_unless_they_are_switched_off() {
    let place = Place::new();
    let id = place.tree().join("id");
    fs::copy("/usr/bin/id", &id).unwrap();
    chown(&id, Some(4713), Some(4713)).unwrap();
    fs::set_permissions(&id, fs::Permissions::from_mode(0o4755)).unwrap();
    let null = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, place.tree().join("null"), kind, mode, null).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let effective_user = || Command::new(place.mnt().join("id")).arg("-u").output().unwrap().stdout;
    let mut mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    assert_eq!(effective_user(), b"4713\n");
    File::options().write(true).open(place.mnt().join("null")).unwrap().write_all(b"x").unwrap();
    mount.unmount(IfBusy::Refuse).unwrap();

    let options = inlay_fusefs::MountOptions {
        privileges: inlay_fusefs::Privileges::Ignored,
        ..Default::default()
    };
    let _mount =
        Mount::new(snapshot.index.clone(), snapshot.at_hand(), &place.mnt(), &options).unwrap();
    assert_eq!(effective_user(), b"0\n");
    assert_eq!(errno(File::open(place.mnt().join("null"))), Some(libc::EACCES));
}

#[test]
fn nothing_can_be_written() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let _mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    assert_eq!(errno(File::create(place.mnt().join("new"))), Some(libc::EROFS));
    assert_eq!(errno(fs::write(place.mnt().join("file"), "y")), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(place.mnt().join("file"))), Some(libc::EROFS));
}

#[test]
fn a_mapped_file_has_the_files_bytes() {
    let place = Place::new();
    let bytes = content::random("mapped", 3 << 20);
    fs::write(place.tree().join("file"), &bytes).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let _mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    // python3 maps the file; the crate denies unsafe code, tests too.
    let program = "import mmap,sys; f=open(sys.argv[1],'rb'); \
                   sys.stdout.buffer.write(mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)[:])";
    let file = place.mnt().join("file");
    let out = Command::new("python3").args(["-c", program]).arg(file).output().unwrap();
    assert!(out.stdout == bytes, "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn many_readers_at_once_get_their_own_bytes() {
    let place = Place::new();
    for number in 0..16 {
        let bytes = content::random(&format!("file {number}"), 700_000 + number);
        fs::write(place.tree().join(number.to_string()), bytes).unwrap();
    }
    let snapshot = Snapshot::of(&place.tree());
    let source = Delayed::new(&snapshot);
    let mount = snapshot.mount(source.clone(), &place.mnt());
    let readers: Vec<_> = (0..16)
        .map(|number: usize| {
            let path = place.mnt().join(number.to_string());
            thread::spawn(move || {
                fs::read(path).unwrap()
                    == content::random(&format!("file {number}"), 700_000 + number)
            })
        })
        .collect();
    // More readers than threads: a waiting read holds no thread.
    source.until_waiting(16);
    while readers.iter().any(|reader| !reader.is_finished()) {
        source.answer();
        thread::yield_now();
    }
    assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
    assert!(counts(&mount).read_miss >= 16);
    assert_eq!(counts(&mount).failed, 0);
}

#[test]
fn metadata_is_served_while_every_read_waits() {
    let place = Place::new();
    for number in 0..20 {
        fs::write(place.tree().join(number.to_string()), content::random("x", 5000)).unwrap();
    }
    let snapshot = Snapshot::of(&place.tree());
    let source = Delayed::new(&snapshot);
    let _mount = snapshot.mount(source.clone(), &place.mnt());
    let readers: Vec<_> = (0..20)
        .map(|number| {
            let path = place.mnt().join(number.to_string());
            thread::spawn(move || fs::read(path))
        })
        .collect();
    source.until_waiting(20);
    assert_eq!(fs::read_dir(place.mnt()).unwrap().count(), 20);
    source.answer();
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap().len(), 5000);
    }
}

#[test]
fn a_source_that_fails_or_forgets_is_an_io_error_and_no_more() {
    let place = Place::new();
    fs::write(place.tree().join("file"), content::random("x", 5000)).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let source = Delayed::new(&snapshot);
    let mount = snapshot.mount(source.clone(), &place.mnt());
    let path = place.mnt().join("file");
    let read = || {
        let path = path.clone();
        thread::spawn(move || fs::read(path))
    };
    // The kernel asks a second time, page by page, when its read-ahead has failed.
    let until_done = |reader: &thread::JoinHandle<_>, act: &dyn Fn()| {
        while !reader.is_finished() {
            act();
            thread::yield_now();
        }
    };
    let failing = read();
    until_done(&failing, &|| source.fail(&ContentError::Timeout { object: "blob 0".into() }));
    assert_eq!(errno(failing.join().unwrap()), Some(libc::EIO));
    assert!(counts(&mount).failed > 0);
    let forgotten = read();
    until_done(&forgotten, &|| source.forget());
    assert_eq!(errno(forgotten.join().unwrap()), Some(libc::EIO));
    let good = read();
    until_done(&good, &|| source.answer());
    assert_eq!(good.join().unwrap().unwrap(), content::random("x", 5000));
}

#[test]
fn unmounting_while_a_read_waits_ends_cleanly() {
    let place = Place::new();
    fs::write(place.tree().join("file"), content::random("x", 5000)).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let source = Delayed::new(&snapshot);
    let mut mount = snapshot.mount(source.clone(), &place.mnt());
    let path = place.mnt().join("file");
    let reader = thread::spawn(move || fs::read(path));
    source.until_waiting(1);
    let busy = mount.unmount(IfBusy::Refuse).unwrap_err();
    assert!(busy.to_string().contains("is in use"), "{busy}");
    assert!(is_mounted(&place.mnt()));
    mount.unmount(IfBusy::Force).unwrap();
    reader.join().unwrap().unwrap_err();
    assert!(!is_mounted(&place.mnt()));
    // The answer that comes too late hurts nobody.
    source.answer();
}

#[test]
fn a_mount_that_was_detached_serves_what_is_open_and_then_ends() {
    let place = Place::new();
    let bytes = content::random("x", 2 << 20);
    fs::write(place.tree().join("file"), &bytes).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    let mut file = File::open(place.mnt().join("file")).unwrap();
    mount.detach().unwrap();
    assert!(!is_mounted(&place.mnt()));
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == bytes);
    drop(file);
    mount.ended().wait();
}

#[test]
fn a_detached_mount_that_is_still_used_can_be_ended() {
    let place = Place::new();
    fs::write(place.tree().join("file"), content::random("x", 2 << 20)).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mut mount = snapshot.mount(snapshot.at_hand(), &place.mnt());
    let file = File::open(place.mnt().join("file")).unwrap();
    mount.detach().unwrap();
    mount.unmount(IfBusy::Force).unwrap();
    file.read_at(&mut [0; 16], 0).unwrap_err();
}

#[test]
fn a_mount_that_is_dropped_is_gone() {
    let place = Place::new();
    let snapshot = Snapshot::of(&place.tree());
    drop(snapshot.mount(snapshot.at_hand(), &place.mnt()));
    assert!(!is_mounted(&place.mnt()));
}

#[test]
fn mount_points_that_are_no_directories_are_refused_by_name() {
    let place = Place::new();
    let snapshot = Snapshot::of(&place.tree());
    fs::write(place.mnt().join("file"), "").unwrap();
    for name in ["file", "absent"] {
        let at = place.mnt().join(name);
        let error = Mount::new(
            snapshot.index.clone(),
            Arc::clone(&snapshot.at_hand()),
            &at,
            &inlay_fusefs::MountOptions::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains(at.to_str().unwrap()), "{error}");
    }
}
