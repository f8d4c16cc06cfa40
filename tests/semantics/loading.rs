//! What is loaded ahead of readers, in which order, and what it never does.

use std::fs::{self, File};
use std::io::Read;

use inlay_store::format::GroupIdx;
use inlay_store::ids::SnapshotId;
use inlay_store::profile::{Profile, ProfileLabel, Run};
use inlay_testkit::content;

use crate::ahead::{ALL, Remote, assert_nothing_twice, file, prefetch_status, wait_for};
use crate::place::Place;

#[test]
fn demand_reads_come_first() {
    let remote = Remote::start();
    // Of an image, no rest would be loaded while its readers find new things.
    let image = remote.import("image", "directory", 400);
    let host = remote.host();
    remote.proxy.forget();
    remote.slow_down();
    let mounted = host.mount("image", ALL).unwrap();
    // The first requests are made all at once, because nothing is known of the link yet.
    let ended = || remote.asked().iter().filter(|asked| asked.has_ended()).count();
    wait_for("the first answers", || ended() > 16);
    let mut came_first = Vec::new();
    // From the end, which loading reaches last; apart, so that none lies beside another.
    for number in (310..400).step_by(10).rev() {
        let before = remote.asked();
        let group = image.group_of(number);
        image.read(mounted.path(), number);
        if before.iter().any(|asked| image.groups_in(asked).contains(&group)) {
            continue;
        }
        let after = remote.asked();
        let own = after.iter().position(|asked| image.groups_in(asked).contains(&group)).unwrap();
        // One may have begun while the read was on its way to the daemon.
        assert!(own <= before.len() + 1, "{} requests came first", own - before.len());
        came_first.push((own, before.len()));
    }
    assert!(came_first.len() > 5, "the others were being loaded already");
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    image.compare(mounted.path());
    let asked = remote.asked();
    assert_nothing_twice(&asked);
    // They did not wait for the end of what was under way when they began to read.
    let at_once = came_first.iter().filter(|(own, before)| {
        asked[..*before].iter().any(|earlier| earlier.was_under_way_at(&asked[*own]))
    });
    assert!(at_once.count() * 2 > came_first.len());
    let mut order = image.order(&asked);
    order.sort_unstable();
    assert_eq!(order.len(), image.len(), "each group once");
    mounted.unmount().unwrap();
}

#[test]
fn a_directory_snapshot_comes_before_images() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 200);
    let project = remote.import("project", "directory", 200);
    let host = remote.host();
    remote.proxy.forget();
    remote.slow_down();
    let system = host.mount("image", ALL).unwrap();
    wait_for("loading to begin", || remote.asked().len() > 2);
    let mounted = host.mount("project", ALL).unwrap();
    let begun = remote.asked().len();
    image.read(system.path(), 190);
    project.wait_for_phase(&host, "done");
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    let asked = remote.asked();
    let of_project = |of: &[_]| project.order(of).len();
    let last = asked.iter().rposition(|asked| !project.groups_in(asked).is_empty()).unwrap();
    assert_eq!(of_project(&asked), project.len());
    assert!(of_project(&asked[begun..]) > project.len() / 2, "the link is not slow enough");
    // Of the image, only what a reader waited for.
    assert_eq!(image.order(&asked[begun..last]), [image.group_of(190)]);
    project.compare(mounted.path());
    image.compare(system.path());
    assert_nothing_twice(&remote.asked());
    mounted.unmount().unwrap();
    system.unmount().unwrap();
}

