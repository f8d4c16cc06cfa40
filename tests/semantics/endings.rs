//! How mounts end, how daemons end without them, and that nothing of either stays.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use inlay_testkit::content;
use inlay_testkit::output::output;
use inlay_testkit::service::Manager;
use rustix::process::{Pid, Signal, kill_process};

use crate::place::{Place, ends_within};

const VIEWS: [&[&str]; 2] = [&[], &["--rw", "--scratch"]];
const LONG: Duration = Duration::from_mins(1);

/// A program that is killed should it outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kill(pid: Pid) {
    kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn unmounting_leaves_nothing() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        assert_eq!(mounted.read("file"), b"x");
        let process = mounted.process();
        place.run(["umount".as_ref(), place.mnt().as_os_str()]);
        assert!(!mounted.path("file").exists());
        assert!(
            place.files_in_state("mounts").is_empty() && place.files_in_state("upper").is_empty()
        );
        assert!(ends_within(&process, LONG), "the daemon stays");
        place.assert_nothing_left();
        drop(mounted);
    }
}

#[test]
fn a_mount_in_the_foreground_ends_with_its_command() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        for end in ["signal", "umount"] {
            let mut command = place.inlay.command();
            command.args(["mount", "--foreground"]).args(options).arg("base").arg(place.mnt());
            let mut command = Running(command.stdout(Stdio::piped()).spawn().unwrap());
            // The answer comes when it is mounted.
            let mut said = [0; 4];
            command.0.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            let open = File::open(place.mnt().join("file")).unwrap();
            if end == "signal" {
                kill_process(Pid::from_child(&command.0), Signal::TERM).unwrap();
            } else {
                let mnt = place.mnt();
                place.run(["umount".as_ref(), "--lazy".as_ref(), mnt.as_os_str()]);
            }
            assert!(command.0.wait().unwrap().success());
            assert!(!place.mnt().join("file").exists());
            drop(open);
            place.assert_nothing_left();
        }
    }
}

#[test]
fn a_mount_in_use_is_left_alone_unless_asked() {
    let bytes = content::random("x", 1 << 20);
    let place = Place::with(&[("file", &bytes)]);
    let mnt = place.mnt();
    let mounted = place.mount("base", &[]);
    let mut open = File::open(mounted.path("file")).unwrap();
    let said = place.refused(["umount".as_ref(), mnt.as_os_str()]);
    assert!(said.contains("in use"), "{said}");
    assert!(mounted.read("file") == bytes);
    mounted.wait_for_end(|| {
        place.run(["umount".as_ref(), "--lazy".as_ref(), mnt.as_os_str()]);
        assert!(!mounted.path("file").exists());
        let mut read = Vec::new();
        open.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        drop(open);
    });
    place.assert_nothing_left();
}

#[test]
fn a_killed_daemon_is_followed_by_another() {
    let bytes = content::random("x", 8 << 20);
    let place = Place::with(&[("file", &bytes), ("other", b"other")]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        let mut open = File::open(mounted.path("file")).unwrap();
        let mut read = vec![0; 1 << 20];
        open.read_exact(&mut read).unwrap();
        for _ in 0..3 {
            let (daemon, _) = place.inlay.daemon_pids().unwrap();
            kill(daemon);
            // Whoever reads waits for the next one, and gets no error.
            assert_eq!(mounted.read("other"), b"other");
            let mut more = vec![0; 1 << 20];
            open.read_exact(&mut more).unwrap();
            read.append(&mut more);
            place.inlay.wait_for_daemon().unwrap();
        }
        open.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        drop(open);
        mounted.unmount();
        place.assert_nothing_left();
    }
}

#[test]
fn sigterm_leaves_mounts_to_the_next_daemon() {
    let bytes = content::random("x", 2 << 20);
    let place = Place::with(&[("file", &bytes)]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        mounted.wait_for_end(|| kill_process(mounted.pid(), Signal::TERM).unwrap());
        assert!(place.run(["mounts"]).text().contains("dead"));
        let cat = Command::new("cat").arg(mounted.path("file")).stdout(Stdio::piped()).spawn();
        let cat = cat.unwrap();
        // Any command that needs a daemon starts one.
        let said = place.refused(["umount".as_ref(), place.path("tree").as_os_str()]);
        assert!(said.contains("no mount on"), "{said}");
        let output = cat.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == bytes);
        mounted.unmount();
        place.assert_nothing_left();
    }
}

