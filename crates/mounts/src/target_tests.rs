//! Tests mounts into live mount namespaces with a root directory of their own, some of them
//! hostile. They need root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use inlay_base::boot::LastServed;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use inlay_store::ids::{Digest, SnapshotId};
use tempfile::TempDir;

use super::flags::MountFlags;
use super::namespace::Namespace;
use super::*;

/// A shell in its own mount namespace with its root in a directory of the test.
pub(super) struct Sandbox {
    shell: Child,
    root: TempDir,
}

const ENTER: &str = r#"
set -e
mount --bind "$1" "$1"
cd "$1"
mkdir -p old
pivot_root . old
cd /
echo ready
read end
"#;

impl Sandbox {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        let sandbox = Self::start(shell.arg(root.path()), root);
        // From here on it has nothing but its root.
        let namespace = sandbox.namespace();
        let away = || {
            rustix::mount::unmount("/old", rustix::mount::UnmountFlags::DETACH)
                .map_err(MountError::io("unmount", "/old".as_ref()))
        };
        namespace.apart(away).unwrap();
        sandbox
    }

    fn start(command: &mut Command, root: TempDir) -> Self {
        let shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut sandbox = Self { shell, root };
        let mut said = String::new();
        let out = sandbox.shell.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        sandbox
    }

    fn process(&self) -> Process {
        Process::hold(self.shell.id()).unwrap().unwrap()
    }

    pub(super) fn namespace(&self) -> Namespace {
        Namespace::of(&self.process()).unwrap()
    }

    pub(super) fn caller(&self) -> Caller {
        Caller::Process(self.process())
    }

    /// Returns the path as processes inside see it, including mounts.
    pub(super) fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.shell.id()))
    }

    /// Returns the path on the host, without the mounts inside.
    pub(super) fn beneath(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn end(&mut self) {
        self.shell.kill().unwrap();
        self.shell.wait().unwrap();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A mount table, and a snapshot represented by a directory with one file.
pub(super) struct Host {
    pub(super) mounts: Mounts,
    pub(super) dir: TempDir,
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("snapshot")).unwrap();
        fs::write(dir.path().join("snapshot/file"), "x").unwrap();
        let mounts =
            Mounts::open(&dir.path().join("state"), "session", LastServed::ThisBoot, |_| None)
                .unwrap();
        Self { mounts, dir }
    }

    /// Another daemon takes over.
    pub(super) fn reopen(&mut self) {
        let state = self.dir.path().join("state");
        // The locks of upper directories belong to one daemon at a time.
        let next = tempfile::tempdir().unwrap();
        self.mounts = Mounts::open(next.path(), "session", LastServed::ThisBoot, |_| None).unwrap();
        self.mounts =
            Mounts::open(&state, "session", LastServed::ThisBoot, |_| Some(Box::new(()))).unwrap();
    }

    fn snapshot() -> SnapshotId {
        format!("dir-{}", Digest::of(b"x").to_hex()).parse().unwrap()
    }

    /// Creates a read-only mount that its caller has not confirmed.
    pub(super) fn unconfirmed(&self, sandbox: &Sandbox, path: &str) -> MountRecord {
        let make = MakePath::OwnedBy(Owner::ROOT);
        let claim = self.mounts.claim(&sandbox.caller(), path.as_ref(), make).unwrap();
        let wanted = self.wanted(WantedView::ReadOnly);
        let wanted = Wanted { standing: Standing::Unconfirmed, ..wanted };
        self.mounts.create(claim, wanted).unwrap()
    }

    pub(super) fn wanted(&self, view: WantedView) -> Wanted {
        let dir = self.dir.path().join("snapshot");
        Wanted {
            snapshot: Self::snapshot(),
            top: Layer { slot: 1, dir, hold: Box::new(()) },
            below: None,
            longest_path: 0,
            view,
            owner: Some("sb-1".into()),
            chown: None,
            flags: MountFlags::default(),
            alias: None,
            key: None,
            standing: Standing::Confirmed,
            file: None,
        }
    }

    pub(super) fn kept(&self, name: &str) -> WantedView {
        let place = self.dir.path().join("uppers").join(name);
        WantedView::Writable(UpperPlace::Kept((&*place).into()))
    }

    pub(super) fn mount(
        &self,
        sandbox: &Sandbox,
        path: &str,
        view: WantedView,
    ) -> Result<MountRecord, MountError> {
        let make = MakePath::OwnedBy(Owner::ROOT);
        let claim = self.mounts.claim(&sandbox.caller(), path.as_ref(), make)?;
        self.mounts.create(claim, self.wanted(view))
    }

    pub(super) fn umount(
        &self,
        sandbox: &Sandbox,
        path: &str,
        how: Umount,
    ) -> Result<Unmounted, MountError> {
        self.mounts.unmount(&sandbox.caller(), path.as_ref(), how, Changes::Stay)
    }
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_missing_path_is_made_and_goes_again() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let owner = Owner { uid: 12, gid: 34 };
    let make = MakePath::OwnedBy(owner);
    let claim = host.mounts.claim(&sandbox.caller(), "/a/b/c".as_ref(), make).unwrap();
    for dir in ["/a", "/a/b", "/a/b/c"] {
        let meta = fs::metadata(sandbox.beneath(dir)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12, 34, 0o755), "{dir}");
    }
    // A dropped claim leaves nothing behind.
    drop(claim);
    assert_eq!(names(&sandbox.beneath("/")), ["old"]);
    for view in [WantedView::ReadOnly, host.kept("one"), WantedView::Writable(UpperPlace::Scratch)]
    {
        let record = host.mount(&sandbox, "/a/b/c", view).unwrap();
        assert_eq!(record.made.len(), 3);
        assert_eq!(fs::read(sandbox.inside("/a/b/c/file")).unwrap(), b"x");
        assert_eq!(names(&sandbox.beneath("/a/b/c")), [""; 0], "only those inside see it");
        let refused = host.mount(&sandbox, "/a/b/c", WantedView::ReadOnly).unwrap_err();
        assert!(matches!(refused, MountError::AlreadyMounted { .. }), "{refused}");
        host.umount(&sandbox, "/a/b/c", Umount::IfFree).unwrap();
        assert_eq!(names(&sandbox.beneath("/")), ["old"]);
    }
    assert!(host.mounts.is_empty());
}

