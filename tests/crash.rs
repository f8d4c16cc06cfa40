//! Processes that are killed in the middle leave nothing wrong behind.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::process::{Child, Stdio};

use common::{Source, import, local, of, s3, snapshots};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::tree::EveryKind;
use inlay_testkit::weed::Weed;
use inlay_testkit::{Comparison, content, scratch};

/// Ends a child that is still running when a test fails.
struct Running(Child);

impl Running {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn a_killed_import_shows_nothing_and_is_repeated_without_uploading_again() {
    let weed = Weed::start().unwrap();
    let source = scratch().unwrap();
    // Several blobs of bytes that do not compress.
    for file in 0..4 {
        let bytes = content::random(&format!("file {file}"), 30 << 20);
        fs::write(source.path().join(format!("file-{file}")), bytes).unwrap();
    }
    for (prefix, puts) in [("a", 1), ("b", 2), ("c", 3)] {
        let proxy = Proxy::start(weed.address()).unwrap();
        let inlay = s3(proxy.address(), prefix);
        let source_arg = of("dir", source.path());
        let mut command = inlay.command();
        command.args(["import", &source_arg, "--name", "cut"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut importing = Running(child);
        // So many uploads have been answered when the process dies.
        let answered = |proxy: &Proxy| {
            proxy.requests("PUT", "/blobs/").iter().filter(|seen| seen.status == Some(200)).count()
        };
        inlay_testkit::wait::until("uploads", || {
            answered(&proxy) >= puts || importing.0.try_wait().unwrap().is_some()
        });
        importing.kill();
        let seen = proxy.requests("PUT", "/blobs/");
        let stored: Vec<_> = seen.iter().filter(|seen| seen.status == Some(200)).collect();
        assert!(stored.len() >= puts, "{prefix}: {seen:?}");
        assert!(snapshots(&inlay).is_empty(), "{prefix}: a cut import is visible");

        let stored_before: Vec<String> = stored.iter().map(|seen| seen.path.clone()).collect();
        proxy.forget();
        import(&inlay, &source_arg, "whole");
        for again in proxy.requests("PUT", "/blobs/") {
            assert!(!stored_before.contains(&again.path), "{} was uploaded again", again.path);
        }
        let mounted = inlay.mount("whole", &[]).unwrap();
        Comparison::default().run(source.path(), mounted.path()).unwrap();
        mounted.unmount().unwrap();
        inlay.succeed(["verify", "whole"]).unwrap();
    }
}

#[test]
fn a_killed_mount_serves_no_wrong_byte_when_it_is_back() {
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let source = Source::every_kind(EveryKind { entries: 500, large: 8 << 20 });
    let inlay = s3(proxy.address(), "p");
    import(&inlay, &of("dir", &source.path()), "base");
    let mut mounted = inlay.mount("base", &[]).unwrap();
    for round in 1..6 {
        proxy.forget();
        let mut cat = std::process::Command::new("find");
        cat.arg(mounted.path()).args(["-type", "f", "-exec", "cat", "{}", "+"]);
        let mut reading = Running(cat.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        // In the middle of fetching, until everything is in the cache.
        inlay_testkit::wait::until("reads", || {
            proxy.requests("GET", "/blobs/").len() >= round
                || reading.0.try_wait().unwrap().is_some()
        });
        // What is being read goes on with the next daemon.
        mounted.kill_server().unwrap();
        assert!(reading.0.wait().unwrap().success());
        // And with nothing that serves it, it is gone until it is mounted again.
        mounted.kill_all_servers().unwrap();
        mounted.mount_again("base", &[]).unwrap();
    }
    Comparison::default().run(&source.path(), mounted.path()).unwrap();
    mounted.unmount().unwrap();
}

#[test]
fn changes_in_a_killed_writable_mount_reappear() {
    let source = Source::every_kind(EveryKind { entries: 10, large: 1 << 20 });
    let inlay = local();
    import(&inlay, &of("dir", &source.path()), "base");
    let mut mounted = inlay.mount("base", &["--rw"]).unwrap();
    fs::write(mounted.path().join("new"), b"written before the crash").unwrap();
    mounted.kill_all_servers().unwrap();
    mounted.mount_again("base", &["--rw"]).unwrap();
    let bytes = fs::read(mounted.path().join("new")).unwrap();
    assert_eq!(bytes, b"written before the crash");
    mounted.unmount().unwrap();
}
