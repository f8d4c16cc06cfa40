//! Tests what a program sees of a snapshot through the kernel. Requires root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use common::roles::{self, Mounted};
use common::{Delayed, Place, Snapshot};
use inlay_fusefs::{ConnectionKind, ContentError, RequestCounts};
use inlay_store::pack::Content;
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use inlay_testkit::{Comparison, acl, content, tree::EveryKind};

#[test]
fn play_a_role() {
    roles::play();
}

fn counts(mount: &Mounted) -> RequestCounts {
    mount.server.counters().snapshot()
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn every_kind_of_object_comes_out_as_it_went_in() {
    let place = Place::new();
    EveryKind::default().make(&place.tree()).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand());
    Comparison::default().run(&place.tree(), &mount.dir).unwrap();
    let sparse = "sparse/several-holes";
    assert_eq!(
        fs::metadata(place.tree().join(sparse)).unwrap().blocks(),
        fs::metadata(mount.dir.join(sparse)).unwrap().blocks()
    );
}

/// Exercises everything that programs do with a read-only tree: listings, links, absent names,
/// attributes, and contents.
fn use_it(dir: &Path) -> (Vec<u8>, Vec<u8>) {
    let out = Command::new("find").arg(dir).args(["-printf", "%P %s %T@ %l\n"]).output();
    let absent = fs::symlink_metadata(dir.join("sizes/no-such-file"));
    assert_eq!(absent.unwrap_err().kind(), io::ErrorKind::NotFound);
    let text = fs::read(dir.join("sizes/text-4097")).unwrap();
    (out.unwrap().stdout, text)
}

/// Returns the request counts without requests that the kernel never caches.
fn quiet(c: RequestCounts) -> RequestCounts {
    RequestCounts { open: 0, opendir: 0, release: 0, releasedir: 0, statfs: 0, ..c }
}

#[test]
fn repeated_access_is_answered_from_kernel_caches() {
    let place = Place::new();
    EveryKind { entries: 300, large: 3 << 20 }.make(&place.tree()).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand());
    assert_eq!(mount.kind(), ConnectionKind::General);
    let first = use_it(&mount.dir);
    assert!(first.0.len() > 10_000);
    let before = counts(&mount);
    assert!(before.lookup > 0 && before.readdirplus > 0 && before.readlink > 0);
    assert_eq!(use_it(&mount.dir), first);
    // Only opens and closes still reach the server.
    assert_eq!(quiet(counts(&mount)), quiet(before));
}

#[test]
fn a_snapshot_without_attributes_and_large_files_is_used_without_a_request() {
    let place = Place::new();
    fs::create_dir(place.tree().join("sizes")).unwrap();
    for name in ["text-4097", "other", "third"] {
        fs::write(place.tree().join("sizes").join(name), content::random(name, 4097)).unwrap();
        std::os::unix::fs::symlink(name, place.tree().join(name)).unwrap();
    }
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand());
    assert_eq!(mount.kind(), ConnectionKind::Plain);
    let attributes = || {
        let file = mount.dir.join("sizes/other");
        let unknown = rustix::fs::getxattr(&file, "user.any", &mut [0u8; 16][..]).unwrap_err();
        assert_eq!(unknown, rustix::io::Errno::NODATA);
        let names = rustix::fs::listxattr(&file, &mut [0u8; 16][..]);
        assert_eq!(names, Ok(0));
    };
    let first = use_it(&mount.dir);
    attributes();
    let before = counts(&mount);
    // Unsupported operations are answered once; attributes are requested each time.
    assert_eq!((before.open, before.opendir, before.getxattr), (1, 1, 1));
    // Another test may fork while the file is open: then two processes close it at the same time.
    assert!(before.flush >= 1);
    assert_eq!(use_it(&mount.dir), first);
    attributes();
    let new = fs::read(mount.dir.join("sizes/third")).unwrap();
    assert_eq!(new, content::random("third", 4097));
    let after = counts(&mount);
    // `find` queries the size of the filesystem; the third file was read for the first time.
    let wanted = RequestCounts {
        statfs: after.statfs,
        read_hit: before.read_hit + 1,
        getxattr: before.getxattr + 1,
        listxattr: before.listxattr + 1,
        ..before
    };
    assert_eq!(after, wanted);
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
    let mount = snapshot.mount(snapshot.at_hand());
    // Each has a unique size.
    let mut sizes: Vec<_> = fs::read_dir(mount.dir)
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
    // A directory accessible to other users, independent of the build directory's permissions.
    let public = tempfile::Builder::new().prefix("inlay-test-").tempdir().unwrap();
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = snapshot.mount(snapshot.at_hand());
    let _bound = mount.bind(public.path());
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
fn setuid_and_devices_work() {
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
    let mount = snapshot.mount(snapshot.at_hand());
    let effective_user = || Command::new(mount.dir.join("id")).arg("-u").output().unwrap().stdout;
    assert_eq!(effective_user(), b"4713\n");
    File::options().write(true).open(mount.dir.join("null")).unwrap().write_all(b"x").unwrap();
}

