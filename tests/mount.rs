//! Mounts as the command line makes them: recorded, writable, ended from inside and outside. They
//! need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../fusefs/tests/common/mod.rs"]
mod common;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Failing, Snapshot};
use inlay_fusefs::MountOptions;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_testkit::compare::{Difference, NotSame, What};
use inlay_testkit::{Comparison, Holes, content, tree::EveryKind};
use inlayfs::mount::{
    Ending, MountError, Registry, Request, Umount, UpperPlace, WantedView, serve, stop_signal,
    umount,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::oneshot;

const LONG: Duration = Duration::from_mins(1);

/// A source tree, a state directory and a mount point.
struct Place {
    dir: tempfile::TempDir,
    state: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self::with_state(OsStr::new("state"))
    }

    fn with_state(state: &OsStr) -> Self {
        let dir = inlay_testkit::scratch().unwrap();
        for name in ["tree", "mnt"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let state = dir.path().join(state);
        Self { dir, state }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn request(&self, snapshot: &Snapshot, view: WantedView) -> Request {
        Request {
            state: self.state.clone(),
            snapshot: SnapshotId { kind: Kind::Filesystem, index: snapshot.index.digest() },
            index: snapshot.index.clone(),
            source: snapshot.at_hand(),
            mountpoint: self.mnt(),
            view,
            options: MountOptions::default(),
        }
    }

    /// Nothing is mounted below the place, and the state directory holds no traces of mounts.
    fn assert_clean(&self) {
        let table = fs::read("/proc/self/mountinfo").unwrap();
        let here = self.dir.path().file_name().unwrap().as_bytes();
        assert!(!table.windows(here.len()).any(|piece| piece == here), "something is mounted");
        for dir in ["mounts", "upper"] {
            let Ok(entries) = fs::read_dir(self.state.join(dir)) else { continue };
            let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.iter().all(|name| name == ".lock"), "{dir}: {left:?}");
        }
    }
}

/// Serves while `visit` runs, then stops.
fn visit<T: Send + 'static>(
    request: Request,
    visit: impl FnOnce() -> T + Send + 'static,
) -> Result<T, MountError> {
    runtime().block_on(async {
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let visitor = tokio::task::spawn_blocking(move || {
            is_ready.blocking_recv().ok()?;
            let seen = visit();
            stop.send(()).unwrap();
            Some(seen)
        });
        let ready = |_: &_| ready.send(()).unwrap();
        let ending = serve(request, ready, async { drop(stopped.await) }).await?;
        assert_eq!(ending, Ending::Stopped);
        Ok(visitor.await.unwrap().unwrap())
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn scratch() -> WantedView {
    WantedView::Writable(UpperPlace::Scratch)
}

#[test]
fn a_writable_view_is_an_ordinary_root_filesystem() {
    let place = Place::new();
    let (tree, mnt) = (place.tree(), place.mnt());
    EveryKind { entries: 100, large: 2 << 20 }.make(&tree).unwrap();
    fs::copy("/usr/bin/id", tree.join("id")).unwrap();
    let request = place.request(&Snapshot::of(&tree), scratch());
    visit(request, move || {
        let all = Comparison::default().holes(Holes::Ignore);
        let outcome = all.without_attributes("trusted.overlay.").run(&tree, &mnt);
        // overlayfs counts no links of directories that it merges, as the root is.
        let Err(NotSame::Different(differences)) = outcome else { panic!("{outcome:?}") };
        assert!(matches!(&differences.0[..], [Difference { what, .. }]
                if matches!(what, What::Field("link count", ..))));
        assert!(Command::new(mnt.join("id")).stdout(Stdio::null()).status().unwrap().success());

        let mut file = File::options().append(true).open(mnt.join("sizes/text-4097")).unwrap();
        file.write_all(b"more").unwrap();
        file.sync_all().unwrap();
        assert_eq!(fs::metadata(mnt.join("sizes/text-4097")).unwrap().len(), 4101);
        fs::write(mnt.join("new"), "new").unwrap();
        // EXDEV without redirects.
        fs::rename(mnt.join("sizes"), mnt.join("renamed")).unwrap();
        assert!(fs::read(mnt.join("renamed/text-4097")).unwrap().ends_with(b"more"));
        fs::remove_file(mnt.join("renamed/random-1")).unwrap();
        fs::remove_dir_all(mnt.join("many")).unwrap();
        chown(mnt.join("renamed/text-1"), Some(12), Some(13)).unwrap();
        let (uid, gid) = {
            let stat = fs::metadata(mnt.join("renamed/text-1")).unwrap();
            (stat.uid(), stat.gid())
        };
        assert_eq!((uid, gid), (12, 13));
        assert!(!mnt.join("many").exists() && !mnt.join("renamed/random-1").exists());
        assert!(tree.join("many").exists());
    })
    .unwrap();
    place.assert_clean();
}

#[test]
fn the_whole_tree_is_one_device_so_that_nothing_is_skipped() {
    let place = Place::new();
    EveryKind { entries: 10, large: 1 << 20 }.make(&place.tree()).unwrap();
    let mnt = place.mnt();
    let request = place.request(&Snapshot::of(&place.tree()), scratch());
    visit(request, move || {
        fs::write(mnt.join("sizes/text-1"), "changed").unwrap();
        let device = fs::metadata(&mnt).unwrap().dev();
        for path in ["sizes", "sizes/text-1", "sizes/text-256", "special/null"] {
            assert_eq!(fs::symlink_metadata(mnt.join(path)).unwrap().dev(), device, "{path}");
        }
    })
    .unwrap();
}

#[test]
fn changing_attributes_fetches_no_contents() {
    let place = Place::new();
    fs::write(place.tree().join("file"), content::random("x", 3 << 20)).unwrap();
    let mnt = place.mnt();
    let snapshot = Snapshot::of(&place.tree());
    let request = Request { source: Arc::new(Failing), ..place.request(&snapshot, scratch()) };
    visit(request, move || {
        fs::set_permissions(mnt.join("file"), Permissions::from_mode(0o600)).unwrap();
        chown(mnt.join("file"), Some(5), None).unwrap();
        let stat = fs::metadata(mnt.join("file")).unwrap();
        assert_eq!((stat.mode() & 0o777, stat.uid(), stat.len()), (0o600, 5, 3 << 20));
    })
    .unwrap();
}

#[test]
fn kept_changes_come_back_with_their_snapshot_and_with_no_other() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let upper = place.dir.path().join("upper");
    let view = || WantedView::Writable(UpperPlace::Kept(upper.clone()));
    let mnt = place.mnt();
    visit(place.request(&snapshot, view()), move || fs::write(mnt.join("new"), "n").unwrap())
        .unwrap();
    let mnt = place.mnt();
    let again = place.request(&snapshot, view());
    // While it is mounted, nobody else may write there.
    let second = Place::new();
    let taken = second.request(&snapshot, view());
    let refused = visit(again, move || {
        assert_eq!(fs::read(mnt.join("new")).unwrap(), b"n");
        let refused = visit(taken, || ()).unwrap_err();
        second.assert_clean();
        refused
    })
    .unwrap();
    assert!(matches!(refused, MountError::UpperInUse(_)), "{refused}");
    fs::write(place.tree().join("file"), "other").unwrap();
    let other = place.request(&Snapshot::of(&place.tree()), view());
    let refused = visit(other, || ()).unwrap_err();
    assert!(matches!(refused, MountError::UpperOfOther { .. }), "{refused}");
    place.assert_clean();
}

#[test]
fn paths_with_odd_bytes_are_as_good_as_others() {
    let place = Place::with_state(OsStr::from_bytes(b"a:b,c\\d e\\:\xff\n\"'%$f=g"));
    fs::write(place.tree().join("file"), "x").unwrap();
    let snapshot = Snapshot::of(&place.tree());
    let mnt = place.mnt();
    visit(place.request(&snapshot, scratch()), move || {
        fs::write(mnt.join("file"), "y").unwrap();
    })
    .unwrap();
    place.assert_clean();
    assert_eq!(Registry::open(&place.state).unwrap().list().unwrap(), []);
}

#[test]
fn a_mount_point_is_taken_once() {
    let place = Place::new();
    let snapshot = Snapshot::of(&place.tree());
    let (first, second) =
        (place.request(&snapshot, WantedView::ReadOnly), place.request(&snapshot, scratch()));
    let state = place.state.clone();
    let refused = visit(first, move || {
        assert_eq!(Registry::open(&state).unwrap().list().unwrap().len(), 1);
        runtime().block_on(serve(second, |_| (), std::future::pending())).unwrap_err()
    })
    .unwrap();
    assert!(matches!(refused, MountError::AlreadyMounted { .. }), "{refused}");
    place.assert_clean();
}

#[test]
fn a_mount_point_that_is_no_directory_is_named() {
    let mut place = Place::new();
    let snapshot = Snapshot::of(&place.tree());
    place.state = place.dir.path().join("state");
    let mut request = place.request(&snapshot, scratch());
    request.mountpoint = place.dir.path().join("absent");
    let refused = visit(request, || ()).unwrap_err().to_string();
    assert!(refused.contains("/absent must be an existing directory"), "{refused}");
    place.assert_clean();
}

/// Serves until the mount is gone from outside, which `visit` sees to.
fn until_unmounted(request: Request, visit: impl FnOnce() + Send + 'static) {
    let (ready, is_ready) = oneshot::channel();
    let visitor = std::thread::spawn(move || {
        is_ready.blocking_recv().unwrap();
        visit();
    });
    let ready = |_: &_| ready.send(()).unwrap();
    let ending = runtime().block_on(serve(request, ready, std::future::pending())).unwrap();
    assert_eq!(ending, Ending::Unmounted);
    visitor.join().unwrap();
}

fn system_umount(args: &[&str], path: &Path) {
    assert!(Command::new("umount").args(args).arg(path).status().unwrap().success());
}

#[test]
fn unmounting_from_outside_ends_the_server_and_leaves_nothing() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    let snapshot = Snapshot::of(&place.tree());
    for view in [WantedView::ReadOnly, scratch()] {
        let mnt = place.mnt();
        until_unmounted(place.request(&snapshot, view), move || system_umount(&[], &mnt));
        place.assert_clean();
    }
}

#[test]
fn a_lazy_unmount_lets_open_files_be_read_to_their_end() {
    let place = Place::new();
    let bytes = content::random("x", 2 << 20);
    fs::write(place.tree().join("file"), &bytes).unwrap();
    let snapshot = Snapshot::of(&place.tree());
    for view in [WantedView::ReadOnly, scratch()] {
        let (mnt, bytes) = (place.mnt(), bytes.clone());
        until_unmounted(place.request(&snapshot, view), move || {
            let mut file = File::open(mnt.join("file")).unwrap();
            system_umount(&["--lazy"], &mnt);
            let mut read = Vec::new();
            file.read_to_end(&mut read).unwrap();
            assert!(read == bytes);
        });
        place.assert_clean();
    }
}

/// Serves the place in a process of its own; `server_process` is its other side.
fn server(place: &Place, view: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "server_process", "--ignored", "--nocapture"])
        .env("PLACE", place.dir.path())
        .env("VIEW", view)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"), "the server did not get ready");
    child
}

