//! Ids, names, and that what they stand for never changes.

use std::fs;
use std::process::Command;
use std::thread;

use inlay_testkit::content;
use inlay_testkit::tree::EveryKind;

use crate::place::{Place, source, system};

const SMALL: EveryKind = EveryKind { entries: 20, large: 300_000 };

#[test]
fn the_same_tree_has_the_same_id() {
    let place = Place::new();
    SMALL.make(&place.tree()).unwrap();
    let again = place.path("again");
    fs::create_dir(&again).unwrap();
    SMALL.make(&again).unwrap();
    let id = place.import("base");
    assert_eq!(place.import_as(&source("dir", &again), &[]), id);
    // Compared with a parent, where nothing is new.
    assert_eq!(place.import("base"), id);
    let other = Place::new();
    assert_eq!(other.import_as(&source("dir", &again), &["--label", "a=b"]), id);

    let filesystem = place.import_as(&source("dir", &again), &["--kind", "filesystem"]);
    assert!(id.starts_with("img-") && filesystem.starts_with("fs-"));
    assert_ne!(id.split_once('-').unwrap().1, filesystem.split_once('-').unwrap().1);

    system(Command::new("touch").arg("-d@7").arg(again.join("sizes/text-1")));
    assert_ne!(place.import_as(&source("dir", &again), &[]), id);
}

#[test]
fn importing_an_export_gives_the_same_id() {
    let place = Place::new();
    SMALL.make(&place.tree()).unwrap();
    // A tar can't hold them.
    fs::remove_file(place.tree().join("special/socket")).unwrap();
    let id = place.import("base");
    for form in ["tar", "dir"] {
        let exported = source(form, &place.path(form));
        place.run(["export", "base", &exported]);
        assert_eq!(place.import_as(&exported, &[]), id, "{form}");
    }
}

#[test]
fn a_tar_in_any_order_holds_the_same_tree() {
    let place = Place::with(&[("a", &content::random("a", 5000)), ("b", b"small")]);
    let tar = |name: &str, files: [&str; 2]| {
        let path = place.path(name);
        system(Command::new("tar").arg("-C").arg(place.tree()).arg("-cf").arg(&path).args(files));
        place.import_as(&source("tar", &path), &["--name", name])
    };
    tar("forward", ["a", "b"]);
    tar("backward", ["b", "a"]);
    let listed = |name| place.run(["ls", "-l", name]).text();
    assert_eq!(listed("forward"), listed("backward"));
    for file in ["a", "b"] {
        let bytes = fs::read(place.tree().join(file)).unwrap();
        assert!(place.cat(&format!("forward:/{file}")) == bytes);
        assert!(place.cat(&format!("backward:/{file}")) == bytes);
    }
}

#[test]
fn a_snapshot_never_changes() {
    let place = Place::with(&[("file", b"first"), ("gone", b"later")]);
    let first = place.json(["show", "base"])["id"].as_str().unwrap().to_owned();
    let mounted = place.mount("base", &[]);
    place.write("file", "second");
    fs::remove_file(place.tree().join("gone")).unwrap();
    let second = place.import("base");
    assert_ne!(first, second);
    // The mount shows what was mounted, the name what was imported last, the id what it always did.
    assert_eq!(mounted.read("file"), b"first");
    assert_eq!(mounted.read("gone"), b"later");
    assert_eq!(place.cat("base:/file"), b"second");
    assert_eq!(place.cat(&format!("{first}:/file")), b"first");
    assert_eq!(place.json(["show", &second])["parent"], first.as_str());
    mounted.unmount();
}

#[test]
fn a_name_is_moved_in_one_step() {
    let place = Place::with(&[("file", b"first")]);
    let first = place.json(["show", "base"])["id"].as_str().unwrap().to_owned();
    place.write("file", "second");
    let second = place.import("other");
    thread::scope(|scope| {
        let writers: Vec<_> = [&first, &second, &first, &second]
            .map(|id| scope.spawn(|| place.run(["tag", id, "base"])))
            .into();
        // It stands for one of the two at every moment.
        while !writers.iter().all(thread::ScopedJoinHandle::is_finished) {
            let file = place.cat("base:/file");
            assert!(file == b"first" || file == b"second", "{file:?}");
        }
    });
    let before = place.json(["show", "base"])["id"].clone();
    assert!(before == first.as_str() || before == second.as_str());
    assert_eq!(place.json(["tag", &second, "base"])["before"], before);
    place.run(["untag", "base"]);
    assert!(place.refused(["cat", "base:/file"]).contains("no snapshot 'base'"));
    assert_eq!(place.cat(&format!("{second}:/file")), b"second");
}

#[test]
fn ids_can_be_shortened() {
    let place = Place::with(&[("file", b"x")]);
    let id = place.json(["show", "base"])["id"].as_str().unwrap().to_owned();
    let four = &id[.."img-".len() + 4];
    assert_eq!(place.cat(&format!("{four}:/file")), b"x");
    // Another that begins alike: only its record is looked at.
    let fifth = if id.as_bytes()[8] == b'0' { '1' } else { '0' };
    let other = format!("{four}{fifth}{}", &id[9..]);
    let records = place.inlay.state().join("store/snapshots");
    fs::copy(records.join(format!("{id}.json")), records.join(format!("{other}.json"))).unwrap();
    let said = place.refused(["cat", &format!("{four}:/file")]);
    assert!(said.contains(&id) && said.contains(&other) && said.contains("more digits"), "{said}");
    assert_eq!(place.cat(&format!("{}:/file", &id[..9])), b"x");
    place.refused(["ls", &four[..four.len() - 1]]);
}