#[test]
fn data_read_by_earlier_starts_is_prefetched_first() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 200);
    // In an order that no tree has, and no two are neighbours.
    let read: Vec<usize> = (0..60).map(|place| (place * 49 + 7) % 100 * 2).collect();
    let first = remote.host();
    let words = ["--prefetch", "off", "--record-profile", "on", "--label", "web"];
    let mounted = first.mount("image", &words).unwrap();
    for number in &read {
        image.read(mounted.path(), *number);
    }
    mounted.unmount().unwrap();
    first.wait_until_quiet().unwrap();

    let groups: Vec<u32> = read.iter().map(|number| image.group_of(*number)).collect();
    let shown = first.succeed(["profile", "show", "--json", "--label", "web", "image"]).unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let recorded = shown["groups"].as_array().unwrap().iter();
    let recorded: Vec<u64> = recorded.map(|group| group["group"].as_u64().unwrap()).collect();
    let expected: Vec<u64> = groups.iter().copied().map(u64::from).collect();
    assert_eq!(recorded, expected, "{shown}\n{:#?}", remote.proxy.seen());
    let [touched, decoded] = ["touched_bytes", "raw_bytes"].map(|key| shown[key].as_u64().unwrap());
    assert!(touched > 0 && touched <= decoded, "{shown}");

    let second = remote.host();
    remote.proxy.forget();
    remote.slow_down();
    let mounted = second.mount("image", &["--prefetch", "all", "--label", "web"]).unwrap();
    let shown = image.wait_for_phase(&second, "done");
    assert_eq!(shown["profile_runs"], 1);
    remote.wait_until_quiet();
    // What the daemon decided, and then the rest of the tree in its order.
    let decided: Vec<u32> = image.decisions(&second).iter().map(|(_, group)| *group).collect();
    assert_eq!(decided[..groups.len()], groups);
    assert!(decided[groups.len()..].is_sorted());
    assert_eq!(decided.len(), image.len());
    // What the store saw. Requests that are made in the same instant may pass one another.
    let asked = remote.asked();
    let is_early = |asked: &_| image.groups_in(asked).iter().any(|group| groups.contains(group));
    let last = asked.iter().rposition(is_early).unwrap();
    assert!(asked[..last].iter().filter(|asked| !is_early(asked)).count() <= 1);
    image.compare(mounted.path());
    mounted.unmount().unwrap();
}

#[test]
fn a_wrong_profile_only_costs_time() {
    let bytes: Vec<Vec<u8>> = (0..8).map(|n| content::random(&n.to_string(), 300_000)).collect();
    let names: Vec<String> = (0..8).map(|n| format!("file-{n}")).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().zip(&bytes).map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let place = Place::with(&files);
    let id: SnapshotId = place.json(["show", "base"])["id"].as_str().unwrap().parse().unwrap();
    let list = place.path("list");
    fs::write(&list, "/file-3\n/file-1\n").unwrap();
    let import = ["profile", "import", "--paths", "base"].map(std::ffi::OsStr::new);
    place.run(import.into_iter().chain([list.as_os_str()]));
    let mut there = place.files_in_state("store/profiles");
    assert_eq!(there.len(), 1);
    let path = there.remove(0);
    let right = fs::read(&path).unwrap();

    let of = |id: SnapshotId, groups: &[u32]| {
        let run = Run::in_order(groups.iter().map(|group| GroupIdx(*group)));
        Profile::of_run(id, ProfileLabel::default(), &run).encode()
    };
    let other = place.import_as(
        &crate::place::source("dir", &place.tree()),
        &["--kind", "directory", "--parent", "none"],
    );
    let mut flipped = right.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let mut boundless = right.clone();
    boundless[116..120].copy_from_slice(&u32::MAX.to_le_bytes());
    let wrong = [
        (Vec::new(), false),
        (right[..right.len() - 1].to_vec(), false),
        (flipped, false),
        (boundless, false),
        (vec![0; 3 << 20], false),
        (content::random("no profile", 70_000), false),
        (of(other.parse().unwrap(), &[0, 1]), false),
        // These are profiles; what the snapshot does not have is passed over.
        (of(id, &[u32::MAX, 9999, 1]), true),
        (of(id, &[5000, 6000]), true),
    ];
    for (case, (profile, is_one)) in wrong.into_iter().enumerate() {
        fs::write(&path, profile).unwrap();
        place.run(["cache", "prune", "--all"]);
        let mounted = place.mount("base", ALL);
        let shown = || prefetch_status(&place.inlay)["snapshots"][0].clone();
        wait_for("the end of loading", || shown()["phase"] == "done");
        assert_eq!(shown()["profile_runs"].is_null(), !is_one, "{case}: {}", shown());
        for (name, bytes) in &files {
            assert!(mounted.read(name) == *bytes, "{case}");
        }
        mounted.unmount();
        place.inlay.wait_until_quiet().unwrap();
    }
    // The next start that is recorded takes its place.
    fs::write(&path, "no profile").unwrap();
    let mounted = place.mount("base", &["--record-profile", "on"]);
    mounted.read("file-6");
    mounted.unmount();
    place.inlay.wait_until_quiet().unwrap();
    let shown = place.json(["profile", "show", "base"]);
    assert_eq!(shown["runs"], 1, "{shown}");
}

