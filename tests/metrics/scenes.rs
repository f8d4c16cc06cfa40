//! What makes metrics move: each scene has a daemon of its own and says what moved.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use inlay_testkit::cli::Inlay;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::tree::EveryKind;
use inlay_testkit::{Comparison, content, scratch};
use rustix::fs::{Advice, fadvise};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::common::boxes::Boxes;
use crate::common::{Source, import, of, s3};
use crate::watch::Watch;

const MIB: usize = 1 << 20;

/// A directory of files whose contents do not compress.
fn files(sizes: &[(&str, usize)]) -> TempDir {
    let dir = scratch().unwrap();
    for (name, len) in sizes {
        fs::write(dir.path().join(name), content::random(name, *len)).unwrap();
    }
    dir
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number:03}")).collect()
}

fn many(prefix: &str, count: usize, len: usize) -> TempDir {
    let names = names(prefix, count);
    files(&names.iter().map(|name| (name.as_str(), len)).collect::<Vec<_>>())
}

fn blobs(fault: Fault) -> Rule {
    Rule::new(fault).method("GET").path("/blobs/")
}

/// Readers of all kinds of objects, of a store that is well, slow, lying and forgetful.
pub(crate) fn readers(proxy: &Proxy) -> BTreeSet<String> {
    let host = s3(proxy.address(), "readers");
    let source = Source::every_kind(EveryKind { entries: 100, large: 4 * MIB });
    import(&host, &of("dir", &source.path()), "base");
    let small = many("small", 200, 6000);
    import(&host, &of("dir", small.path()), "small");
    let waiting = many("file", 40, 6000);
    import(&host, &of("dir", waiting.path()), "waiting");
    for name in ["lies", "forgets"] {
        import(&host, &of("dir", files(&[(name, 200_000)]).path()), name);
    }

    let mut watch = Watch::start(&host, &["--cache-size", "1G"]);
    let base = host.mount("base", &[]).unwrap();
    watch.scrape();
    Comparison::default().run(&source.path(), base.path()).unwrap();
    watch.until_above("inlay_cache_sealed_files_total", 0.0);
    passed_through(&mut watch, &base.path().join("large/random"));

    let mounted = host.mount("small", &[]).unwrap();
    Comparison::default().run(small.path(), mounted.path()).unwrap();
    mounted.unmount().unwrap();
    two_wait_for_one(&mut watch, proxy, &host);
    for (name, fault) in [("lies", Fault::FlipByte(5)), ("forgets", Fault::Missing)] {
        let mounted = host.mount(name, &[]).unwrap();
        proxy.inject(blobs(fault));
        fs::read(mounted.path().join(name)).unwrap_err();
        proxy.heal();
        mounted.unmount().unwrap();
        watch.scrape();
    }
    base.unmount().unwrap();
    watch.end()
}

/// A large file that is whole in the cache is opened.
fn passed_through(watch: &mut Watch<'_>, path: &Path) {
    let _open = File::open(path).unwrap();
    watch.until_above("inlay_open_files", 0.0);
    watch.until_above("inlay_fuse_passthrough_opens_total", 0.0);
}

/// A reader waits for a request that the store does not answer, and another one for the same group.
fn two_wait_for_one(watch: &mut Watch<'_>, proxy: &Proxy, host: &Inlay) {
    let mounted = host.mount("waiting", &[]).unwrap();
    proxy.inject(blobs(Fault::Stall).times(1));
    thread::scope(|scope| {
        let read = |name: &str| fs::read(mounted.path().join(name)).unwrap();
        scope.spawn(move || read("file-000"));
        watch.until_above("inlay_fetch_waiting_readers", 0.0);
        let joined = watch.sum("inlay_fetch_joined_readers_total");
        scope.spawn(move || read("file-001"));
        watch.until_above("inlay_fetch_joined_readers_total", joined);
    });
    watch.scrape();
    mounted.unmount().unwrap();
}