#[test]
fn writes_fail() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand());
    assert_eq!(errno(File::create(mount.dir.join("new"))), Some(libc::EROFS));
    assert_eq!(errno(fs::write(mount.dir.join("file"), "y")), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(mount.dir.join("file"))), Some(libc::EROFS));
}

#[test]
fn a_mapped_file_has_the_files_bytes() {
    let place = Place::new();
    let bytes = content::random("mapped", 3 << 20);
    fs::write(place.tree().join("file"), &bytes).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(snapshot.at_hand());
    // python3 maps the file; the crate denies unsafe code, tests too.
    let program = "import mmap,sys; f=open(sys.argv[1],'rb'); \
                   sys.stdout.buffer.write(mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)[:])";
    let file = mount.dir.join("file");
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
    let mount = snapshot.mount(source.clone());
    let readers: Vec<_> = (0..16)
        .map(|number: usize| {
            let path = mount.dir.join(number.to_string());
            thread::spawn(move || {
                fs::read(path).unwrap()
                    == content::random(&format!("file {number}"), 700_000 + number)
            })
        })
        .collect();
    // More readers than threads: a waiting read holds no thread.
    source.until_waiting(16);
    inlay_testkit::wait::until("all readers", || {
        source.answer();
        readers.iter().all(thread::JoinHandle::is_finished)
    });
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
    let mount = snapshot.mount(source.clone());
    let readers: Vec<_> = (0..20)
        .map(|number| {
            let path = mount.dir.join(number.to_string());
            thread::spawn(move || fs::read(path))
        })
        .collect();
    source.until_waiting(20);
    assert_eq!(fs::read_dir(mount.dir).unwrap().count(), 20);
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
    let mount = snapshot.mount(source.clone());
    let path = mount.dir.join("file");
    let read = || {
        let path = path.clone();
        thread::spawn(move || fs::read(path))
    };
    // The kernel retries page by page after its read-ahead has failed.
    let until_done = |reader: &thread::JoinHandle<_>, act: &dyn Fn()| {
        inlay_testkit::wait::until("a reader", || {
            act();
            reader.is_finished()
        });
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
fn the_end_of_the_session_while_a_read_waits_is_an_error_to_the_reader() {
    let place = Place::new();
    fs::write(place.tree().join("file"), content::random("x", 5000)).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let source = Delayed::new(&snapshot);
    let mount = snapshot.mount(source.clone());
    let path = mount.dir.join("file");
    let reader = thread::spawn(move || fs::read(path));
    source.until_waiting(1);
    mount.unmount();
    reader.join().unwrap().unwrap_err();
    // A reply that comes too late is harmless.
    source.answer();
}

#[test]
fn a_request_that_panics_costs_one_error_and_no_thread() {
    let place = Place::new();
    fs::write(place.tree().join("file"), content::random("x", 5000)).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mount = snapshot.mount(Arc::new(common::Panics));
    for _ in 0..20 {
        assert_eq!(errno(fs::read(mount.dir.join("file"))), Some(libc::EIO));
    }
    assert!(counts(&mount).failed > 0);
    assert_eq!(fs::read_dir(&mount.dir).unwrap().count(), 1);
}