#[test]
#[ignore = "not a test: the process that other tests start"]
fn server_process() {
    let Some(place) = std::env::var_os("PLACE").map(PathBuf::from) else { return };
    let view = match std::env::var("VIEW").unwrap().as_str() {
        "read-only" => WantedView::ReadOnly,
        _ => scratch(),
    };
    let snapshot = Snapshot::of(&place.join("tree"));
    let request = Request {
        state: place.join("state"),
        snapshot: SnapshotId { kind: Kind::Filesystem, index: snapshot.index.digest() },
        source: snapshot.at_hand(),
        index: snapshot.index,
        mountpoint: place.join("mnt"),
        view,
        options: MountOptions::default(),
    };
    runtime()
        .block_on(async {
            let stop = stop_signal().unwrap();
            serve(request, |_| eprintln!("ready"), stop).await
        })
        .unwrap();
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

#[test]
fn umount_waits_for_the_server_and_says_if_the_mount_is_in_use() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    for view in ["read-only", "writable"] {
        let mut child = server(&place, view);
        let registry = Registry::open(&place.state).unwrap();
        let file = File::open(place.mnt().join("file")).unwrap();
        let busy = umount(&registry, &place.mnt(), Umount::IfFree, LONG).unwrap_err();
        assert!(busy.to_string().contains("is in use"), "{busy}");
        drop(file);
        umount(&registry, &place.mnt(), Umount::IfFree, LONG).unwrap();
        assert!(child.wait().unwrap().success());
        place.assert_clean();
        let gone = umount(&registry, &place.mnt(), Umount::IfFree, LONG).unwrap_err();
        assert!(matches!(gone, MountError::NotMounted { .. }), "{gone}");
    }
}