/// Snapshots loaded ahead: used in part, given up, recorded.
pub(crate) fn loading_ahead(proxy: &Proxy) -> BTreeSet<String> {
    let host = s3(proxy.address(), "ahead");
    let dir = many("file", 60, MIB);
    import(&host, &of("dir", dir.path()), "ahead");
    import(&host, &of("dir", many("more", 60, MIB).path()), "more");
    let options = ["--prefetch", "all", "--record-profile", "on"];
    let mut watch = Watch::start(&host, &["--cache-size", "1G"]);

    proxy.inject(blobs(Fault::Stall).after(3));
    let mounted = host.mount("ahead", &options).unwrap();
    watch.until_above("inlay_prefetch_fetched_bytes_total", 0.0);
    watch.until_above("inlay_fetch_queued_groups", 0.0);
    thread::scope(|scope| {
        for name in names("file", 40) {
            let path = mounted.path().join(name);
            scope.spawn(move || fs::read(path).unwrap());
        }
        watch.until_above("inlay_fetch_promoted_groups_total", 0.0);
        proxy.heal();
    });
    watch.until_above("inlay_prefetch_used_bytes_total", 0.0);
    watch.until_above("inlay_fetch_coalesced_groups_total", 0.0);
    mounted.unmount().unwrap();
    watch.until_above("inlay_profiles_recorded_total", 0.0);

    // Another one, of which the cache has nothing: what nobody waits for is given up.
    watch.until("all is let go", |watch| watch.sum("inlay_attached_snapshots") == 0.0);
    let fetched = watch.sum("inlay_prefetch_fetched_bytes_total");
    let no_profiles = || proxy.inject(Rule::new(Fault::Status(403)).path("profile"));
    no_profiles();
    proxy.inject(blobs(Fault::Stall).after(3));
    let mounted = host.mount("more", &options).unwrap();
    watch.until_above("inlay_prefetch_fetched_bytes_total", fetched);
    watch.until_above("inlay_fetch_tasks", 0.0);
    thread::scope(|scope| {
        let path = mounted.path().join("more-059");
        scope.spawn(move || fs::read(path).unwrap());
        watch.until_above("inlay_fetch_waiting_readers", 0.0);
        host.succeed(["umount".as_ref(), "--lazy".as_ref(), mounted.path().as_os_str()]).unwrap();
        watch.until_above("inlay_fetch_cancelled_requests_total", 0.0);
        watch.until_above("inlay_prefetch_wasted_bytes_total", 0.0);
        proxy.heal();
        no_profiles();
    });
    drop(mounted);
    watch.until_above("inlay_profiles_failed_total", 0.0);
    watch.end()
}

/// More than the cache takes; and what happens to its files while nobody looks.
pub(crate) fn small_cache(proxy: &Proxy) -> BTreeSet<String> {
    let host = s3(proxy.address(), "cache");
    let [first, more] = ["first", "more"].map(|name| {
        let dir = many(name, 12, 2 * MIB);
        import(&host, &of("dir", dir.path()), name);
        names(name, 12)
    });
    let small = many("small", 40, 100_000);
    import(&host, &of("dir", small.path()), "small");

    let mut watch = Watch::start(&host, &["--cache-size", "8M"]);
    let mounted = host.mount("first", &[]).unwrap();
    for name in first {
        fs::read(mounted.path().join(name)).unwrap();
    }
    watch.until_above("inlay_cache_evicted_files_total", 0.0);
    mounted.unmount().unwrap();
    // What is whole when it is opened does not go, so that the rest finds no room.
    let mounted = host.mount("more", &[]).unwrap();
    let (mut open, mut passed, mut names) = (Vec::new(), 0.0, more.iter().cycle());
    watch.until("no room is left", |watch| {
        let now = watch.sum("inlay_fuse_passthrough_opens_total");
        if now <= passed {
            // It was opened too soon, and may go.
            open.pop();
        }
        passed = now;
        let path = mounted.path().join(names.next().unwrap());
        // So that the kernel asks again for what was evicted.
        fadvise(File::open(&path).unwrap(), 0, None, Advice::DontNeed).unwrap();
        fs::read(&path).unwrap();
        open.push(File::open(path).unwrap());
        watch.sum("inlay_cache_refused_groups_total") > 0.0
    });
    drop(open);
    mounted.unmount().unwrap();
    let budget = watch.sum("inlay_cache_budget_bytes");
    let mut moved = watch.end();

    host.succeed(["cache", "prune", "--all"]).unwrap();
    let read_all = || {
        let mounted = host.mount("small", &[]).unwrap();
        Comparison::default().run(small.path(), mounted.path()).unwrap();
        mounted.unmount().unwrap();
    };
    let watch = Watch::start(&host, &["--cache-size", "64M"]);
    // It does not change while a daemon lives, or with the free disk alone.
    assert!(watch.sum("inlay_cache_budget_bytes") > budget);
    moved.insert("inlay_cache_budget_bytes".to_owned());
    read_all();
    moved.extend(watch.end());
    let cached = cached(&host);
    for (number, path) in cached.iter().enumerate() {
        let file = || File::options().write(true).open(path).unwrap();
        match number % 4 {
            0 => file().set_len(1000).unwrap(),
            1 => file().write_all_at(b"damaged", 500).unwrap(),
            2 => {
                // It can't be opened.
                fs::remove_file(path).unwrap();
                symlink(path, path).unwrap();
            }
            _ => {}
        }
    }
    assert!(cached.len() >= 4, "{cached:?}");
    let watch = Watch::start(&host, &[]);
    read_all();
    moved.extend(watch.end());
    moved
}

fn cached(host: &Inlay) -> Vec<PathBuf> {
    let below = |dir: PathBuf| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    below(host.state().join("cache/groups")).flat_map(below).collect()
}

