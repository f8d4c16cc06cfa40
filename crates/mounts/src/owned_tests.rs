//! Tests queries of the mount table by path and by owner, and the removal of directories that were
//! created for mounts. They need root.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use super::target_tests::{Host, Sandbox, names};
use super::*;

const SCRATCH: WantedView = WantedView::Writable(UpperPlace::Scratch);

impl Sandbox {
    /// Unmounts `path` from inside, unknown to inlay, even if it is in use.
    pub(super) fn unmount_inside(&self, path: &str) {
        let detach = || {
            unmount(path, UnmountFlags::DETACH).map_err(MountError::io("unmount", path.as_ref()))
        };
        self.namespace().apart(detach).unwrap();
    }
}

#[test]
fn a_mount_that_is_ending_is_neither_counted_nor_found() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    fs::create_dir(host.dir.path().join("snapshot/sub")).unwrap();
    assert_eq!(host.mounts.count(), 0);
    let [a, b] = ["/a", "/b"].map(|path| host.mount(&sandbox, path, SCRATCH).unwrap().seen);
    let find = |path: &str| {
        let found = host.mounts.find(&sandbox.caller(), path.as_ref()).unwrap();
        found.map(|record| record.seen)
    };
    assert_eq!(host.mounts.count(), 2);
    assert!(host.mounts.has(a.number()) && host.mounts.has(b.number()));
    assert!(!host.mounts.has(a.number().max(b.number()) + 1));
    assert_eq!([find("/a"), find("/b")], [Some(a.clone()), Some(b.clone())]);
    assert_eq!([find("/a/sub"), find("/")], [None, None]);
    assert!(host.mounts.sweep().is_some(), "the kernel reports no changes of another namespace");

    let used = File::open(sandbox.inside("/b/file")).unwrap();
    host.umount(&sandbox, "/b", Umount::Lazily).unwrap();
    assert_eq!(host.mounts.count(), 1);
    assert!(host.mounts.has(a.number()) && !host.mounts.has(b.number()));
    assert_eq!([find("/a"), find("/b")], [Some(a), None]);
    assert_eq!(names(&sandbox.beneath("/")), ["a", "old"], "removed while it is in use");
    drop(used);
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn a_moved_mount_is_found_by_the_path_it_was_created_at() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    for path in ["/kept/m", "/dir/m", "/ended/m"] {
        host.mount(&sandbox, path, SCRATCH).unwrap();
    }
    let from = |owner: &str, path: &str| host.mounts.moved_from(owner, Path::new(path));
    assert_eq!(from("sb-1", "/dir/m"), None);
    fs::rename(sandbox.inside("/dir"), sandbox.inside("/moved")).unwrap();
    fs::rename(sandbox.inside("/ended"), sandbox.inside("/moved-too")).unwrap();
    let used = File::open(sandbox.inside("/moved-too/m/file")).unwrap();
    sandbox.unmount_inside("/moved-too/m");
    host.mounts.sweep();
    assert_eq!(from("sb-1", "/dir/m"), Some(PathBuf::from("/moved/m")));
    for (owner, path) in
        [("sb-2", "/dir/m"), ("sb-1", "/kept/m"), ("sb-1", "/ended/m"), ("sb-1", "/other")]
    {
        assert_eq!(from(owner, path), None, "{owner} {path}");
    }
    drop(used);
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn directories_that_hold_another_mount_are_handed_to_it() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    // An earlier mount elsewhere, and one at the same path in another namespace, do not get them.
    let other = Sandbox::new();
    host.mount(&other, "/x/z", SCRATCH).unwrap();
    for path in ["/w", "/x/y", "/x/z"] {
        host.mount(&sandbox, path, SCRATCH).unwrap();
    }
    host.umount(&sandbox, "/x/y", Umount::IfFree).unwrap();
    assert_eq!(names(&sandbox.beneath("/x")), ["z"]);
    host.umount(&sandbox, "/x/z", Umount::IfFree).unwrap();
    assert_eq!(names(&sandbox.beneath("/")), ["old", "w"]);
    assert!(other.beneath("/x/z").exists());
    host.mounts.end_owned_by("sb-1").unwrap();
    assert_eq!(names(&other.beneath("/")), ["old"]);
}

#[test]
fn a_mount_removes_only_leftovers_at_its_own_place() {
    let (host, sandbox, other) = (Host::new(), Sandbox::new(), Sandbox::new());
    let mut used = Vec::new();
    for one in [&sandbox, &other] {
        host.mount(one, "/x/y", SCRATCH).unwrap();
        used.push(File::open(one.inside("/x/y/file")).unwrap());
        one.unmount_inside("/x/y");
    }
    host.mounts.sweep();
    assert!(host.mounts.list().is_empty() && !host.mounts.is_empty());
    host.mount(&sandbox, "/z", WantedView::ReadOnly).unwrap();
    assert!(sandbox.beneath("/x/y").exists());

    let refused = host.mount(&sandbox, "/x/y", WantedView::ReadOnly).unwrap_err();
    assert!(matches!(refused, MountError::BeingMounted(_)), "{refused}");
    assert!(!sandbox.beneath("/x").exists() && other.beneath("/x/y").exists());
    let record = host.mount(&sandbox, "/x/y", WantedView::ReadOnly).unwrap();
    assert_eq!(record.made.len(), 2);
    host.mounts.end_owned_by("sb-1").unwrap();
    assert_eq!(names(&sandbox.beneath("/")), ["old"]);
    drop(used);
}