#[test]
fn what_somebody_mounted_over_it_is_not_unmounted() {
    let place = Place::new();
    let mut child = server(&place, "writable");
    let registry = Registry::open(&place.state).unwrap();
    let over = Command::new("mount").args(["-t", "tmpfs", "other"]).arg(place.mnt()).status();
    assert!(over.unwrap().success());
    let covered = umount(&registry, &place.mnt(), Umount::IfFree, LONG).unwrap_err();
    assert!(matches!(covered, MountError::Covered(_)), "{covered}");
    system_umount(&[], &place.mnt());
    umount(&registry, &place.mnt(), Umount::IfFree, LONG).unwrap();
    assert!(child.wait().unwrap().success());
    place.assert_clean();
}

#[test]
fn a_lazy_umount_returns_at_once() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    let mut child = server(&place, "writable");
    let registry = Registry::open(&place.state).unwrap();
    let file = File::open(place.mnt().join("file")).unwrap();
    umount(&registry, &place.mnt(), Umount::Lazily, LONG).unwrap();
    assert!(!place.mnt().join("file").exists());
    assert!(child.try_wait().unwrap().is_none());
    drop(file);
    assert!(child.wait().unwrap().success());
    place.assert_clean();
}

#[test]
fn sigterm_unmounts_even_what_is_in_use() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    for view in ["read-only", "writable"] {
        let mut child = server(&place, view);
        let file = File::open(place.mnt().join("file")).unwrap();
        kill_process(pid(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        drop(file);
        place.assert_clean();
    }
}

#[test]
fn what_a_killed_server_leaves_behind_is_cleared_away() {
    let place = Place::new();
    fs::write(place.tree().join("file"), "x").unwrap();
    for view in ["read-only", "writable"] {
        let mut child = server(&place, view);
        kill_process(pid(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        // The next mount on the same place clears up by itself.
        let mut child = server(&place, view);
        assert_eq!(fs::read(place.mnt().join("file")).unwrap(), b"x");
        kill_process(pid(&child), Signal::KILL).unwrap();
        child.wait().unwrap();
        let registry = Registry::open(&place.state).unwrap();
        umount(&registry, &place.mnt(), Umount::IfFree, LONG).unwrap();
        place.assert_clean();
    }
}
