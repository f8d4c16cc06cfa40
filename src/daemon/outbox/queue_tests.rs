//! Tests of the queue on disk: order, damage, and from which states names may be moved.

use inlay_store::ids::{Digest, IndexDigest, Kind};

use super::*;

fn id(text: &str) -> SnapshotId {
    SnapshotId { kind: Kind::Directory, index: IndexDigest(Digest::of(text.as_bytes())) }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn moment(unix_s: u64) -> Moment {
    Moment { unix_s, unix_ns: 0, boot: "boot".to_owned(), since_boot_ms: unix_s * 1000 }
}

#[allow(clippy::unnecessary_wraps)] // as entries have it
fn claim(text: &str, before: NameSeen) -> Option<Claim> {
    Some(Claim { name: name(text), before })
}

fn stands_for(text: &str) -> NameSeen {
    NameSeen::Snapshot(id(text))
}

fn record(text: &str, updated: u64) -> NameRecord {
    NameRecord { name: name("n"), id: id(text), updated, updated_ns: 0 }
}

struct Fixture {
    dir: tempfile::TempDir,
    queue: Queue,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(&dir.path().join("queue")).unwrap();
        Self { dir, queue }
    }

    fn reopen(&mut self) {
        self.queue = Queue::open(&self.dir.path().join("queue")).unwrap();
    }

    fn push(&mut self, text: &str, name: Option<Claim>, sealed: u64) -> u64 {
        self.queue.push(id(text), name, moment(sealed)).unwrap();
        self.queue.entries().last().unwrap().sequence
    }

    fn order(&self) -> Vec<SnapshotId> {
        self.queue.entries().map(|entry| entry.snapshot).collect()
    }

    fn permits(&self, sequence: u64, found: Option<&NameRecord>) -> bool {
        let entry = self.queue.get(sequence).unwrap();
        self.queue.allowed(entry, &moment(10_000)).permits(found)
    }

    fn files(&self) -> Vec<String> {
        let dir = fs::read_dir(self.dir.path().join("queue")).unwrap();
        let mut files: Vec<_> =
            dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }
}

#[test]
fn entries_keep_their_order_and_contents() {
    let mut of = Fixture::new();
    assert_eq!(of.queue.len(), 0);
    for (at, text) in ["c", "a", "b", "a"].iter().enumerate() {
        let before = NameSeen::Nothing;
        assert_eq!(of.push(text, claim("n", before), 5), at as u64 + 1);
    }
    let kept: Vec<QueueEntry> = of.queue.entries().cloned().collect();
    of.reopen();
    assert_eq!(of.queue.entries().cloned().collect::<Vec<_>>(), kept);
    assert_eq!(of.order(), ["c", "a", "b", "a"].map(id));
    assert!(of.queue.has(id("b")) && !of.queue.has(id("d")));
    assert!(of.queue.claims(&name("n")) && !of.queue.claims(&name("m")));
    of.queue.finish(3).unwrap();
    of.queue.finish(3).unwrap();
    assert!(!of.queue.has(id("b")) && of.queue.len() == 3);
    of.reopen();
    assert_eq!(of.order(), ["c", "a", "a"].map(id));
    // A number is not reused while later entries exist.
    assert_eq!(of.push("e", None, 6), 5);
    assert_eq!(of.queue.get(5).unwrap().name, None);
}

#[test]
fn a_finished_entry_takes_the_name_from_earlier_ones() {
    let mut of = Fixture::new();
    of.push("a", claim("n", NameSeen::Nothing), 1);
    of.push("b", claim("m", NameSeen::Nothing), 2);
    of.push("c", claim("n", stands_for("a")), 3);
    of.push("d", claim("n", stands_for("c")), 4);
    of.queue.finish(3).unwrap();
    for _ in 0..2 {
        let names: Vec<_> = of.queue.entries().map(|entry| entry.name.is_some()).collect();
        assert_eq!(names, [false, true, true]);
        assert_eq!(of.order(), ["a", "b", "d"].map(id));
        of.reopen();
    }
    of.queue.drop_claim(4).unwrap();
    of.queue.drop_claim(77).unwrap();
    assert!(!of.queue.claims(&name("n")));
    of.queue.finish(2).unwrap();
    assert_eq!(of.order(), ["a", "d"].map(id));
}

