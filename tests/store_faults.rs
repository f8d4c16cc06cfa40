//! A store that fails in every way costs time or a clear error, never a wrong byte.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Source, import, of, s3, snapshots};
use inlay_testkit::cli::Inlay;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::tree::EveryKind;
use inlay_testkit::weed::Weed;
use inlay_testkit::{Comparison, content};

/// A server with one snapshot, `base`, behind a proxy.
struct Setup {
    source: Source,
    proxy: Proxy,
    _weed: Weed,
}

impl Setup {
    fn new() -> Self {
        let weed = Weed::start().unwrap();
        let proxy = Proxy::start(weed.address()).unwrap();
        let source = Source::every_kind(EveryKind { entries: 100, large: 4 << 20 });
        let setup = Self { source, proxy, _weed: weed };
        import(&setup.host(), &of("dir", &setup.source.path()), "base");
        setup.proxy.forget();
        setup
    }

    /// A host that has nothing yet.
    fn host(&self) -> Inlay {
        s3(self.proxy.address(), "p")
    }

    fn large_file(&self, mounted: &Path) -> (PathBuf, Vec<u8>) {
        let name = "large/random";
        (mounted.join(name), fs::read(self.source.path().join(name)).unwrap())
    }
}

#[test]
fn reads_survive_transient_faults() {
    let setup = Setup::new();
    let faults = [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::CutBody(1000),
        Fault::CutBody(0),
        Fault::FlipByte(77),
        Fault::Status(408),
    ];
    for fault in faults {
        let host = setup.host();
        setup.proxy.heal();
        // Every second request for a blob fails, for a while.
        for skip in 0..5 {
            setup.proxy.inject(Rule::new(fault).method("GET").path("/blobs/").after(skip).times(1));
        }
        let mounted = host.mount("base", &[]).unwrap();
        Comparison::default().run(&setup.source.path(), mounted.path()).unwrap();
        mounted.unmount().unwrap();
    }
}

/// Whatever the store does for ever, the reader gets EIO, the log names the object, and when the
/// store is well again, so is the mount.
fn fails_and_recovers(fault: Fault) {
    let setup = Setup::new();
    let host = setup.host();
    let mounted = host.mount("base", &[]).unwrap();
    setup.proxy.inject(Rule::new(fault).method("GET").path("/blobs/"));
    let (path, bytes) = setup.large_file(mounted.path());
    let error = fs::read(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    let log = host.daemon_log();
    let asked = setup.proxy.requests("GET", "/blobs/");
    let blob = asked[0].path.rsplit('/').next().unwrap();
    assert!(log.contains(blob), "the log does not name {blob}: {log}");
    assert!(!log.contains('\x1b'), "a log file is no terminal: {log}");
    // What is in the index is still there.
    assert!(mounted.path().join("sizes").read_dir().unwrap().count() > 10);

    setup.proxy.heal();
    assert!(fs::read(&path).unwrap() == bytes, "wrong bytes after the store came back");
    mounted.unmount().unwrap();
}

#[test]
fn a_store_that_always_answers_500_gives_eio() {
    fails_and_recovers(Fault::Status(500));
}

#[test]
fn a_store_that_has_lost_the_object_gives_eio() {
    fails_and_recovers(Fault::Missing);
}

#[test]
fn a_store_that_always_lies_gives_eio() {
    fails_and_recovers(Fault::FlipByte(5));
}

#[test]
fn a_store_that_never_answers_gives_eio_after_the_deadline() {
    fails_and_recovers(Fault::Stall);
}

#[test]
fn a_store_that_stops_within_bodies_gives_eio_after_the_deadline() {
    fails_and_recovers(Fault::StallBody(100));
}

#[test]
fn a_process_that_waits_for_a_stalled_store_can_be_killed() {
    let setup = Setup::new();
    let host = setup.host();
    let mounted = host.mount("base", &[]).unwrap();
    setup.proxy.inject(Rule::new(Fault::Stall).method("GET").path("/blobs/"));
    let (path, _) = setup.large_file(mounted.path());
    let mut reader = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().unwrap();
    inlay_testkit::wait::until("a request for a blob", || {
        assert!(reader.try_wait().unwrap().is_none(), "the reader did not wait");
        !setup.proxy.requests("GET", "/blobs/").is_empty()
    });
    reader.kill().unwrap();
    let status = reader.wait().unwrap();
    assert!(!status.success());
    assert!(setup.proxy.requests("GET", "/blobs/").iter().all(|seen| seen.status.is_none()));
}

#[test]
fn an_import_survives_transient_errors() {
    let setup = Setup::new();
    let host = setup.host();
    for fault in [Fault::Status(500), Fault::Status(503)] {
        setup.proxy.inject(Rule::new(fault).method("PUT").path("/blobs/").times(2));
    }
    let dir = inlay_testkit::scratch().unwrap();
    fs::write(dir.path().join("file"), content::random("new", 1 << 20)).unwrap();
    import(&host, &of("dir", dir.path()), "new");
    let mounted = host.mount("new", &[]).unwrap();
    Comparison::default().run(dir.path(), mounted.path()).unwrap();
}

#[test]
fn an_import_that_fails_says_so_and_shows_nothing() {
    let setup = Setup::new();
    let host = setup.host();
    setup.proxy.inject(Rule::new(Fault::Status(500)).method("PUT").path("/blobs/"));
    let dir = inlay_testkit::scratch().unwrap();
    fs::write(dir.path().join("file"), content::random("new", 1 << 20)).unwrap();
    let ran = host.fail(["import", &of("dir", dir.path()), "--name", "new"]).unwrap();
    assert!(ran.stderr.contains("blobs/"), "the object is not named: {ran:?}");
    assert_eq!(snapshots(&host).len(), 1, "only the first one");
    setup.proxy.heal();
    import(&host, &of("dir", dir.path()), "new");
    assert_eq!(snapshots(&host).len(), 2);
}

#[test]
fn a_damaged_object_is_found_by_verify() {
    let setup = Setup::new();
    let host = setup.host();
    host.succeed(["verify", "base"]).unwrap();
    setup.proxy.inject(Rule::new(Fault::FlipByte(50)).method("GET").path("/blobs/"));
    let ran = host.fail(["verify", "base"]).unwrap();
    assert!(ran.text().contains("blob") || ran.stderr.contains("blob"), "{ran:?}");
}

#[test]
fn a_store_that_is_away_is_an_error_that_says_so() -> io::Result<()> {
    let [nobody] = inlay_testkit::process::free_addresses()?;
    let host = s3(nobody, "p");
    let ran = host.fail(["snapshots"])?;
    assert!(ran.stderr.contains("s3://"), "the store is not named: {ran:?}");
    assert_eq!(ran.stderr.trim().lines().count(), 1, "{ran:?}");
    Ok(())
}
