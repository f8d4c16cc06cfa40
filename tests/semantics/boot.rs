//! Mounts of mount(8) and systemd, by the name that they call the program by.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use inlay_testkit::cli::Inlay;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::weed::{BUCKET, Weed};

use crate::place::Place;

/// Mounts as a line of fstab.
fn mount(place: &Place, source: &str, options: &str) {
    let helper = place.path("mount.inlay");
    if !helper.exists() {
        symlink(env!("CARGO_BIN_EXE_inlay"), &helper).unwrap();
    }
    let mut command = place.inlay.command();
    command.arg0(&helper).arg(source).arg(place.mnt()).args(["-o", options]);
    let ran = command.output().unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
}

fn umount(place: &Place) {
    assert!(Command::new("umount").arg(place.mnt()).status().unwrap().success());
    place.inlay.wait_until_quiet().unwrap();
}

#[test]
fn a_line_of_fstab_mounted_again_stays_as_it_is() {
    let place = Place::with(&[("file", b"x")]);
    for options in ["ro", "scratch", "writable"] {
        mount(&place, "inlay:base", options);
        let open = fs::File::open(place.mnt().join("file")).unwrap();
        mount(&place, "inlay:base", options);
        assert_eq!(place.json(["mounts"]).as_array().unwrap().len(), 1);
        drop(open);
        if options == "writable" {
            fs::write(place.mnt().join("new"), b"kept").unwrap();
            umount(&place);
            mount(&place, "inlay:base", options);
            assert_eq!(fs::read(place.mnt().join("new")).unwrap(), b"kept");
            let mnt = place.mnt();
            place.inlay.succeed(["umount", "--discard", mnt.to_str().unwrap()]).unwrap();
        } else {
            umount(&place);
        }
        place.assert_nothing_left();
    }
}

#[test]
fn a_host_comes_up_without_its_store() {
    const SHORT: Duration = Duration::from_secs(15);
    let weed = Weed::start().unwrap();
    let proxy = Proxy::start(weed.address()).unwrap();
    let store = format!("s3://{BUCKET}/without-store");
    let mut place = Place::new();
    place.inlay = Inlay::new(env!("CARGO_BIN_EXE_inlay"))
        .unwrap()
        .with_environment(Weed::environment(proxy.address()))
        .with_environment([("INLAY_STORE", store)]);
    place.write("file", b"x");
    let id = place.import("base");
    mount(&place, "inlay:base", "ro");
    assert_eq!(fs::read(place.mnt().join("file")).unwrap(), b"x");
    umount(&place);
    // Every request hangs.
    proxy.inject(Rule::new(Fault::Stall));
    for source in [format!("inlay:{id}"), "inlay:base".to_owned()] {
        let begun = Instant::now();
        mount(&place, &source, "ro");
        assert_eq!(fs::read(place.mnt().join("file")).unwrap(), b"x");
        assert!(begun.elapsed() < SHORT, "{source}: {:?}", begun.elapsed());
        umount(&place);
    }
    proxy.heal();
}
