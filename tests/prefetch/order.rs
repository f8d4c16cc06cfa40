//! What comes before what.

use std::fs;

use inlay_testkit::scratch;

use crate::ahead::{ALL, Remote, Snapshot, assert_nothing_twice, file, wait_for};

#[test]
fn the_newest_directory_comes_first() {
    let remote = Remote::start();
    let image = remote.import("image", "filesystem", 60);
    let older = remote.import("older", "directory", 160);
    let newer = remote.import("newer", "directory", 100);
    let host = remote.host();
    remote.proxy.forget();
    remote.slow_down();
    let mut begun = 0;
    let mounts = ["image", "older", "newer"].map(|name| {
        let mounted = host.mount(name, ALL).unwrap();
        begun = remote.asked().len();
        mounted
    });
    for snapshot in [&newer, &older, &image] {
        snapshot.wait_for_phase(&host, "done");
    }
    remote.wait_until_quiet();
    let asked = remote.asked();
    let last = |of: &Snapshot| asked.iter().rposition(|one| !of.groups_in(one).is_empty()).unwrap();
    let between = |of: &Snapshot, end: usize| of.order(&asked[begun..end]).len();
    assert!(between(&newer, asked.len()) > 20, "the link is not slow enough");
    assert_eq!(between(&older, last(&newer)), 0);
    assert_eq!(between(&image, last(&older)), 0);
    assert_nothing_twice(&asked);
    for (snapshot, mounted) in [&image, &older, &newer].iter().zip(&mounts) {
        snapshot.compare(mounted.path());
    }
}

#[test]
fn named_paths_come_first() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 120);
    let scratch = scratch().unwrap();
    let list = scratch.path().join("list");
    fs::write(&list, format!("{}\n/{}\n/no/such/path\n", file(55), file(80))).unwrap();
    let host = remote.host();
    let (one, two) = (format!("/{}", file(100)), file(7));
    let words = ["--first", &one, "--first", &two, "--first-from", list.to_str().unwrap()];
    let mounted = host.mount("image", &[ALL, &words[..]].concat()).unwrap();
    image.wait_for_phase(&host, "done");
    let decided = image.decisions(&host);
    let first = [100, 7, 55, 80].map(|number| ("profile".to_owned(), image.group_of(number)));
    assert_eq!(decided[..4], first);
    assert!(decided[4..].iter().all(|(class, _)| class == "rest"), "{decided:?}");
    assert_eq!(decided.len(), image.len());
    assert!(host.daemon_log().contains("/no/such/path"), "{}", host.daemon_log());
    mounted.unmount().unwrap();
}

#[test]
fn prefetch_profile_loads_only_likely_groups() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 120);
    let host = remote.host();
    remote.proxy.forget();
    let words = ["--prefetch", "profile", "--first", &file(30)];
    let mounted = host.mount("image", &words).unwrap();
    wait_for("what was named", || !remote.asked().is_empty());
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    assert_eq!(image.order(&remote.asked()), [image.group_of(30)]);
    // Beside what is read lies what is probably read next.
    image.read(mounted.path(), 60);
    wait_for("its neighbours", || image.order(&remote.asked()).len() > 2);
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    let mut order = image.order(&remote.asked());
    order.sort_unstable();
    let beside = (56..65).map(|number| image.group_of(number));
    assert_eq!(order, [image.group_of(30)].into_iter().chain(beside).collect::<Vec<_>>());
    mounted.unmount().unwrap();
}
