//! How mounts end, and that nothing of them stays.

use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use inlay_testkit::content;
use rustix::process::{Signal, kill_process};

use crate::place::{Place, ends_within};

const VIEWS: [&[&str]; 2] = [&[], &["--rw", "--scratch"]];

#[test]
fn unmounting_leaves_nothing() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        assert_eq!(mounted.read("file"), b"x");
        let process = mounted.process();
        place.run(["umount".as_ref(), place.mnt().as_os_str()]);
        assert!(ends_within(&process, Duration::ZERO), "the command did not wait for it");
        place.assert_nothing_left();
        drop(mounted);
    }
}

#[test]
fn sigterm_ends_a_mount_cleanly() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        let open = File::open(mounted.path("file")).unwrap();
        mounted.wait_for_end(|| kill_process(mounted.pid(), Signal::TERM).unwrap());
        drop(open);
        place.assert_nothing_left();
        drop(mounted);
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
fn what_a_killed_process_leaves_is_cleared_away() {
    let place = Place::with(&[("file", b"x")]);
    for options in VIEWS {
        let mounted = place.mount("base", options);
        mounted.wait_for_end(|| kill_process(mounted.pid(), Signal::KILL).unwrap());
        assert!(fs::read(mounted.path("file")).is_err());
        assert!(place.run(["mounts"]).text().contains("dead"));
        // Mounting again clears up, and so does unmounting.
        let again = place.mount("base", options);
        assert_eq!(again.read("file"), b"x");
        again.wait_for_end(|| kill_process(again.pid(), Signal::KILL).unwrap());
        again.unmount();
        // Temporary files of dead processes go with the next command that may need some.
        place.run(["ls", "base"]);
        place.assert_nothing_left();
        drop(mounted);
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
    fs::remove_dir_all(one.inlay.state()).unwrap();
    assert_eq!(mounted.1.read("file"), b"two");
    mounted.1.unmount();
    assert_eq!(two.cat("base:/file"), b"two");
    fs::create_dir_all(one.inlay.state()).unwrap();
}