#[test]
fn directories_of_a_daemon_that_dies_are_removed_by_the_next() {
    let (mut host, sandbox) = (Host::new(), Sandbox::new());
    fs::create_dir(sandbox.beneath("/old/empty")).unwrap();
    let make = MakePath::OwnedBy(Owner::ROOT);
    for path in ["/a/b/c", "/old/empty/d"] {
        let claim = host.mounts.claim(&sandbox.caller(), path.as_ref(), make).unwrap();
        // As if killed here.
        std::mem::forget(claim);
    }
    assert!(sandbox.beneath("/a/b/c").exists());
    let state = host.dir.path().join("state");
    host.mounts = Mounts::open(&state, "session", LastServed::ThisBoot, |_| None).unwrap();
    assert_eq!(names(&sandbox.beneath("/")), ["old"]);
    assert_eq!(names(&sandbox.beneath("/old")), ["empty"]);
    assert_eq!(names(&state.join("mounts")), [""; 0]);
}

#[test]
fn an_unconfirmed_mount_counts_as_being_mounted() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let record = host.unconfirmed(&sandbox, "/a");
    let refused = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap_err();
    assert!(matches!(refused, MountError::BeingMounted(_)), "{refused}");
    host.mounts.confirm(&record).unwrap();
    let refused = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap_err();
    assert!(matches!(refused, MountError::AlreadyMounted { .. }), "{refused}");
    host.umount(&sandbox, "/a", Umount::IfFree).unwrap();
    assert!(host.mounts.is_empty());
}

#[test]
fn a_mount_marked_for_undo_counts_as_being_mounted_until_it_is_gone() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let record = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap();
    host.mounts.mark_for_undo(&record);
    let refused = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap_err();
    assert!(matches!(refused, MountError::BeingMounted(_)), "{refused}");
    host.mounts.undo(&record).unwrap();
    let next = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap();
    host.mounts.undo(&next).unwrap();
    assert!(host.mounts.is_empty());
}

