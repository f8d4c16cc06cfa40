//! Tests a host's snapshots below the keeper's mounts. Requires root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::Duration;

use common::Snapshot;
use common::roles::{self, Session};
use inlay_fusefs::keeper::Claim;
use inlay_fusefs::{ConnectionKind, SnapshotFs};
use inlay_testkit::{Comparison, tree::EveryKind};

#[test]
fn play_a_role() {
    roles::play();
}

#[test]
fn a_snapshot_comes_out_of_its_slot_as_it_went_in() {
    let session = Session::new();
    EveryKind::default().make(&session.place.tree()).unwrap();
    let snapshot = Snapshot::of(&session.place.tree());
    let server = session.serve_here();
    let slot = server.attach(SnapshotFs::new(snapshot.index.clone(), snapshot.at_hand())).unwrap();
    assert_eq!(slot.get(), 1);
    Comparison::default().run(&session.place.tree(), &server.dir(slot).unwrap()).unwrap();
    server.unmount().unwrap();
}

#[test]
fn each_snapshot_lives_on_the_connection_that_costs_it_least() {
    let session = Session::new();
    let tree = session.place.tree();
    fs::write(tree.join("small"), "x").unwrap();
    let server = session.serve_here();
    let attach = |kind: ConnectionKind| {
        let snapshot = Snapshot::of(&tree);
        let fs = SnapshotFs::new(snapshot.index.clone(), snapshot.at_hand());
        let slot = server.attach(fs).unwrap();
        assert_eq!(server.kind(slot).unwrap(), kind);
        let dir = server.dir(slot).unwrap();
        Comparison::default().run(&tree, &dir).unwrap();
        let root = dir.parent().unwrap();
        let names: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [slot.to_string().as_str()]);
        slot
    };
    let plain = attach(ConnectionKind::Plain);
    fs::write(tree.join("large"), inlay_testkit::content::random("large", 8 << 20)).unwrap();
    attach(ConnectionKind::NoXattrs);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.join("small"), "user.a", b"b", flags).unwrap();
    attach(ConnectionKind::General);
    fs::remove_file(tree.join("large")).unwrap();
    attach(ConnectionKind::OpenLess);

    let dir = server.dir(plain).unwrap();
    let ended = server.detach(plain).unwrap();
    assert!(ended.within(roles::PATIENCE));
    assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 0);
    assert_eq!(fs::metadata(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
    fs::remove_file(tree.join("small")).unwrap();
    fs::write(tree.join("small"), "y").unwrap();
    // A name that was absent appears when its slot is attached.
    let next = dir.with_file_name("5");
    assert_eq!(fs::metadata(&next).unwrap_err().kind(), io::ErrorKind::NotFound);
    let again = attach(ConnectionKind::Plain);
    assert_eq!(again.get(), 5);
    assert_eq!(fs::read(next.join("small")).unwrap(), b"y");
    server.unmount().unwrap();
}

#[test]
fn a_server_that_is_killed_is_followed_by_another() {
    let session = Session::new();
    EveryKind::default().make(&session.place.tree()).unwrap();
    let snapshot = Snapshot::of(&session.place.tree());
    session.put(1, &snapshot, false);
    let first = session.serve();
    let dir = session.slot_dir(1);
    Comparison::default().run(&session.place.tree(), &dir).unwrap();
    let before = roles::inodes(&dir);
    first.kill();
    let _second = session.serve();
    rustix::fs::sync();
    Comparison::default().run(&session.place.tree(), &dir).unwrap();
    assert_eq!(roles::inodes(&dir), before);
    let status = session.keeper().status().unwrap();
    assert_eq!(status.deaths, 1);
}

#[test]
fn a_successor_takes_over_from_a_server_that_lives() {
    let session = Session::new();
    EveryKind::default().make(&session.place.tree()).unwrap();
    session.put(1, &Snapshot::of(&session.place.tree()), false);
    let mut first = session.serve();
    let dir = session.slot_dir(1);
    let successor = roles::Process::start("successor", &session.place.state());
    assert!(first.until_ended().success());
    Comparison::default().run(&session.place.tree(), &dir).unwrap();
    let status = session.keeper().status().unwrap();
    assert_eq!((status.server, status.deaths), (Some(successor.0.id()), 0));
}

#[test]
fn one_process_serves_once() {
    let session = Session::new();
    let server = session.serve_here();
    let refused = session.keeper().claim(Claim::TakeOver).unwrap_err();
    assert!(refused.to_string().contains("serves already"), "{refused}");
    server.unmount().unwrap();
}

#[test]
fn open_files_and_bind_mounts_of_a_detached_slot_are_still_served() {
    let session = Session::new();
    let (tree, mnt) = (session.place.tree(), session.place.mnt());
    fs::create_dir(tree.join("dir")).unwrap();
    fs::write(tree.join("dir/file"), "some text").unwrap();
    fs::write(tree.join("dir/other"), "another").unwrap();
    let snapshot = Snapshot::of(&tree);
    let server = session.serve_here();
    for bound in [false, true] {
        let fs = SnapshotFs::new(snapshot.index.clone(), snapshot.at_hand());
        let slot = server.attach(fs).unwrap();
        let dir = server.dir(slot).unwrap();
        let file = File::open(dir.join("dir/file")).unwrap();
        if bound {
            assert!(
                Command::new("mount").arg("--bind").arg(&dir).arg(&mnt).status().unwrap().success()
            );
        }
        let ended = server.detach(slot).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(server.sweep(), 1);
        assert!(!ended.within(Duration::ZERO));
        let mut text = [0; 9];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"some text");
        if bound {
            assert_eq!(fs::read(mnt.join("dir/other")).unwrap(), b"another");
            rustix::mount::unmount(&mnt, rustix::mount::UnmountFlags::empty()).unwrap();
        }
        drop(file);
        server.sweep();
        assert!(ended.within(roles::PATIENCE));
    }
    server.unmount().unwrap();
}

#[test]
fn a_detached_slot_that_is_in_use_is_known_to_the_next_server() {
    let session = Session::new();
    let tree = session.place.tree();
    fs::create_dir(tree.join("dir")).unwrap();
    fs::write(tree.join("dir/file"), "some text").unwrap();
    fs::write(tree.join("dir/other"), "another").unwrap();
    session.put(1, &Snapshot::of(&tree), false);
    session.put(2, &Snapshot::of(&tree), false);
    let first = session.serve();
    let (dir, other) = (session.slot_dir(1), session.slot_dir(2));
    // The kernel asks once whether closes need a FLUSH, and starting a child process closes the
    // file that is open here.
    assert_eq!(fs::read(dir.join("dir/other")).unwrap(), b"another");
    let file = File::open(dir.join("dir/file")).unwrap();
    let inode = fs::metadata(other.join("dir/file")).unwrap().ino();
    session.tell("detach 1");
    first.kill();
    let second = session.serve();
    let mut text = [0; 9];
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"some text");
    assert_eq!(fs::metadata(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(fs::metadata(other.join("dir/file")).unwrap().ino(), inode);
    drop(file);
    session.tell("sweep");
    second.kill();
    let kept = session.keeper().claim(Claim::WhenFree).unwrap();
    let slots: Vec<_> = kept.slots().iter().map(|kept| (kept.slot.get(), kept.detached)).collect();
    assert_eq!(slots, [(2, false)]);
}