/// Mounts that go with this, the last one first.
struct Disk(Vec<PathBuf>, TempDir);

impl Disk {
    /// A small disk, and an overlay on it, whose files the kernel can't pass through.
    fn new(size: &str) -> Self {
        let mut disk = Self(Vec::new(), scratch().unwrap());
        let [small, over] = ["small", "over"].map(|name| disk.1.path().join(name));
        fs::create_dir(&small).unwrap();
        fs::create_dir(&over).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        mount("inlay-test", &small, "tmpfs", MountFlags::empty(), &*options).unwrap();
        disk.0.push(small.clone());
        for name in ["lower", "upper", "work"] {
            fs::create_dir(small.join(name)).unwrap();
        }
        let at = |name| small.join(name).display().to_string();
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
        let made = Command::new("mount")
            .args(["-t", "overlay", "inlay-test", "-o", &layers])
            .arg(&over)
            .status();
        assert!(made.unwrap().success());
        disk.0.push(over);
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        while let Some(path) = self.0.pop() {
            let _ = unmount(&path, UnmountFlags::DETACH);
        }
    }
}

/// A disk that is full before the cache is, and whose files the kernel can't read by itself.
pub(crate) fn bad_disk(proxy: &Proxy) -> BTreeSet<String> {
    let importer = s3(proxy.address(), "disk");
    let dir = many("file", 20, 3 * MIB);
    import(&importer, &of("dir", dir.path()), "large");

    let disk = Disk::new("24m");
    let state = disk.0[1].join("state");
    let host = Inlay::with_state(env!("CARGO_BIN_EXE_inlay"), scratch().unwrap(), state)
        .with_environment(inlay_testkit::weed::Weed::environment(proxy.address()))
        .with_environment([("INLAY_STORE", format!("s3://{}/disk", inlay_testkit::weed::BUCKET))]);
    let mut watch = Watch::start(&host, &["--cache-size", "1G"]);
    let mounted = host.mount("large", &[]).unwrap();
    let mut files = names("file", 20).into_iter().map(|name| mounted.path().join(name));
    let first = files.next().unwrap();
    fs::read(&first).unwrap();
    watch.until_above("inlay_cache_sealed_files_total", 0.0);
    drop(File::open(first).unwrap());
    // A write that was under way when another one failed may say that all is well: then the next
    // file fills the disk.
    inlay_testkit::wait::until("the disk to fail", || {
        if watch.sum("inlay_cache_disk_failing") > 0.0 {
            return true;
        }
        fs::read(files.next().unwrap()).unwrap();
        watch.scrape();
        false
    });
    watch.until_above("inlay_cache_write_failures_total", 0.0);
    fs::read(files.next().unwrap()).unwrap();
    watch.until_above("inlay_fetch_not_cached_groups_total", 0.0);
    mounted.unmount().unwrap();
    let moved = watch.end();
    drop((host, disk));
    moved
}

/// Sandboxes, what is mounted into them, snapshots of them; and each of these when it fails.
pub(crate) fn sandboxes(proxy: &Proxy) -> BTreeSet<String> {
    let host = Boxes::new(s3(proxy.address(), "boxes"));
    let mut watch = Watch::start(&host.inlay, &[]);
    let mounted = host.inlay.mount("data", &[]).unwrap();
    watch.until_above("inlay_mount_seconds", 0.0);
    let place = mounted.path().to_str().unwrap().to_owned();
    for words in [
        &["mount", "nothing", &place][..],
        &["mount", "nothing", "a:/nothing"],
        &["snapshot", "a:/nothing"],
        &["sandbox", "create", "base", "--", "/bin/nothing"],
    ] {
        if words.contains(&"a:/nothing") && host.sandboxes().is_empty() {
            host.create("a", &[]);
        }
        assert!(!host.run(words).status.success(), "{words:?}");
    }
    mounted.unmount().unwrap();
    host.succeed(&["mount", "data", "a:/data"]);
    watch.until_above("inlay_sandbox_mounts", 0.0);
    host.sh("a", "dd if=/dev/urandom of=/data/new bs=1000 count=100");
    host.snapshot("a:/data");
    watch.until_above("inlay_capture_stored_bytes_total", 0.0);

    proxy.inject(Rule::new(Fault::Status(503)).method("PUT"));
    host.sh("a", "echo more > /data/more");
    host.succeed(&["snapshot", "a:/data", "--wait", "sealed"]);
    watch.until_above("inlay_sealed_snapshots", 0.0);
    proxy.heal();
    watch.until("what was sealed is in its store", |watch| {
        watch.sum("inlay_sealed_snapshots") == 0.0
    });
    host.succeed(&["sandbox", "rm", "--force", "a"]);
    watch.until("the sandbox is gone", |watch| watch.sum("inlay_sandboxes") == 0.0);
    watch.end()
}