/// Measures live mounts: `cargo test -p inlay-mounts --lib how_long -- --ignored --nocapture`.
#[test]
#[ignore = "it measures, and judges nothing"]
fn how_long_a_live_mount_takes() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    for writable in [false, true] {
        let mut times: Vec<_> = (0..200)
            .map(|round| {
                let view =
                    if writable { host.kept(&round.to_string()) } else { WantedView::ReadOnly };
                let begun = std::time::Instant::now();
                let record = host.mount(&sandbox, "/a/b/c", view).unwrap();
                assert_eq!(fs::read(sandbox.inside("/a/b/c/file")).unwrap(), b"x");
                let took = begun.elapsed();
                host.mounts.undo(&record).unwrap();
                took
            })
            .collect();
        times.sort();
        println!("writable: {writable}, p50 {:?}, p99 {:?}", times[100], times[198]);
    }
}

#[test]
fn directories_that_others_need_stay() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/a/b", WantedView::ReadOnly).unwrap();
    host.mount(&sandbox, "/a/c", WantedView::ReadOnly).unwrap();
    host.umount(&sandbox, "/a/b", Umount::IfFree).unwrap();
    assert_eq!(names(&sandbox.beneath("/a")), ["c"]);
    // They were handed over to the remaining mount.
    host.umount(&sandbox, "/a/c", Umount::IfFree).unwrap();
    assert_eq!(names(&sandbox.beneath("/")), ["old"]);

    host.mount(&sandbox, "/d/e", WantedView::ReadOnly).unwrap();
    fs::write(sandbox.inside("/d/mine"), "").unwrap();
    host.umount(&sandbox, "/d/e", Umount::IfFree).unwrap();
    assert_eq!(names(&sandbox.beneath("/d")), ["mine"]);
    // Directories that existed before are never removed.
    fs::create_dir(sandbox.beneath("/old/empty")).unwrap();
    host.mount(&sandbox, "/old/empty", WantedView::ReadOnly).unwrap();
    host.umount(&sandbox, "/old/empty", Umount::IfFree).unwrap();
    assert_eq!(names(&sandbox.beneath("/old")), ["empty"]);
}

#[test]
fn no_path_leads_out_of_the_root() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(sandbox.beneath("/a")).unwrap();
    symlink("../../../../../../../..", sandbox.beneath("/up")).unwrap();
    symlink("/a", sandbox.beneath("/link")).unwrap();
    for (path, real) in [
        ("/a/../../../x", "/x"),
        ("/../../../../../../etc", "/etc"),
        ("/up/y/z", "/y/z"),
        ("/link/new", "/a/new"),
        ("/made/../other", "/other"),
    ] {
        let record = host.mount(&sandbox, path, WantedView::ReadOnly).unwrap();
        assert_eq!(record.mountpoint.to_path(), Path::new(real), "{path}");
        assert_eq!(fs::read(sandbox.inside(real).join("file")).unwrap(), b"x");
        host.umount(&sandbox, path, Umount::IfFree).unwrap();
    }
    // Symlinks that would escape if followed from outside.
    symlink(&outside, sandbox.beneath("/absolute")).unwrap();
    symlink("/proc/1/root", sandbox.beneath("/magic")).unwrap();
    symlink("loop", sandbox.beneath("/loop")).unwrap();
    for path in ["/absolute", "/absolute/x", "/magic/etc", "/loop/x"] {
        let refused = host.mount(&sandbox, path, WantedView::ReadOnly).unwrap_err();
        assert!(refused.to_string().contains("; "), "{refused}");
    }
    fs::create_dir(sandbox.beneath("/proc")).unwrap();
    let proc = Command::new("nsenter")
        .args(["--target", &sandbox.shell.id().to_string(), "--mount", "--wd=/"])
        .args(["mount", "-t", "proc", "proc", "/proc"])
        .stderr(Stdio::null())
        .status();
    if proc.unwrap().success() {
        let refused = host.mount(&sandbox, "/magic/etc", WantedView::ReadOnly).unwrap_err();
        assert!(matches!(refused, MountError::MakePath { .. }), "{refused}");
    }
    assert_eq!(names(&outside), [""; 0]);
    assert!(host.mounts.is_empty());
}

