//! Tests that the mount table, its records and the disk agree after failures, and that it is free
//! while the kernel is queried. They need root.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inlay_base::boot::LastServed;

use super::mount_id::BEFORE_QUERY;
use super::target_tests::{Host, Sandbox, names};
use super::wanted::Layer;
use super::*;

const SCRATCH: WantedView = WantedView::Writable(UpperPlace::Scratch);

impl Host {
    /// Mounts a snapshot whose directory is `dir`, below that of the test.
    fn mount_of(&self, sandbox: &Sandbox, dir: &str) -> Result<MountRecord, MountError> {
        let make = MakePath::OwnedBy(Owner::ROOT);
        let claim = self.mounts.claim(&sandbox.caller(), "/a".as_ref(), make)?;
        let dir = self.dir.path().join(dir);
        let top = Layer { slot: 1, dir, hold: Box::new(()) };
        self.mounts.create(claim, Wanted { top, ..self.wanted(SCRATCH) })
    }
}

#[test]
fn a_scratch_directory_that_can_not_be_prepared_is_removed() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let error = host.mount_of(&sandbox, "missing").unwrap_err();
    assert!(matches!(error, MountError::Io { .. }), "{error}");
    assert_eq!(names(&host.dir.path().join("state/upper")), [""; 0]);
    assert!(host.mounts.is_empty());
}

#[test]
fn a_mount_fails_with_its_own_error_even_if_its_changes_can_not_be_removed() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let state = host.dir.path().join("state");
    // Nothing can be discarded without a directory for it.
    fs::write(state.join("trash"), "").unwrap();
    for dir in ["missing", "snapshot/file"] {
        let error = host.mount_of(&sandbox, dir).unwrap_err().to_string();
        assert!(!error.contains("can't remove"), "{error}");
    }
    assert_eq!(names(&state.join("upper")).len(), 2);
    fs::remove_file(state.join("trash")).unwrap();
    let record = host.mount(&sandbox, "/a", SCRATCH).unwrap();
    host.mounts.undo(&record).unwrap();
}

#[test]
fn a_mount_is_confirmed_only_once_its_record_says_so() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let record = host.unconfirmed(&sandbox, "/a");
    let path = host.dir.path().join(format!("state/mounts/{:x}.json", record.seen.number()));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    host.mounts.confirm(&record).unwrap_err();
    let standing = || host.mounts.list().iter().map(|record| record.standing).collect::<Vec<_>>();
    assert_eq!(standing(), [Standing::Unconfirmed]);
    let refused = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap_err();
    assert!(matches!(refused, MountError::BeingMounted(_)), "{refused}");
    fs::remove_dir(&path).unwrap();
    host.mounts.confirm(&record).unwrap();
    assert_eq!(standing(), [Standing::Confirmed]);
    assert_eq!(host.mounts.registry.list().unwrap().mounts, host.mounts.list());
    host.mounts.undo(&record).unwrap();
}

#[test]
fn the_table_is_free_while_the_kernel_is_queried() {
    let (mut host, sandbox) = (Host::new(), Sandbox::new());
    for (path, view) in [("/a", WantedView::ReadOnly), ("/b", SCRATCH), ("/c", host.kept("c"))] {
        host.mount(&sandbox, path, view).unwrap();
    }
    host.reopen();
    // Still in use after a lazy unmount.
    let used = fs::File::open(sandbox.inside("/b/file")).unwrap();
    let queries = Rc::new(Cell::new(0));
    let (table, count) = (Arc::clone(&host.mounts.table), Rc::clone(&queries));
    BEFORE_QUERY.set(Some(Box::new(move || {
        assert!(table.try_lock().is_some(), "the table is locked during a query");
        count.set(count.get() + 1);
    })));
    let queries = |act: &dyn Fn()| {
        queries.set(0);
        act();
        queries.get()
    };
    assert!(queries(&|| _ = host.mounts.sweep()) >= 3);
    assert!(queries(&|| drop(host.mounts.list())) >= 3);
    assert!(queries(&|| drop(host.mount(&sandbox, "/d", WantedView::ReadOnly).unwrap())) >= 3);
    for path in ["/a", "/b", "/c", "/d"] {
        assert!(queries(&|| drop(host.umount(&sandbox, path, Umount::Lazily).unwrap())) >= 2);
    }
    assert!(!host.mounts.is_empty() && host.mounts.list().is_empty());
    drop(used);
    let deadline = Instant::now() + Duration::from_mins(1);
    while !host.mounts.is_empty() && Instant::now() < deadline {
        host.mounts.sweep();
    }
    assert!(host.mounts.is_empty());
    BEFORE_QUERY.set(None);
}