#[test]
fn a_takeover_keeps_mounts_and_open_files_working() {
    let bytes = content::random("x", 4 << 20);
    let place = Place::with(&[("file", &bytes)]);
    let mounted = place.mount("base", &["--rw"]);
    let mut open = File::open(mounted.path("file")).unwrap();
    let mut half = vec![0; 1 << 20];
    open.read_exact(&mut half).unwrap();
    let (before, keeper) = place.inlay.daemon_pids().unwrap();
    let mut next = place.inlay.command();
    next.args(["daemon", "--takeover", "--idle-exit", "0"]);
    let mut next = Running(next.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert!(ends_within(&mounted.process(), LONG), "daemon {before:?} goes on");
    place.inlay.wait_for_daemon().unwrap();
    let (after, same) = place.inlay.daemon_pids().unwrap();
    assert_eq!((after, same), (Pid::from_child(&next.0), keeper));
    open.read_to_end(&mut half).unwrap();
    assert!(half == bytes);
    fs::write(mounted.path("new"), "new").unwrap();
    drop(open);
    mounted.unmount();
    assert!(next.0.wait().unwrap().success());
    let again = place.mount("base", &["--rw"]);
    assert_eq!(again.read("new"), b"new");
    again.unmount();
}

#[test]
fn an_idle_daemon_is_replaced_by_one_with_the_credentials_of_the_command() {
    let place = Place::with(&[("file", b"x")]);
    // Nothing listens at this address: the mount fails, but the right daemon has tried.
    let with_credentials = |key: &str| {
        let mut command = place.inlay.command();
        command.env("INLAY_IDLE_EXIT", "60s").env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", "secret");
        command.args(["--store", "s3://bucket", "mount", "name"]).arg(place.path("other"));
        let ran = output(&mut command, LONG).unwrap();
        assert!(!ran.status.success());
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    fs::create_dir(place.path("other")).unwrap();
    let mounted = place.mount("base", &[]);
    let (first, _) = place.inlay.daemon_pids().unwrap();
    let said = with_credentials("one");
    assert!(said.contains("other variables"), "in use, so it stays: {said}");
    assert_eq!(place.inlay.daemon_pids().unwrap().0, first);
    mounted.unmount();
    // The daemon without credentials may have exited by itself.
    with_credentials("one");
    let (before, _) = place.inlay.daemon_pids().unwrap();
    let said = with_credentials("two");
    assert!(!said.contains("other variables"), "{said}");
    let (after, _) = place.inlay.daemon_pids().unwrap();
    assert_ne!(before, after);
    with_credentials("two");
    assert_eq!(place.inlay.daemon_pids().unwrap().0, after, "it has them already");
    place.run(["daemon", "stop"]);
}

#[test]
fn stopping_the_daemon_is_refused_while_something_is_mounted() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        let open = File::open(mounted.path("file")).unwrap();
        let said = place.refused(["daemon", "stop"]);
        assert!(said.contains(place.mnt().to_str().unwrap()), "{said}");
        assert_eq!(mounted.read("file"), b"x");
        mounted.wait_for_end(|| {
            place.run(["daemon", "stop", "--force"]);
        });
        assert!(!mounted.path("file").exists());
        drop(open);
        place.assert_nothing_left();
        assert!(place.run(["daemon", "stop"]).text().contains("no daemon"));
    }
}

#[test]
fn dead_mounts_are_cleaned_up() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        for how in ["mount", "umount"] {
            let mounted = place.mount("base", options);
            let (daemon, keeper) = place.inlay.daemon_pids().unwrap();
            kill(keeper);
            mounted.wait_for_end(|| kill(daemon));
            assert!(fs::read(mounted.path("file")).is_err());
            assert!(place.run(["mounts"]).text().contains("dead"));
            if how == "mount" {
                let again = place.mount("base", options);
                assert_eq!(again.read("file"), b"x");
                again.unmount();
            } else {
                place.run(["umount".as_ref(), place.mnt().as_os_str()]);
            }
            place.inlay.wait_until_quiet().unwrap();
            // Temporary files of dead processes go with the next command that may need some.
            place.run(["ls", "base"]);
            place.assert_nothing_left();
            drop(mounted);
        }
    }
}

#[test]
fn a_service_goes_on_after_the_death_of_daemon_and_keeper() {
    let bytes = content::random("x", 2 << 20);
    let place = Place::with(&[("file", &bytes), ("other", b"other")]);
    let manager = Manager::new().unwrap();
    let start = || {
        let mut command = place.inlay.command();
        command.args(["daemon", "--takeover", "--state"]).arg(place.inlay.state());
        let mut service = manager.start(&command).unwrap();
        service.wait_until_ready().unwrap();
        service
    };
    for options in VIEWS {
        let mut service = start();
        let mounted = place.mount("base", options);
        let mut open = File::open(mounted.path("file")).unwrap();
        let mut read = vec![0; 1 << 16];
        open.read_exact(&mut read).unwrap();
        let inode = fs::metadata(mounted.path("other")).unwrap().ino();
        let (daemon, keeper) = place.inlay.daemon_pids().unwrap();
        kill(keeper);
        mounted.wait_for_end(|| kill(daemon));
        // Whoever reads now waits.
        let mut cat = Command::new("cat");
        let cat = cat.arg(mounted.path("other")).stdout(Stdio::piped()).spawn().unwrap();
        drop(std::mem::replace(&mut service, start()));
        assert_eq!(cat.wait_with_output().unwrap().stdout, b"other");
        assert_eq!(fs::metadata(mounted.path("other")).unwrap().ino(), inode);
        open.read_to_end(&mut read).unwrap();
        assert!(read == bytes);
        drop(open);
        mounted.unmount();
        place.run(["daemon", "stop"]);
        assert!(service.wait().unwrap().success());
        assert!(manager.names().is_empty());
        place.assert_nothing_left();
    }
}

#[test]
fn two_states_never_touch_each_other() {
    let (one, two) = (Place::with(&[("file", b"one")]), Place::with(&[("file", b"two")]));
    let mounted = (one.mount("base", &["--rw"]), two.mount("base", &["--rw"]));
    assert_eq!(mounted.0.read("file"), b"one");
    assert_eq!(mounted.1.read("file"), b"two");
    assert_eq!(one.json(["mounts"]).as_array().unwrap().len(), 1);
    let said = one.refused(["umount".as_ref(), two.mnt().as_os_str()]);
    assert!(said.contains("same --state"), "{said}");
    mounted.0.unmount();
    let id = one.json(["show", "base"])["id"].as_str().unwrap().to_owned();
    assert!(two.refused(["show", &id]).contains("can't"), "found in the other's store");
    one.inlay.wait_until_quiet().unwrap();
    fs::remove_dir_all(one.inlay.state()).unwrap();
    assert_eq!(mounted.1.read("file"), b"two");
    mounted.1.unmount();
    assert_eq!(two.cat("base:/file"), b"two");
    fs::create_dir_all(one.inlay.state()).unwrap();
}