#[test]
fn unmounted_snapshots_are_not_prefetched() {
    let remote = Remote::start();
    let image = remote.import("image", "image", 200);
    let other = remote.import("other", "directory", 2);
    let host = remote.host();
    // Keeps the daemon.
    let stays = host.mount("other", &[]).unwrap();
    remote.proxy.forget();
    remote.slow_down();
    let mounted = host.mount("image", ALL).unwrap();
    image.read(mounted.path(), 150);
    wait_for("loading to begin", || image.order(&remote.asked()).len() > 20);
    // The same holds while its last users still read it.
    let open = File::open(mounted.path().join(file(190))).unwrap();
    host.succeed(["umount".as_ref(), "--lazy".as_ref(), mounted.path().as_os_str()]).unwrap();
    let asked = remote.asked().len();
    remote.wait_until_quiet();
    // Whatever would have come after the unmounting would have come before this.
    other.read(stays.path(), 0);
    other.read(stays.path(), 1);
    let after = remote.asked();
    assert!(image.order(&after[asked..]).is_empty(), "{:?}", &after[asked..]);
    assert!(image.order(&after).len() < image.len(), "the link is not slow enough");
    let mut bytes = Vec::new();
    (&open).read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 60_000);
    drop(open);
    wait_for("the image to be forgotten", || image.status(&host).is_none());
    let status = prefetch_status(&host);
    let store = &status["stores"][0];
    assert_eq!(store["readers_waiting"], 0, "{status}");
    let queued = store["queued"].as_object().unwrap();
    assert!(queued.values().all(|count| *count == 0), "{status}");
    // What was cancelled is missing, and comes when it is wanted.
    let mounted = host.mount("image", &[]).unwrap();
    image.compare(mounted.path());
    mounted.unmount().unwrap();
    stays.unmount().unwrap();
}

#[test]
fn loading_ahead_evicts_nothing() {
    let place = Place::new();
    let early = content::random("early", 4 << 20);
    place.write("early", &early);
    place.import("early");
    fs::remove_file(place.tree().join("early")).unwrap();
    // Small groups, so that loading stops near the mark: it looks at 64 of them at a time.
    for number in 0..2000 {
        let bytes = content::random(&number.to_string(), 20_000);
        place.write(&format!("{number:04}"), bytes);
    }
    let tree = crate::place::source("dir", &place.tree());
    place.import_as(&tree, &["--name", "large", "--group-size", "16K"]);
    let blobs = place.files_in_state("store/blobs");

    let mounted = place.mount("early", &["--cache-size", "32M"]);
    assert!(mounted.read("early") == early);
    mounted.unmount();
    let mounted = place.mount("large", ALL);
    let shown = || prefetch_status(&place.inlay)["snapshots"][0].clone();
    let used = || place.json(["cache", "status"])["used_bytes"].as_u64().unwrap();
    // Loading ahead ends at eight tenths, eviction begins at nine.
    wait_for("the cache to be full", || shown()["phase"] == "resting" && used() > 24 << 20);
    assert!(used() < 29 << 20, "{}", used());
    assert!(shown()["looked"].as_u64().unwrap() < shown()["groups"].as_u64().unwrap());
    // Readers of what found no room go on, whatever that evicts.
    for number in (0..2000).rev().step_by(7) {
        let bytes = mounted.read(&format!("{number:04}"));
        assert!(bytes == content::random(&number.to_string(), 20_000), "{number}");
        if number == 1999 {
            // What was there before still is.
            let away = place.path("away");
            fs::create_dir(&away).unwrap();
            let names = blobs.iter().map(|path| (path, away.join(path.file_name().unwrap())));
            let names: Vec<_> = names.collect();
            for (path, away) in &names {
                fs::rename(path, away).unwrap();
            }
            assert!(place.cat("early:/early") == early);
            for (path, away) in &names {
                fs::rename(away, path).unwrap();
            }
        }
    }
    mounted.unmount();
}