#[test]
fn mounting_on_non_directories_fails_at_once() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    fs::write(sandbox.beneath("/file"), "").unwrap();
    for (name, kind) in [("fifo", "p"), ("null", "c 1 3")] {
        let mut make = Command::new("mknod");
        make.arg(sandbox.beneath(name)).args(kind.split(' '));
        assert!(make.status().unwrap().success());
    }
    let _socket = UnixListener::bind(sandbox.beneath("/socket")).unwrap();
    symlink("nowhere", sandbox.beneath("/dangling")).unwrap();
    for (name, what) in [
        ("file", "a file"),
        ("fifo", "a FIFO"),
        ("null", "a device"),
        ("socket", "a socket"),
        ("dangling", "a symbolic link"),
    ] {
        for path in [format!("/{name}"), format!("/{name}/below"), format!("/new/../{name}")] {
            let refused = host.mount(&sandbox, &path, WantedView::ReadOnly).unwrap_err();
            let MountError::InTheWay { what: found, .. } = &refused else { panic!("{refused}") };
            assert!(found.starts_with(what), "{path}: {refused}");
        }
    }
    assert!(!sandbox.beneath("/new").exists());
    let deep = "/d".repeat(300);
    assert!(host.mount(&sandbox, &deep, WantedView::ReadOnly).is_err());
    assert!(host.mounts.is_empty());
}

#[test]
fn a_directory_that_is_swapped_meanwhile_leads_nowhere_else() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let outside = host.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let at = |name: &str| sandbox.beneath("/work").join(name);
    fs::create_dir_all(at("real")).unwrap();
    symlink(&outside, at("out")).unwrap();
    symlink("/../../../../../../..", at("up")).unwrap();
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !enough.load(Relaxed) {
                for other in ["out", "up"] {
                    // An atomic swap of both names.
                    exchange(&at("real"), &at(other));
                    exchange(&at("real"), &at(other));
                }
            }
        });
        let mut made = 0;
        for round in 0..400 {
            let path = format!("/work/real/new-{}/deep", round % 7);
            match host.mount(&sandbox, &path, WantedView::ReadOnly) {
                Ok(record) => {
                    made += 1;
                    // It may have been moved out of reach: then it ends with the namespace.
                    let _ = host.mounts.undo(&record);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            assert_eq!(names(&outside), [""; 0]);
        }
        enough.store(true, Relaxed);
        assert!(made > 0);
    });
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mountinfo.contains(&*host.dir.path().to_string_lossy()), "{mountinfo}");
}

fn exchange(one: &Path, other: &Path) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
}

#[test]
fn mounts_on_mounts_and_mounts_that_hide_others() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/p", host.kept("outer")).unwrap();
    host.mount(&sandbox, "/p/inner/deep", host.kept("inner")).unwrap();
    fs::write(sandbox.inside("/p/inner/deep/new"), "n").unwrap();
    let refused = host.umount(&sandbox, "/p", Umount::IfFree).unwrap_err();
    assert!(refused.to_string().contains("/p/inner/deep"), "{refused}");
    host.umount(&sandbox, "/p/inner/deep", Umount::IfFree).unwrap();
    assert!(!sandbox.inside("/p/inner").exists());
    host.umount(&sandbox, "/p", Umount::IfFree).unwrap();

    // A mount on top hides those below, and its unmount reveals them again.
    host.mount(&sandbox, "/q/below", host.kept("inner")).unwrap();
    assert_eq!(fs::read(sandbox.inside("/q/below/new")).unwrap(), b"n");
    host.mount(&sandbox, "/q", WantedView::ReadOnly).unwrap();
    assert_eq!(names(&sandbox.inside("/q")), ["file"]);
    host.umount(&sandbox, "/q", Umount::IfFree).unwrap();
    assert_eq!(fs::read(sandbox.inside("/q/below/new")).unwrap(), b"n");
    host.umount(&sandbox, "/q/below", Umount::IfFree).unwrap();

    // A lazy unmount ends all of them.
    for path in ["/r", "/r/s", "/r/s/t"] {
        host.mount(&sandbox, path, WantedView::Writable(UpperPlace::Scratch)).unwrap();
    }
    host.umount(&sandbox, "/r", Umount::Lazily).unwrap();
    assert!(host.mounts.list().is_empty());
    assert_eq!(names(&sandbox.beneath("/")), ["old"]);
}