#[test]
fn an_overlay_in_use_is_polled_less_and_less_often() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/a", SCRATCH).unwrap();
    let used = fs::File::open(sandbox.inside("/a/file")).unwrap();
    let (ms, began) = (Duration::from_millis, Instant::now());
    host.umount(&sandbox, "/a", Umount::Lazily).unwrap();
    // Each pause is twice as long as the one before, so all before it took nearly as long.
    for longest in [20, 40, 80] {
        while host.mounts.sweep().unwrap() <= ms(longest) {
            let pause = host.mounts.sweep().unwrap();
            assert!(pause <= ms(20) + began.elapsed(), "{pause:?}");
            assert!(began.elapsed() < Duration::from_mins(1), "polled every {pause:?}");
        }
    }
    let (before, pause) = (Instant::now(), host.mounts.sweep().unwrap());
    let next = host.mounts.sweep().unwrap();
    assert!(next <= pause || before.elapsed() >= pause, "polled before it was due: {next:?}");
    drop(used);
    while !host.mounts.is_empty() {
        std::thread::sleep(host.mounts.sweep().unwrap_or_default().min(ms(100)));
    }
}

#[test]
fn upper_directories_of_recovered_mounts_are_locked() {
    let (mut host, sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/a", host.kept("one")).unwrap();
    host.reopen();
    let other = Host::new();
    let refused = other.mount(&sandbox, "/b", host.kept("one")).unwrap_err();
    assert!(matches!(refused, MountError::UpperInUse(_)), "{refused}");
    host.mounts.end_owned_by("sb-1").unwrap();
    other.mount(&sandbox, "/b", host.kept("one")).unwrap();
    other.mounts.end_owned_by("sb-1").unwrap();
}

/// A hold, and whether it is still kept.
fn hold() -> (Hold, impl Fn() -> bool) {
    let kept = Arc::new(());
    let weak = Arc::downgrade(&kept);
    (Box::new(kept), move || weak.strong_count() > 0)
}

#[test]
fn damaged_records_count_as_mounted_and_keep_snapshots_until_they_are_removed() {
    let host = Host::new();
    let (state, (unused, is_kept)) = (host.dir.path().join("state"), hold());
    host.mounts.hold_unclaimed(unused);
    assert!(!is_kept(), "no record is damaged");
    let [record, note] = ["mounts/1.json", "mounts/1-1.made"].map(|name| state.join(name));
    for path in [&record, &note] {
        fs::write(path, "{").unwrap();
    }
    let open = || Mounts::open(&state, "session", LastServed::ThisBoot, |_| None).unwrap();
    let mounts = open();
    assert_eq!((mounts.damaged().len(), mounts.damaged_records().len()), (1, 2));
    assert!(!mounts.is_empty() && record.exists() && note.exists());
    let (unclaimed, is_kept) = hold();
    mounts.hold_unclaimed(unclaimed);
    mounts.sweep();
    assert!(is_kept());
    fs::remove_file(&record).unwrap();
    mounts.sweep();
    assert!(!is_kept() && mounts.is_empty());
    assert_eq!((mounts.damaged().len(), mounts.damaged_records().len()), (0, 1));
}

#[test]
fn an_unmount_tells_whether_the_overlay_is_in_use_and_its_changes_are_gone() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let beside = host.dir.path().join("state/upper/one");
    let elsewhere = host.dir.path().join("uppers/two");
    let kept = |at: &Path| WantedView::Writable(UpperPlace::Kept(at.into()));
    let unmount = |how, changes| {
        let unmounted = host.mounts.unmount(&sandbox.caller(), "/a".as_ref(), how, changes);
        unmounted.map(|unmounted| (unmounted.in_use, unmounted.discarded)).unwrap()
    };
    for (view, changes, outcome) in [
        (WantedView::ReadOnly, Changes::Discard, (false, false)),
        (kept(&beside), Changes::Stay, (false, false)),
        (kept(&elsewhere), Changes::Discard, (false, false)),
        (kept(&beside), Changes::Discard, (false, true)),
    ] {
        host.mount(&sandbox, "/a", view).unwrap();
        assert_eq!(unmount(Umount::IfFree, changes), outcome);
    }
    assert!(elsewhere.exists() && !beside.exists());
    let claim =
        host.mounts.claim(&sandbox.caller(), "/dir/sub".as_ref(), MakePath::OwnedBy(Owner::ROOT));
    let claim = claim.unwrap();
    assert!(claim.is_there() && !host.mounts.is_empty());
    fs::rename(sandbox.beneath("/dir"), sandbox.beneath("/moved")).unwrap();
    assert!(!claim.is_there());
    drop(claim);
    host.mount(&sandbox, "/a", kept(&beside)).unwrap();
    let used = fs::File::open(sandbox.inside("/a/file")).unwrap();
    assert_eq!(unmount(Umount::Lazily, Changes::Discard), (true, false));
    drop(used);
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn a_new_session_removes_the_mounts_of_the_last_one() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let create = |path: &str, owner: Option<&str>| {
        let make = MakePath::OwnedBy(Owner::ROOT);
        let claim = host.mounts.claim(&sandbox.caller(), path.as_ref(), make).unwrap();
        let owner = owner.map(str::to_owned);
        host.mounts.create(claim, Wanted { owner, ..host.wanted(SCRATCH) }).unwrap()
    };
    create("/host/made", None);
    create("/sandbox/made", Some("sb-1"));
    let state = host.dir.path().join("state");
    for name in ["scratch-left", "kept"] {
        fs::create_dir_all(state.join("upper").join(name)).unwrap();
    }
    host.mounts.forget_all();
    assert!(host.mounts.list().is_empty());
    assert!(sandbox.inside("/host/made/file").exists(), "it is forgotten, not unmounted");

    let record = create("/third", None);
    let owned = create("/fourth/made", Some("sb-1"));
    let Host { mounts, dir } = host;
    drop(mounts);
    let mounts = Mounts::open(&state, "next", LastServed::ThisBoot, |_| None).unwrap();
    assert!(mounts.is_empty());
    assert!(!record.seen.is_mounted().unwrap() && !owned.seen.is_mounted().unwrap());
    assert_eq!(names(&sandbox.beneath("/")), ["fourth", "host", "old", "sandbox"]);
    assert_eq!(names(&sandbox.beneath("/fourth")), ["made"], "the sandbox ends with them");
    assert_eq!(names(&state.join("upper")), ["kept"]);
    assert_eq!(names(&state.join("mounts")), [""; 0]);
    drop(dir);
}

