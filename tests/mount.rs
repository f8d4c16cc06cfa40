//! Mounts as the command line makes them: writable views, mount points, namespaces, and what happens
//! around the daemon. They need root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::compare::{Difference, NotSame, What};
use inlay_testkit::process::Server;
use inlay_testkit::tree::EveryKind;
use inlay_testkit::{Comparison, Holes, content, scratch};
use serde_json::Value;
use tempfile::TempDir;

/// A tree that was imported as `base`, and a state of its own.
struct Host {
    inlay: Inlay,
    dir: TempDir,
}

impl Host {
    /// With a tree that `fill` fills.
    fn new(fill: impl FnOnce(&Path)) -> Self {
        Self::of(local(), fill)
    }

    fn of(inlay: Inlay, fill: impl FnOnce(&Path)) -> Self {
        let host = Self { inlay, dir: scratch().unwrap() };
        fs::create_dir(host.tree()).unwrap();
        fill(&host.tree());
        import(&host.inlay, &of("dir", &host.tree()), "base");
        host
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Nothing is mounted, no process works, and the state holds no traces of mounts.
    fn assert_clean(&self) {
        self.inlay.wait_until_quiet().unwrap();
        for dir in ["mounts", "attached", "upper"] {
            let Ok(entries) = fs::read_dir(self.inlay.state().join(dir)) else { continue };
            let left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
}

fn one_file(tree: &Path) {
    fs::write(tree.join("file"), "x").unwrap();
}

fn system_umount(args: &[&str], path: &Path) {
    assert!(Command::new("umount").args(args).arg(path).status().unwrap().success());
}

const SCRATCH: &[&str] = &["--rw", "--scratch"];

#[test]
fn a_writable_view_is_an_ordinary_root_filesystem() {
    let host = Host::new(|tree| {
        EveryKind { entries: 100, large: 2 << 20 }.make(tree).unwrap();
        fs::copy("/usr/bin/id", tree.join("id")).unwrap();
    });
    let mounted = host.inlay.mount("base", SCRATCH).unwrap();
    let (tree, mnt) = (host.tree(), mounted.path());
    let all = Comparison::default().holes(Holes::Ignore);
    let outcome = all.without_attributes("trusted.overlay.").run(&tree, mnt);
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
    let stat = fs::metadata(mnt.join("renamed/text-1")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (12, 13));
    assert!(!mnt.join("many").exists() && !mnt.join("renamed/random-1").exists());
    assert!(tree.join("many").exists());
    drop(file);
    mounted.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn owners_are_shown_as_others_wherever_a_snapshot_is_served() {
    // One with attributes and a large file, which is attached in two parts below an overlay, and one
    // without.
    for large in [false, true] {
        let host = Host::new(|tree| {
            one_file(tree);
            fs::write(tree.join("other"), "o").unwrap();
            chown(tree.join("other"), Some(7), Some(8)).unwrap();
            fs::write(tree.join("theirs"), "t").unwrap();
            chown(tree.join("theirs"), Some(1000), Some(1001)).unwrap();
            if large {
                fs::write(tree.join("large"), content::random("x", 3 << 20)).unwrap();
            }
        });
        for options in [&[][..], SCRATCH] {
            let options = [options, &["--chown", "1000:1001"]].concat();
            let mounted = host.inlay.mount("base", &options).unwrap();
            let owner = |name: &str| {
                let meta = fs::metadata(mounted.path().join(name)).unwrap();
                (meta.uid(), meta.gid())
            };
            assert_eq!((owner(""), owner("file")), ((1000, 1001), (1000, 1001)));
            assert_eq!((owner("other"), owner("theirs")), ((7, 8), (1000, 1001)));
            assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"x");
            if options.len() > 2 {
                let mut append = Command::new("setpriv");
                append.args(["--reuid", "1000", "--regid", "1001", "--clear-groups", "tee", "-a"]);
                append.arg("file").current_dir(mounted.path()).stdin(Stdio::null());
                assert!(append.stdout(Stdio::null()).status().unwrap().success());
            }
            if large {
                assert_eq!(fs::read(mounted.path().join("large")).unwrap().len(), 3 << 20);
                assert_eq!(owner("large"), (1000, 1001));
            }
            mounted.unmount().unwrap();
        }
        host.assert_clean();
    }
}

#[test]
fn changing_attributes_fetches_no_contents() {
    let host = Host::new(|tree| {
        fs::write(tree.join("file"), content::random("x", 3 << 20)).unwrap();
    });
    let mounted = host.inlay.mount("base", &["--rw", "--scratch", "--no-cache"]).unwrap();
    let blobs = host.inlay.state().join("store/blobs");
    fs::rename(&blobs, blobs.with_extension("away")).unwrap();
    let file = mounted.path().join("file");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    chown(&file, Some(5), None).unwrap();
    let stat = fs::metadata(&file).unwrap();
    assert_eq!((stat.mode() & 0o777, stat.uid(), stat.len()), (0o600, 5, 3 << 20));
    assert!(fs::read(&file).is_err(), "there is nothing to be had");
}

#[test]
fn an_upper_directory_is_one_mounts_and_one_snapshots() {
    let host = Host::new(one_file);
    let upper = host.path("upper").display().to_string();
    let options = ["--rw", "--upper", &upper];
    let mounted = host.inlay.mount("base", &options).unwrap();
    fs::write(mounted.path().join("new"), "n").unwrap();
    let refused = host.inlay.mount("base", &options).unwrap_err().to_string();
    assert!(refused.contains("used by another mount"), "{refused}");

    // Out of sight, but in use: still nobody else's.
    let open = File::create(mounted.path().join("open")).unwrap();
    system_umount(&["--lazy"], mounted.path());
    let refused = host.inlay.mount("base", &options).unwrap_err().to_string();
    assert!(refused.contains("used by another mount"), "{refused}");
    drop(open);
    drop(mounted);
    host.assert_clean();

    let again = host.inlay.mount("base", &options).unwrap();
    assert_eq!(fs::read(again.path().join("new")).unwrap(), b"n");
    again.unmount().unwrap();
    fs::write(host.tree().join("file"), "other").unwrap();
    import(&host.inlay, &of("dir", &host.tree()), "base");
    let refused = host.inlay.mount("base", &options).unwrap_err().to_string();
    assert!(refused.contains("holds changes to"), "{refused}");
}

#[test]
fn paths_with_odd_bytes_and_of_any_length_are_as_good_as_others() {
    let odd = OsStr::from_bytes(b"a:b,c\\d e\\:\xff\n\"'%$f=g");
    let long = "l".repeat(120);
    for name in [odd, OsStr::new(&long)] {
        let parent = scratch().unwrap();
        // Deeper than the address of a socket is long, and than the kernel takes a layer's path.
        let state = parent.path().join(name).join(name).join(name).join("state");
        fs::create_dir_all(&state).unwrap();
        let inlay = Inlay::with_state(env!("CARGO_BIN_EXE_inlay"), parent, state);
        let host = Host::of(inlay, one_file);
        let dir = host.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        for options in [&[][..], SCRATCH] {
            let words = ["mount", "base"].map(OsStr::new).into_iter().chain([dir.as_os_str()]);
            host.inlay.succeed(words.chain(options.iter().map(OsStr::new))).unwrap();
            assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
            let mode = fs::metadata(host.inlay.state().join("run/daemon.sock")).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600);
            host.inlay.succeed(["umount".as_ref(), dir.as_os_str()]).unwrap();
            host.assert_clean();
        }
    }
}

#[test]
fn a_mount_point_is_an_existing_directory_and_taken_once() {
    let host = Host::new(one_file);
    let mounted = host.inlay.mount("base", &[]).unwrap();
    let words = ["mount", "base"].map(OsStr::new).into_iter();
    let twice = host.inlay.fail(words.chain([mounted.path().as_os_str()])).unwrap();
    assert!(twice.stderr.contains("already mounted"), "{twice:?}");
    for (path, named) in [("absent", "/absent"), ("tree/file", "/tree/file")] {
        let path = host.path(path).display().to_string();
        let refused = host.inlay.fail(["mount", "base", &path]).unwrap();
        assert!(refused.stderr.contains(named), "{refused:?}");
        assert!(refused.stderr.contains("must be an existing directory"), "{refused:?}");
    }
    mounted.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn unmounting_from_outside_leaves_nothing() {
    let host = Host::new(one_file);
    for options in [&[][..], SCRATCH] {
        let mounted = host.inlay.mount("base", options).unwrap();
        system_umount(&[], mounted.path());
        host.assert_clean();
    }
}

#[test]
fn a_lazy_unmount_lets_open_files_be_read_to_their_end() {
    let bytes = content::random("x", 2 << 20);
    let host = Host::new(|tree| {
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), &bytes).unwrap();
    });
    for options in [&[][..], SCRATCH] {
        for by in ["system", "inlay"] {
            let mounted = host.inlay.mount("base", options).unwrap();
            let mut file = File::open(mounted.path().join("a/b/file")).unwrap();
            if by == "system" {
                system_umount(&["--lazy"], mounted.path());
            } else {
                let words = ["umount", "--lazy"].map(OsStr::new).into_iter();
                host.inlay.succeed(words.chain([mounted.path().as_os_str()])).unwrap();
            }
            assert!(!mounted.path().join("a").exists());
            let mut read = Vec::new();
            file.read_to_end(&mut read).unwrap();
            assert!(read == bytes);
            drop(file);
            host.assert_clean();
        }
    }
}

#[test]
fn a_foreign_mount_on_top_is_not_unmounted() {
    let host = Host::new(one_file);
    let mounted = host.inlay.mount("base", SCRATCH).unwrap();
    let over = Command::new("mount").args(["-t", "tmpfs", "other"]).arg(mounted.path()).status();
    assert!(over.unwrap().success());
    let umount = ["umount".as_ref(), mounted.path().as_os_str()];
    let covered = host.inlay.fail(umount);
    system_umount(&[], mounted.path());
    let covered = covered.unwrap();
    assert!(covered.stderr.contains("a mount that is not inlay's covers"), "{covered:?}");
    mounted.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn one_snapshot_is_attached_once_whatever_the_number_of_mounts() {
    let host = Host::new(one_file);
    let plain = [host.inlay.mount("base", &[]).unwrap(), host.inlay.mount("base", &[]).unwrap()];
    let counts = || {
        let status = host.inlay.daemon_status().unwrap();
        (status["mounts"].as_u64().unwrap(), status["attached"].as_u64().unwrap())
    };
    assert_eq!(counts(), (2, 1));
    // Below overlays it is attached as they need it: once, too.
    let writable = host.inlay.mount("base", SCRATCH).unwrap();
    let another = host.inlay.mount("base", SCRATCH).unwrap();
    assert_eq!(counts(), (4, 2));
    another.unmount().unwrap();
    // The same file, down to the inode.
    let [one, two] = plain.each_ref().map(|mounted| {
        let stat = fs::metadata(mounted.path().join("file")).unwrap();
        (stat.dev(), stat.ino())
    });
    assert_eq!(one, two);
    let [first, second] = plain;
    first.unmount().unwrap();
    assert_eq!(fs::read(second.path().join("file")).unwrap(), b"x");
    assert_eq!(fs::read(writable.path().join("file")).unwrap(), b"x");
    second.unmount().unwrap();
    writable.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn clients_that_start_a_daemon_at_once_get_the_same() {
    let host = Host::new(one_file);
    let dirs: Vec<PathBuf> = (0..8).map(|number| host.path(&format!("mnt-{number}"))).collect();
    let clients: Vec<_> = dirs
        .iter()
        .map(|dir| {
            fs::create_dir(dir).unwrap();
            let mut command = host.inlay.command();
            command.args(["mount", "--json", "base"]).arg(dir);
            command.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let answers: Vec<Value> = clients
        .into_iter()
        .map(|client| {
            let output = client.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", host.inlay.daemon_log());
            serde_json::from_slice(&output.stdout).unwrap()
        })
        .collect();
    for (dir, answer) in dirs.iter().zip(&answers) {
        assert_eq!(answer["server"], answers[0]["server"]);
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
        host.inlay.succeed(["umount".as_ref(), dir.as_os_str()]).unwrap();
    }
    host.assert_clean();
}

#[test]
fn a_mount_is_made_where_its_caller_is() {
    let host = Host::new(one_file);
    let dir = host.path("mnt");
    fs::create_dir(&dir).unwrap();
    // Keeps the daemon in this test's namespace.
    let outside = host.inlay.mount("base", &[]).unwrap();
    let command = host.inlay.command();
    let program = command.get_program().to_str().unwrap();
    let dir = dir.display();
    for options in ["", "--rw --scratch"] {
        let script = format!(
            "{program} mount {options} base {dir} && cat {dir}/file \
             && {program} mounts --json && {program} umount {dir} && ! test -e {dir}/file \
             && {program} mount base {dir}"
        );
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                inside.env(name, value);
            }
        }
        let output = inside.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("\nx["), "{output:?}");
        // The last mount has gone with its namespace, and was never seen from here.
        assert!(!host.path("mnt").join("file").exists());
    }
    outside.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn a_mount_of_a_gone_caller_does_not_stay() {
    use inlay_mounts::{MountFlags, WantedView};
    use inlay_testkit::faults::{Fault, Rule};
    use inlay_testkit::proxy::Proxy;
    use inlay_testkit::weed::{BUCKET, Weed};
    use inlayfs::daemon::{
        CacheUse, Client, ClientError, ErrorKind, LoadOptions, MOUNTS, MountInfo, MountOrigin,
        MountRequest, Paths, StoreRef,
    };
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let prefix = "given-up";
    let host = Host::of(common::s3(proxy.address(), prefix), one_file);
    // A host that has nothing of it yet.
    let next = common::s3(proxy.address(), prefix);
    let dir = host.path("mnt");
    fs::create_dir(&dir).unwrap();
    proxy.forget();
    proxy.inject(Rule::new(Fault::Stall).method("GET").path("/names/"));
    let mut client = next.command();
    client.args(["mount", "base"]).arg(&dir).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = client.spawn().unwrap();
    inlay_testkit::wait::until("a request for the name", || {
        !proxy.requests("GET", "/names/").is_empty()
    });
    // One that says how long it waits, and is told when that is over.
    let other = host.path("other");
    fs::create_dir(&other).unwrap();
    let request = MountRequest {
        load: LoadOptions::default(),
        snapshot: "base".into(),
        store: StoreRef { url: Some(format!("s3://{BUCKET}/{prefix}")), plain_http: false },
        cache: CacheUse::Kept,
        mountpoint: (&*other).into(),
        pid: None,
        view: WantedView::ReadOnly,
        chown: None,
        flags: MountFlags::default(),
        origin: MountOrigin::Command,
        deadline_ms: 50,
    };
    let api = Client::new(&Paths::of(next.state())).unwrap();
    let late = api.post::<MountInfo>(MOUNTS, &request, std::time::Duration::from_mins(1));
    let late = late.unwrap_err();
    let ClientError::Refused(answer) = &late else { panic!("{late}") };
    assert_eq!(answer.kind, ErrorKind::Deadline);
    // And one that is gone.
    client.kill().unwrap();
    client.wait().unwrap();
    proxy.heal();
    next.wait_until_quiet().unwrap();
    assert!(!dir.join("file").exists() && !other.join("file").exists());
}

#[test]
fn slots_of_another_life_are_not_taken_for_ours() {
    let host = Host::new(one_file);
    let attached = host.inlay.state().join("attached");
    let mounts = host.inlay.state().join("mounts");
    let mounted = host.inlay.mount("base", SCRATCH).unwrap();
    let keep = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let files = [keep(&attached), keep(&mounts)].concat();
    assert_eq!(files.len(), 2);
    mounted.unmount().unwrap();
    host.assert_clean();
    // As after a crash of the host: files of a keeper that is gone, and the changes of its mounts.
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
    let left = host.inlay.state().join("upper/scratch-left");
    fs::create_dir_all(left.join("upper")).unwrap();
    let mounted = host.inlay.mount("base", &[]).unwrap();
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"x");
    assert_eq!(host.inlay.daemon_status().unwrap()["mounts"], 1);
    assert!(!left.exists());
    mounted.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn a_second_daemon_is_refused() {
    let host = Host::new(one_file);
    let mounted = host.inlay.mount("base", &[]).unwrap();
    let refused = host.inlay.fail(["daemon"]).unwrap();
    assert!(refused.stderr.contains("--takeover"), "{refused:?}");
    mounted.unmount().unwrap();
    host.assert_clean();
}

#[test]
fn the_socket_is_its_owners_and_one_groups() {
    // Somewhere that others can reach.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
    let state = dir.path().join("state");
    let inlay = Inlay::with_state(env!("CARGO_BIN_EXE_inlay"), dir, state);
    let program = PathBuf::from(inlay.command().get_program());
    let log = scratch().unwrap();
    let words = ["daemon", "--socket-group", "12345", "--state"].map(str::to_owned);
    let words = [&words[..], &[inlay.state().display().to_string()]].concat();
    let server = Server::start(&program, &words, &log.path().join("log")).unwrap();
    inlay.wait_for_daemon().unwrap();
    let socket = inlay.state().join("run/daemon.sock");
    let may_write = |group: &str| {
        let mut test = Command::new("setpriv");
        test.args(["--reuid", "65534", "--regid", group, "--clear-groups", "test", "-w"]);
        test.arg(&socket).status().unwrap().success()
    };
    assert!(may_write("12345"));
    assert!(!may_write("54321"));
    inlay.succeed(["daemon", "stop"]).unwrap();
    drop(server);
    inlay.wait_until_quiet().unwrap();
}

#[test]
fn a_service_manager_is_told() {
    use std::os::unix::net::UnixDatagram;
    let host = Host::new(one_file);
    let socket = host.path("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    listener.set_read_timeout(Some(std::time::Duration::from_mins(1))).unwrap();
    let command = host.inlay.command();
    let program = PathBuf::from(command.get_program());
    let state = host.inlay.state().display().to_string();
    let words = ["daemon", "--state", &state].map(str::to_owned);
    let told = || {
        loop {
            let mut text = [0; 100];
            let len = listener.recv(&mut text).unwrap();
            let text = String::from_utf8_lossy(&text[..len]).into_owned();
            // What it is to keep is tests/service.rs's matter.
            if !text.starts_with("FDSTORE") {
                return text;
            }
        }
    };
    let server =
        Server::start_with(&program, &words, &host.path("log"), [("NOTIFY_SOCKET", &socket)]);
    let server = server.unwrap();
    assert!(told().starts_with("READY=1"));
    assert_eq!(host.inlay.daemon_status().unwrap()["server"]["pid"], server.pid());
    host.inlay.succeed(["daemon", "stop"]).unwrap();
    assert!(told().starts_with("STOPPING=1"));
    host.assert_clean();
}