#[test]
fn mounts_end_with_their_sandbox_and_kept_changes_remain() {
    let (host, mut sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/kept", host.kept("one")).unwrap();
    host.mount(&sandbox, "/kept/scratch", WantedView::Writable(UpperPlace::Scratch)).unwrap();
    fs::write(sandbox.inside("/kept/new"), "n").unwrap();
    assert_eq!(host.mounts.owned_by("sb-1").len(), 2);
    assert!(host.mounts.owned_by("sb-2").is_empty());
    sandbox.end();
    while !host.mounts.is_empty() {
        host.mounts.sweep();
        thread::yield_now();
    }
    let state = host.dir.path().join("state");
    assert_eq!(names(&state.join("mounts")), [""; 0]);
    assert_eq!(names(&state.join("upper")), [""; 0]);
    let kept = host.dir.path().join("uppers/one/upper");
    assert_eq!(fs::read(kept.join("new")).unwrap(), b"n");
    // They reappear in the next mount.
    let next = Sandbox::new();
    host.mount(&next, "/again", host.kept("one")).unwrap();
    assert_eq!(fs::read(next.inside("/again/new")).unwrap(), b"n");
    host.mount(&next, "/again/2", WantedView::ReadOnly).unwrap();
    host.mounts.end_owned_by("sb-1").unwrap();
    assert!(host.mounts.is_empty() && !next.beneath("/again").exists());
}

#[test]
fn a_process_of_the_same_number_is_not_taken_for_another() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let process = sandbox.process();
    let claim = || {
        let caller = Caller::Process(process.clone());
        host.mounts.claim(&caller, "/x".as_ref(), MakePath::OwnedBy(Owner::ROOT)).map(drop)
    };
    claim().unwrap();
    let pid = process.pid();
    drop(sandbox);
    // Even if another process has the pid by now.
    assert!(matches!(claim(), Err(MountError::NoProcess(found)) if found == pid));
}

#[test]
fn owners_are_recorded_as_the_server_shows_them() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    for (path, view) in [("/ro", WantedView::ReadOnly), ("/rw", host.kept("chown"))] {
        let make = MakePath::OwnedBy(Owner::ROOT);
        let claim = host.mounts.claim(&sandbox.caller(), path.as_ref(), make).unwrap();
        let chown = Some(Owner { uid: 1000, gid: 2000 });
        let alias = Alias::of(Owner::ROOT, chown);
        let wanted = Wanted { chown, alias, ..host.wanted(view) };
        let owners = host.mounts.create(claim, wanted).unwrap().owners.unwrap();
        assert_eq!([0, 7, 1000].map(|of| owners.user(of)), [1000, 7, 1000], "{path}");
        assert_eq!([0, 7, 2000].map(|of| owners.group(of)), [2000, 7, 2000], "{path}");
        assert_eq!(owners.setuid, Setuid::Ignored);
        let flags = rustix::fs::statvfs(sandbox.inside(path)).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID), "{path}");
    }
    host.mounts.end_owned_by("sb-1").unwrap();
}

#[test]
fn a_container_with_numbers_of_its_own_sees_its_own() {
    let host = Host::new();
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--mount", "sh", "-c", "echo ready; read end"]);
    let sandbox = Sandbox::start(&mut shell, root);
    let map = |name: &str, text: &str| {
        fs::write(format!("/proc/{}/{name}", sandbox.shell.id()), text).unwrap();
    };
    map("uid_map", "0 100000 1000\n");
    map("gid_map", "0 200000 1000\n");
    let path = sandbox.root.path().join("made/here");
    let make = MakePath::OwnedBy(Owner { uid: 5, gid: 6 });
    let claim = host.mounts.claim(&sandbox.caller(), &path, make).unwrap();
    let made = fs::metadata(&path).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_005, 200_006));
    host.mounts.create(claim, host.wanted(WantedView::ReadOnly)).unwrap();
    let seen = fs::metadata(sandbox.inside(&path.join("file").to_string_lossy())).unwrap();
    assert_eq!((seen.uid(), seen.gid()), (100_000, 200_000));
    let flags = rustix::fs::statvfs(sandbox.inside(&path.to_string_lossy())).unwrap().f_flag;
    assert!(!flags.contains(rustix::fs::StatVfsMountFlags::NOSUID));
    // With an alias, the kernel maps the ids that the server shows, and setuid bits are ignored.
    let (chown, aliased) = (Some(Owner { uid: 5, gid: 6 }), sandbox.root.path().join("aliased"));
    let make = MakePath::OwnedBy(Owner::ROOT);
    let claim = host.mounts.claim(&sandbox.caller(), &aliased, make).unwrap();
    let alias = Alias::of(Owner::ROOT, chown);
    let wanted = Wanted { chown, alias, ..host.wanted(WantedView::ReadOnly) };
    let owners = host.mounts.create(claim, wanted).unwrap().owners.unwrap();
    assert_eq!([0, 5, 7].map(|of| owners.user(of)), [100_005, 100_005, 100_007]);
    assert_eq!([0, 6, 7].map(|of| owners.group(of)), [200_006, 200_006, 200_007]);
    let seen = fs::metadata(sandbox.inside(&aliased.join("file").to_string_lossy())).unwrap();
    assert_eq!((seen.uid(), seen.gid()), (100_000, 200_000));
    let flags = rustix::fs::statvfs(sandbox.inside(&aliased.to_string_lossy())).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID));
    let other = MakePath::OwnedBy(Owner { uid: 5000, gid: 0 });
    let refused = host.mounts.claim(&sandbox.caller(), "/x".as_ref(), other).map(drop).unwrap_err();
    assert!(matches!(refused, MountError::NoSuchOwner(_)), "{refused}");
    host.mounts.end_owned_by("sb-1").unwrap();
    assert!(!path.exists());
}