/// Counts the queries of the kernel that `act` makes.
fn queries_of(act: impl FnOnce()) -> usize {
    let queries = Rc::new(Cell::new(0));
    let count = Rc::clone(&queries);
    BEFORE_QUERY.set(Some(Box::new(move || count.set(count.get() + 1))));
    act();
    BEFORE_QUERY.set(None);
    queries.get()
}

#[test]
fn ending_one_mount_queries_no_other() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let first = host.mount(&sandbox, "/first", WantedView::ReadOnly).unwrap();
    let alone = queries_of(|| host.mounts.undo(&first).unwrap());
    let paths = ["/a", "/b", "/c", "/d"];
    let records = paths.map(|path| host.mount(&sandbox, path, WantedView::ReadOnly).unwrap());
    let [one, ..] = &records;
    assert_eq!(queries_of(|| host.mounts.undo(one).unwrap()), alone);
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn a_mount_that_moved_ends_at_its_new_path() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let [undone, unmounted] = ["/undone/m", "/unmounted/m"].map(|path| {
        let record = host.mount(&sandbox, path, SCRATCH).unwrap();
        let dir = Path::new(path).parent().unwrap().to_str().unwrap();
        fs::rename(sandbox.inside(dir), sandbox.inside(&format!("{dir}-2"))).unwrap();
        record
    });
    host.mounts.undo(&undone).unwrap();
    let ended = host.mounts.unmount_recorded(&unmounted, Umount::IfFree, Changes::Stay).unwrap();
    assert_eq!(ended.record.mountpoint.to_path(), Path::new("/unmounted-2/m"));
    assert_eq!(names(&sandbox.beneath("/")), ["old", "undone-2", "unmounted-2"]);
    for dir in ["/undone-2", "/unmounted-2"] {
        assert_eq!(names(&sandbox.beneath(dir)), [""; 0], "{dir}");
    }
}