#[test]
fn unreadable_queue_entries_are_kept_and_reported() {
    let mut of = Fixture::new();
    for text in ["a", "b", "c", "d"] {
        of.push(text, None, 1);
    }
    let dir = of.dir.path().join("queue");
    let path = |number: u64| dir.join(format!("{number:020}.json"));
    let text = fs::read_to_string(path(2)).unwrap();
    fs::write(path(1), "").unwrap();
    fs::write(path(2), text.replace("\"version\": 1", "\"version\": 9")).unwrap();
    fs::copy(path(3), path(9)).unwrap();
    fs::write(dir.join("5.json"), &text).unwrap();
    fs::write(dir.join(format!("{}.json", "x".repeat(20))), &text).unwrap();
    fs::write(dir.join(".new-abc"), "half").unwrap();
    let files = of.files();
    of.reopen();
    assert_eq!(of.order(), ["c", "d"].map(id));
    let damaged: Vec<_> = of.queue.damaged().iter().map(|it| it.path.clone()).collect();
    assert_eq!(damaged.len(), 5, "{:?}", of.queue.damaged());
    assert!([path(1), path(2), path(9)].iter().all(|path| damaged.contains(path)));
    assert!(of.queue.damaged().iter().all(|it| it.is_there() && !it.why.is_empty()));
    // Only unfinished writes are removed, and no number is reused.
    assert_eq!(of.files().len(), files.len() - 1);
    assert_eq!(of.push("e", None, 1), 10);
    fs::remove_file(path(1)).unwrap();
    assert_eq!(of.queue.damaged().iter().filter(|it| it.is_there()).count(), 4);
}

#[test]
fn a_directory_that_can_not_be_read_is_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue");
    fs::write(&path, "a file").unwrap();
    assert!(Queue::open(&path).is_err());
}

#[test]
fn a_name_is_moved_only_from_its_expected_target() {
    let mut of = Fixture::new();
    let one = of.push("b", claim("n", stands_for("a")), 100);
    assert!(of.permits(one, Some(&record("a", 5_000))));
    for found in [None, Some(&record("x", 1)), Some(&record("x", 5_000))] {
        assert!(!of.permits(one, found), "{found:?}");
    }
    let two = of.push("b", claim("m", NameSeen::Nothing), 100);
    assert!(of.permits(two, None) && !of.permits(two, Some(&record("x", 1))));
    let three = of.push("c", None, 100);
    assert!(!of.permits(three, None));
}

#[test]
fn a_name_that_was_not_known_is_moved_if_it_was_set_before() {
    let mut of = Fixture::new();
    let one = of.push("b", claim("n", NameSeen::Unknown), 100);
    assert!(of.permits(one, None) && of.permits(one, Some(&record("x", 99))));
    for later in [100, 101] {
        assert!(!of.permits(one, Some(&record("x", later))), "{later}");
    }
}

#[test]
fn a_name_is_moved_from_an_earlier_snapshot_of_the_queue() {
    let mut of = Fixture::new();
    of.push("b", claim("n", stands_for("a")), 100);
    of.push("x", claim("m", stands_for("y")), 100);
    let two = of.push("c", claim("n", stands_for("b")), 200);
    let three = of.push("d", claim("n", stands_for("c")), 300);
    for from in ["a", "b", "c"] {
        assert!(of.permits(three, Some(&record(from, 5_000))), "{from}");
    }
    for from in ["x", "y", "d"] {
        assert!(!of.permits(three, Some(&record(from, 5_000))), "{from}");
    }
    assert!(!of.permits(two, Some(&record("c", 5_000))), "not from a later one");
    // The chain ends at another host's move in between.
    let four = of.push("f", claim("n", stands_for("e")), 400);
    assert!(of.permits(four, Some(&record("e", 5_000))));
    assert!(!of.permits(four, Some(&record("d", 5_000))));
}

#[test]
fn the_time_of_the_first_link_counts() {
    let mut of = Fixture::new();
    of.push("b", claim("n", NameSeen::Unknown), 100);
    let two = of.push("c", claim("n", stands_for("b")), 200);
    assert!(of.permits(two, Some(&record("x", 99))));
    assert!(!of.permits(two, Some(&record("x", 150))));
    assert!(of.permits(two, Some(&record("b", 150))));
}