#[test]
fn directories_that_others_made_at_the_old_path_stay() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    host.mount(&sandbox, "/a/b/c", WantedView::ReadOnly).unwrap();
    fs::rename(sandbox.inside("/a"), sandbox.inside("/moved")).unwrap();
    fs::create_dir_all(sandbox.beneath("/a/b/c")).unwrap();
    host.umount(&sandbox, "/moved/b/c", Umount::IfFree).unwrap();
    assert!(sandbox.beneath("/a/b/c").exists());
    assert!(sandbox.beneath("/moved/b").exists() && !sandbox.beneath("/moved/b/c").exists());
}

#[test]
fn a_mount_that_another_one_covers_is_not_unmounted() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let record = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap();
    let namespace = Namespace::of(&sandbox.process()).unwrap();
    let cover = || {
        rustix::mount::mount("tmpfs", "/a", "tmpfs", rustix::mount::MountFlags::empty(), None)
            .map_err(MountError::io("mount", "/a".as_ref()))
    };
    let uncover = || {
        rustix::mount::unmount("/a", rustix::mount::UnmountFlags::empty())
            .map_err(MountError::io("unmount", "/a".as_ref()))
    };
    namespace.apart(cover).unwrap();
    for how in [Umount::IfFree, Umount::Lazily] {
        let refused = host.umount(&sandbox, "/a", how).unwrap_err();
        assert!(matches!(refused, MountError::Covered(_)), "{refused}");
    }
    let refused = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap_err();
    assert!(matches!(refused, MountError::AlreadyMounted { .. }), "{refused}");
    namespace.apart(uncover).unwrap();
    assert!(record.seen.is_mounted().unwrap());
    host.umount(&sandbox, "/a", Umount::IfFree).unwrap();
}

#[test]
fn the_record_of_a_failed_mount_stays_as_long_as_it_is_mounted() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    let record = host.mount(&sandbox, "/a", WantedView::ReadOnly).unwrap();
    let records = host.dir.path().join("state/mounts");
    let namespace = Namespace::of(&sandbox.process()).unwrap();
    let cover = || {
        rustix::mount::mount("tmpfs", "/a", "tmpfs", rustix::mount::MountFlags::empty(), None)
            .map_err(MountError::io("mount", "/a".as_ref()))
    };
    namespace.apart(cover).unwrap();
    host.mounts.unmake(&record);
    assert!(record.seen.is_mounted().unwrap());
    assert_eq!(names(&records).len(), 1);
    let uncover = || {
        rustix::mount::unmount("/a", rustix::mount::UnmountFlags::empty())
            .map_err(MountError::io("unmount", "/a".as_ref()))
    };
    namespace.apart(uncover).unwrap();
    host.mounts.unmake(&record);
    assert!(!record.seen.is_mounted().unwrap());
    assert_eq!(names(&records), [""; 0]);
}

#[test]
fn the_root_of_a_container_is_not_mounted_on() {
    let (host, sandbox) = (Host::new(), Sandbox::new());
    for path in ["/", "/.", "/old/.."] {
        let refused = host.mount(&sandbox, path, WantedView::ReadOnly).unwrap_err();
        assert!(matches!(refused, MountError::OnRoot(_)), "{refused}");
    }
    assert!(host.mounts.is_empty());
}