#[test]
fn directories_of_a_mount_that_ended_by_itself_are_removed() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/x/y", SCRATCH).unwrap();
    sandbox.unmount_inside("/x/y");
    let deadline = Instant::now() + Duration::from_mins(1);
    while !host.mounts.is_empty() && Instant::now() < deadline {
        host.mounts.sweep();
    }
    assert_eq!(names(&sandbox.beneath("/")), ["old"]);
}

#[test]
fn all_mounts_end_at_once() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let records = ["/a", "/b"].map(|path| host.mount(&sandbox, path, SCRATCH).unwrap());
    host.mounts.unmount_all();
    assert!(host.mounts.list().is_empty());
    assert!(records.iter().all(|record| !record.seen.is_mounted().unwrap()));
}

#[test]
fn a_restart_undoes_unconfirmed_mounts_and_locks_the_changes_of_others() {
    let (mut host, sandbox) = (Host::new(), Sandbox::new());
    let unconfirmed = host.unconfirmed(&sandbox, "/a");
    let kept = host.mount(&sandbox, "/b", host.kept("one")).unwrap();
    host.reopen();
    assert!(!unconfirmed.seen.is_mounted().unwrap() && kept.seen.is_mounted().unwrap());
    let locked = |live: &table::Live| live.upper.is_some();
    assert!(host.mounts.table.lock().live.iter().all(locked));
    assert_eq!(host.mounts.list(), [kept]);
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn a_place_being_cleaned_up_can_not_be_claimed_until_it_is_done() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let claim = |path: &str| {
        host.mounts.claim(&sandbox.caller(), path.as_ref(), MakePath::OwnedBy(Owner::ROOT))
    };
    let is_being_mounted = |claim: Result<Claim, MountError>| {
        let refused = claim.map(drop).unwrap_err();
        assert!(matches!(refused, MountError::BeingMounted(_)), "{refused}");
    };
    let namespace = claim("/a").unwrap().target().namespace();
    host.mounts.table.lock().finishing.insert(1, (namespace, "/a".into()));
    is_being_mounted(claim("/a"));
    let mut settled = std::pin::pin!(host.mounts.settled().notified());
    settled.as_mut().enable();
    let other = claim("/b").unwrap();
    is_being_mounted(claim("/b"));
    assert!(!settled.as_mut().enable());
    drop(other);
    assert!(settled.enable(), "a released claim wakes the waiters");
    host.mounts.table.lock().finishing.clear();
    claim("/a").unwrap();
}

#[test]
fn a_mount_on_the_root_of_a_foreign_mount_is_not_taken_for_ours() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    fs::create_dir(sandbox.beneath("/foreign")).unwrap();
    host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    let tmpfs = || {
        rustix::mount::mount("none", "/foreign", "tmpfs", flags, None)
            .map_err(MountError::io("mount on", "/foreign".as_ref()))
    };
    sandbox.namespace().apart(tmpfs).unwrap();
    host.mount(&sandbox, "/foreign", WantedView::ReadOnly).unwrap();
    assert_eq!(names(&sandbox.inside("/foreign")), ["file"]);
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn mounts_of_this_namespace_are_watched_rather_than_polled() {
    let (host, own) = (Host::new(), tempfile::tempdir().unwrap());
    let caller = Caller::Process(Process::hold(std::process::id()).unwrap().unwrap());
    let claim = host.mounts.claim(&caller, own.path(), MakePath::Never).unwrap();
    assert_eq!(claim.target().root_mount(), target::mount_number(root()).unwrap());
    let record = host.mounts.create(claim, host.wanted(WantedView::ReadOnly)).unwrap();
    let polled = host.mounts.sweep();
    let recorded = serde_json::to_value(&record.seen).unwrap();
    host.mounts.undo(&record).unwrap();
    assert_eq!(polled, None);
    assert_eq!(recorded.get("member"), None);

    let sandbox = Sandbox::new();
    let record = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap();
    assert!(host.mounts.sweep().is_some() && record.seen.process_inside().is_some());
    let recorded = serde_json::to_value(&record.seen).unwrap();
    host.mounts.undo(&record).unwrap();
    assert!(recorded.get("member").is_some(), "finds the namespace without a scan of /proc");
}

fn root() -> fs::File {
    fs::File::open("/").unwrap()
}
