//! Tests of outboxes against a store with injected faults, and random histories against a model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use inlay_store::format::BlobIdx;
use inlay_store::ids::{Digest, IndexDigest, Kind};
use inlay_store::pack::PackOptions;
use inlay_store::remote::{Existing, NameRecord, OutboxDir, RetryPolicy, SnapshotRecord};
use inlay_testkit::faulty_store::{Fault, FaultyStore, Operation, Times, What};
use object_store::memory::InMemory;
use tokio::runtime::Runtime;

use super::*;
use crate::daemon::timestamp::Moment;
use inlay_images::import::{ImportOptions, NoProgress, Source};
use inlay_snapshots::host::Host;
use inlay_snapshots::{CreateOptions, Parent, create, open_index};

mod history;

const OFTEN: RetryPolicy = RetryPolicy {
    stall: Duration::from_secs(5),
    attempt: Duration::from_secs(5),
    total: Duration::from_secs(5),
    attempts_max: 1,
    backoff_first: Duration::from_millis(1),
    backoff_max: Duration::from_millis(1),
    rate_min: 1 << 20,
    jitter: inlay_store::remote::Jitter::None,
};

/// A state directory, and a store with faults.
struct World {
    dir: tempfile::TempDir,
    state: State,
    faulty: Arc<FaultyStore>,
    far: Remote,
    /// Error of the wall clock, in seconds.
    off: Arc<AtomicI64>,
    outboxes: Outboxes,
    runtime: Runtime,
}

fn store_ref() -> StoreRef {
    StoreRef { url: Some("memory".to_owned()), plain_http: false }
}

fn foreign(number: u32) -> SnapshotId {
    let index = IndexDigest(Digest::of(&number.to_le_bytes()));
    SnapshotId { kind: Kind::Directory, index }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let faulty = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Vec::new()));
        let far = Remote::from_object_store(faulty.clone(), "far".to_owned(), OFTEN);
        let off = Arc::new(AtomicI64::new(0));
        let outboxes = Self::outboxes(&state, &far, &off);
        let runtime = Runtime::new().unwrap();
        Self { dir, state, faulty, far, off, outboxes, runtime }
    }

    fn outboxes(state: &State, far: &Remote, off: &Arc<AtomicI64>) -> Outboxes {
        let (far, off) = (far.clone(), Arc::clone(off));
        let clock = move || {
            let now = Moment::now();
            Moment { unix_s: now.unix_s.saturating_add_signed(off.load(SeqCst)), ..now }
        };
        Outboxes::with_clock(state, Box::new(move |_| Ok(far.clone())), Arc::new(clock))
    }

    fn restart(&mut self) {
        self.outboxes = Self::outboxes(&self.state, &self.far, &self.off);
    }

    fn outbox(&self) -> Arc<Outbox> {
        self.outboxes.of(&store_ref())
    }

    fn dir(&self) -> PathBuf {
        self.state.outbox(Some("memory"))
    }

    fn faults(&self, on: &[Operation], key: &str) {
        let fault = |on: &Operation| Fault {
            on: *on,
            key: key.to_owned(),
            times: Times::Always,
            what: What::Status(400),
        };
        self.faulty.set_faults(on.iter().map(fault).collect());
    }

    fn down(&self) {
        self.faults(&[Operation::Get, Operation::Head, Operation::Put, Operation::List], "");
    }

    /// Writes a snapshot of a directory with one file into the outbox, without committing it.
    fn write(&self, contents: &str, labels: &[(&str, &str)]) -> (Sealing, SnapshotId) {
        let sealing = self.outboxes.seal(&store_ref(), self.runtime.handle()).unwrap();
        let source = self.dir.path().join("source");
        fs::create_dir_all(&source).unwrap();
        // Too long to be inlined in the index.
        fs::write(source.join("file"), contents.repeat(20_000)).unwrap();
        // Equal contents yield equal snapshots.
        for path in [source.join("file"), source.clone()] {
            let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        }
        let outbox_dir = self.outbox().objects.dir().display().to_string();
        let host = Host::open(self.state.clone(), &StoreConfig::new(outbox_dir)).unwrap();
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        let options = CreateOptions {
            existing: Existing::Compared,
            kind: Kind::Directory,
            name: None,
            parent: Parent::None,
            dedup: Vec::new(),
            labels: labels.collect(),
            import: ImportOptions::default(),
            pack: PackOptions::default(),
        };
        let made = create(&host, &Source::Dir(source), &options, &NoProgress).unwrap();
        (sealing, made.record.id)
    }

    fn seal(&self, contents: &str, name: Option<&str>) -> SnapshotId {
        let (sealing, id) = self.write(contents, &[]);
        sealing.commit(id, name.map(|name| name.parse().unwrap()).as_ref()).unwrap();
        id
    }

    /// One round over all entries, including those that failed just now.
    fn ship(&self) {
        let outbox = self.outbox();
        // A failing store ends a round; repeat until each entry had its turn.
        for _ in 0..=outbox.load() {
            outbox.unpause();
            self.runtime.block_on(carrier::ship_all(self.outboxes.clone(), Arc::clone(&outbox)));
        }
    }

    fn retry(&self) {
        self.outbox().retry(Instant::now());
        self.ship();
    }

    fn stored(&self, id: SnapshotId) -> Option<SnapshotRecord> {
        self.runtime.block_on(self.far.stored_snapshot(&id)).unwrap()
    }

    fn far_name(&self, name: &str) -> Option<SnapshotId> {
        let found = self.runtime.block_on(self.far.name(&name.parse().unwrap())).unwrap();
        found.map(|found| found.id)
    }

    fn move_elsewhere(&self, name: &str, id: SnapshotId) {
        let record = NameRecord::now(name.parse().unwrap(), id);
        self.runtime.block_on(self.far.set_name(&record)).unwrap();
    }

    /// The store as other processes on this host see it.
    fn usual(&self) -> OutboxDir {
        self.outbox().objects.clone()
    }

    /// Reads every byte of a snapshot from the store.
    fn verify(&self, id: SnapshotId) {
        assert_eq!(self.stored(id).unwrap().id, id);
        let state = State::open(&self.dir.path().join("verify")).unwrap();
        let index = self.runtime.block_on(open_index(&self.far, &state, id)).unwrap();
        assert!(index.blob_count() > 0);
        for blob in 0..index.blob_count() {
            let key = ObjectKey::Blob(index.blob(BlobIdx(blob)).unwrap().id);
            let bytes = self.runtime.block_on(self.far.get(&key, 1 << 30)).unwrap();
            assert_eq!(ObjectKey::Blob(inlay_store::ids::BlobId(Digest::of(&bytes))), key);
        }
    }

    fn waiting(&self) -> Vec<SnapshotId> {
        self.outbox().view().waiting.into_iter().map(|one| one.entry.snapshot).collect()
    }

    fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir().join("objects"), self.dir().join("queue")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { dirs.push(path) } else { found.push(path) }
            }
        }
        found
    }

    fn blob_of(&self, id: SnapshotId) -> PathBuf {
        let index = self.runtime.block_on(open_index(&self.far, &self.state, id)).unwrap();
        let blob = index.blob(BlobIdx(0)).unwrap();
        self.outbox().objects.file(&ObjectKey::Blob(blob.id))
    }
}

#[test]
fn sealing_makes_no_request_and_shipping_stores_everything() {
    let world = World::new();
    world.down();
    let one = world.seal("one", Some("n"));
    let two = world.seal("two", Some("n"));
    assert_eq!(world.faulty.requests(), 0);
    assert_eq!((world.waiting(), world.outboxes.waiting()), (vec![one, two], 2));
    assert!(world.usual().is_used() && world.usual().has_name(&"n".parse().unwrap()));
    world.ship();
    assert_eq!(world.outboxes.report().failing.len(), 2);
    assert_eq!(world.outboxes.report().waiting, 2);
    world.faulty.set_faults(Vec::new());
    world.retry();
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
    assert_eq!(world.far_name("n"), Some(two));
    world.verify(one);
    world.verify(two);
    assert_eq!(world.objects(), Vec::<PathBuf>::new());
    assert!(!world.usual().is_used());
}

#[test]
fn a_snapshot_being_written_blocks_removal() {
    let world = World::new();
    world.seal("one", None);
    let (sealing, two) = world.write("two", &[]);
    world.ship();
    assert_eq!(world.outboxes.report().waiting, 1, "the one that is being sealed");
    sealing.commit(two, None).unwrap();
    drop(sealing);
    world.ship();
    world.verify(two);
    assert_eq!(world.objects(), Vec::<PathBuf>::new());
    // An abandoned seal leaves nothing once no other is in progress.
    let (sealing, three) = world.write("three", &[]);
    assert!(sealing.has_record(three) && !sealing.waits(three));
    assert!(!world.objects().is_empty());
    drop(sealing);
    assert_eq!(world.objects(), Vec::<PathBuf>::new());
    assert_eq!(world.outboxes.waiting(), 0);
}

#[test]
fn a_damaged_snapshot_holds_up_no_other_and_is_reported() {
    let mut world = World::new();
    let bad = world.seal("bad", Some("bad"));
    let good = world.seal("good", Some("good"));
    let blob = world.blob_of(bad);
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, &bytes[1..]).unwrap();
    for _ in 0..2 {
        world.retry();
        world.verify(good);
        let report = world.outboxes.report();
        assert_eq!((report.waiting, report.failing.len()), (1, 1));
        let failing = &report.failing[0];
        assert_eq!((failing.snapshot, failing.name.as_deref()), (bad, Some("bad")));
        assert!(failing.error.contains("damaged"), "{}", failing.error);
        assert_eq!((world.stored(bad), world.far_name("bad")), (None, None));
        assert!(world.outboxes.mark().is_settled());
        world.restart();
    }
    fs::write(&blob, bytes).unwrap();
    world.retry();
    world.verify(bad);
    assert_eq!(world.far_name("bad"), Some(bad));
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
}

#[test]
fn an_object_that_the_store_refuses_holds_up_no_other() {
    let world = World::new();
    let bad = world.seal("bad", None);
    let good = world.seal("good", None);
    let key = world.blob_of(bad).file_name().unwrap().to_str().unwrap().to_owned();
    world.faults(&[Operation::Put], &key);
    world.ship();
    world.verify(good);
    assert_eq!(world.waiting(), [bad]);
    assert!(!world.outboxes.mark().is_settled(), "the store may change its mind");
}

#[test]
fn an_older_snapshot_does_not_take_the_name_from_a_newer_one() {
    let world = World::new();
    let old = world.seal("old", Some("n"));
    let new = world.seal("new", Some("n"));
    let blob = world.blob_of(old);
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, "damaged").unwrap();
    world.ship();
    assert_eq!((world.far_name("n"), world.waiting()), (Some(new), vec![old]));
    fs::write(&blob, bytes).unwrap();
    world.retry();
    world.verify(old);
    assert_eq!(world.far_name("n"), Some(new));
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
}

#[test]
fn a_name_that_was_moved_elsewhere_stays_and_is_reported() {
    let mut world = World::new();
    let id = world.seal("one", Some("n"));
    world.move_elsewhere("n", foreign(1));
    world.ship();
    world.verify(id);
    assert_eq!(world.far_name("n"), Some(foreign(1)));
    for _ in 0..2 {
        let report = world.outboxes.report();
        assert_eq!((report.waiting, report.name_conflicts.len()), (0, 1));
        let conflict = &report.name_conflicts[0];
        assert_eq!((conflict.snapshot, conflict.stands_for), (id, Some(foreign(1))));
        assert!(!world.usual().has_name(&"n".parse().unwrap()));
        world.restart();
    }
    // From now on this host knows the target of the name.
    let two = world.seal("two", Some("n"));
    world.ship();
    assert_eq!(world.far_name("n"), Some(two));
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
    // Or the user leaves the name where it points.
    world.seal("three", Some("n"));
    world.move_elsewhere("n", foreign(2));
    world.ship();
    assert_eq!(world.outboxes.report().name_conflicts.len(), 1);
    world.outboxes.leave_names().unwrap();
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
    assert_eq!(world.far_name("n"), Some(foreign(2)));
}

#[test]
fn a_name_that_this_host_has_set_since_is_left() {
    let world = World::new();
    let id = world.seal("one", Some("n"));
    // The sequence of `inlay tag`.
    let name: Name = "n".parse().unwrap();
    world.move_elsewhere("n", foreign(1));
    fs::remove_file(world.usual().file(&ObjectKey::Name(name))).unwrap();
    world.ship();
    world.verify(id);
    assert_eq!(world.far_name("n"), Some(foreign(1)));
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
}

#[test]
fn a_clock_that_was_wrong_does_not_move_a_name_backwards() {
    let world = World::new();
    world.off.store(100_000, SeqCst);
    let id = world.seal("one", Some("n"));
    world.off.store(0, SeqCst);
    world.move_elsewhere("n", foreign(1));
    world.ship();
    world.verify(id);
    assert_eq!(world.far_name("n"), Some(foreign(1)));
    assert_eq!(world.outboxes.report().name_conflicts.len(), 1);
}

#[test]
fn labels_of_a_snapshot_that_is_stored_are_added() {
    let world = World::new();
    let id = world.seal("one", None);
    world.ship();
    let (sealing, again) = world.write("one", &[("a", "1")]);
    assert_eq!(again, id);
    sealing.commit(id, None).unwrap();
    drop(sealing);
    world.ship();
    let labels = world.stored(id).unwrap().labels;
    assert_eq!(labels, BTreeMap::from([("a".to_owned(), "1".to_owned())]));
}

#[test]
fn an_outbox_of_an_older_version_is_shipped() {
    let mut world = World::new();
    let named = world.seal("named", Some("n"));
    let unnamed = world.seal("unnamed", None);
    let gone = world.seal("gone", None);
    fs::remove_dir_all(world.dir().join("queue")).unwrap();
    // Shipped before its name.
    world.runtime.block_on(async {
        let outbox_dir = Remote::open(&StoreConfig::new(world.usual().dir().display().to_string()));
        let record = outbox_dir.unwrap().snapshot(&gone).await.unwrap();
        world.far.put_snapshot(&record).await.unwrap();
    });
    fs::remove_file(world.usual().file(&ObjectKey::Record(gone))).unwrap();
    let name = world.usual().file(&ObjectKey::Name("gone".parse().unwrap()));
    let record = NameRecord::now("gone".parse().unwrap(), gone);
    let mut json = serde_json::to_value(&record).unwrap();
    json["version"] = 1.into();
    fs::write(name, json.to_string()).unwrap();
    fs::write(world.dir().join("store.json"), r#"{"url":"memory","plain_http":false}"#).unwrap();
    world.restart();
    assert_eq!(world.outboxes.waiting(), 3);
    world.ship();
    world.verify(named);
    world.verify(unnamed);
    assert_eq!((world.far_name("n"), world.far_name("gone")), (Some(named), Some(gone)));
    assert_eq!(world.outboxes.report(), SyncAnswer::default());
}

#[test]
fn a_damaged_outbox_is_kept_and_reported() {
    let mut world = World::new();
    let id = world.seal("one", None);
    let path = world.dir().join("store.json");
    let before = world.objects();
    for text in [
        "",
        "{",
        r#"{"version":2,"url":"memory","plain_http":false}"#,
        r#"{"url":"other","plain_http":false}"#,
    ] {
        fs::write(&path, text).unwrap();
        world.restart();
        let report = world.outboxes.report();
        let damaged: Vec<_> = report.damaged.iter().map(|it| it.path.to_path()).collect();
        assert_eq!((report.waiting, &damaged), (0, &vec![path.clone()]), "{text}");
        assert_eq!(world.objects(), before);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
    fs::remove_file(&path).unwrap();
    world.restart();
    assert_eq!(world.outboxes.report().damaged.len(), 1);
    // A reference to the store proves which one it is.
    world.outbox();
    assert_eq!(world.outboxes.report().damaged, []);
    world.ship();
    world.verify(id);
    assert_eq!(world.objects(), Vec::<PathBuf>::new());
}

#[test]
fn an_outbox_of_a_newer_version_is_left_alone() {
    let mut world = World::new();
    world.seal("one", None);
    let path = world.dir().join("store.json");
    let text = r#"{"version":2,"url":"memory","plain_http":false}"#;
    fs::write(&path, text).unwrap();
    let before = world.objects();
    world.restart();
    world.ship();
    let refused = world.outboxes.seal(&store_ref(), world.runtime.handle()).err().unwrap();
    assert!(refused.to_string().contains("version 2"), "{refused}");
    assert_eq!((world.objects(), fs::read_to_string(&path).unwrap()), (before, text.to_owned()));
    assert_eq!(world.outboxes.report().damaged.len(), 1);
}

#[test]
fn a_queue_that_can_not_be_read_is_not_cleared() {
    let mut world = World::new();
    let id = world.seal("one", Some("n"));
    let queue = world.dir().join("queue");
    let aside = world.dir().join("aside");
    fs::rename(&queue, &aside).unwrap();
    fs::write(&queue, "no directory").unwrap();
    world.restart();
    let before = world.objects();
    world.ship();
    assert!(world.outboxes.seal(&store_ref(), world.runtime.handle()).is_err());
    assert_eq!(world.outboxes.report().damaged.len(), 1);
    assert_eq!((world.objects(), world.stored(id)), (before, None));
    fs::remove_file(&queue).unwrap();
    fs::rename(&aside, &queue).unwrap();
    world.restart();
    world.ship();
    assert_eq!(world.far_name("n"), Some(id));
}

#[test]
fn a_damaged_entry_keeps_its_objects_and_does_not_pass_for_success() {
    let mut world = World::new();
    let id = world.seal("one", Some("n"));
    let entry = fs::read_dir(world.dir().join("queue")).unwrap().next().unwrap().unwrap().path();
    fs::write(&entry, "").unwrap();
    world.restart();
    // Its snapshot is complete and is shipped nonetheless.
    world.ship();
    world.verify(id);
    let report = world.outboxes.report();
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(fs::read(&entry).unwrap(), b"");
    fs::remove_file(&entry).unwrap();
    assert_eq!(world.outboxes.report().damaged, []);
}

#[test]
fn failures_are_tried_again_later_and_later() {
    let world = World::new();
    let (one, two) = (world.seal("one", None), world.seal("two", None));
    let outbox = world.outbox();
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let next = |at| outbox.next(at).map(|entry| entry.snapshot);
    assert_eq!((next(now), outbox.due(now)), (Some(one), store_outbox::Due::Now));
    outbox.failed(1, Side::Here, "x".into(), now);
    assert_eq!(next(now), Some(two), "others go on");
    outbox.failed(2, Side::Here, "x".into(), now + second / 2);
    assert_eq!((next(now), outbox.due(now)), (None, store_outbox::Due::At(now + second)));
    assert_eq!(next(now + second), Some(one));
    assert_eq!(next(now + second * 2), Some(one), "the one that waited longest first");
    outbox.failed(1, Side::Here, "x".into(), now + second);
    assert_eq!(outbox.next(now + second * 3).unwrap().snapshot, two);
    assert_eq!(outbox.view().waiting[0].failed.as_ref().unwrap().attempts, 2);
    for attempt in 0..20 {
        outbox.failed(1, Side::Here, "x".into(), now);
        outbox.failed(2, Side::Here, "x".into(), now);
        let store_outbox::Due::At(at) = outbox.due(now) else { panic!("{attempt}") };
        assert!(at <= now + Duration::from_mins(5));
    }
    assert_eq!(next(now + Duration::from_secs(299)), None);
    // A failing store is paused as a whole.
    outbox.retry(now);
    assert!(outbox.view().waiting.iter().all(|one| one.failed.as_ref().unwrap().retry_asked));
    assert_eq!(next(now), Some(one));
    outbox.failed(1, Side::Store, "x".into(), now);
    assert_eq!((next(now), outbox.due(now)), (None, store_outbox::Due::At(now + second)));
    assert_eq!(next(now + second), Some(two));
    outbox.failed(2, Side::Store, "x".into(), now + second);
    assert_eq!(outbox.due(now + second), store_outbox::Due::At(now + second * 3));
    outbox.retry(now);
    assert_eq!(next(now), Some(one));
}

#[test]
fn a_sync_waits_for_captures_begun_before_it_and_not_for_later_ones() {
    let world = World::new();
    let one = world.seal("one", None);
    let (sealing, two) = world.write("two", &[]);
    world.outboxes.start(world.runtime.handle());
    let outboxes = world.outboxes.clone();
    let sync = world.runtime.spawn(async move {
        let marked = outboxes.drained(Duration::from_mins(1)).await;
        outboxes.report_before(marked)
    });
    inlay_testkit::wait::until("the first is shipped", || !world.waiting().contains(&one));
    assert!(!sync.is_finished(), "a capture that began before is not over");
    // Sealed after the sync began: not waited for.
    let (late, three) = world.write("three", &[]);
    sealing.commit(two, None).unwrap();
    drop(sealing);
    let report = world.runtime.block_on(sync).unwrap();
    assert_eq!(report, SyncAnswer::default());
    world.verify(two);
    assert_eq!(world.outboxes.report().waiting, 1, "the late one is being sealed");
    late.commit(three, None).unwrap();
    drop(late);
    world.runtime.block_on(world.outboxes.drained(Duration::from_mins(1)));
    world.verify(three);
    // A failed capture ends the wait, too.
    let (nothing, _) = world.write("four", &[]);
    let outboxes = world.outboxes.clone();
    let sync = world.runtime.spawn(async move { outboxes.drained(Duration::from_hours(1)).await });
    drop(nothing);
    let ended = world.runtime.block_on(async { timeout(Duration::from_mins(1), sync).await });
    ended.expect("the sync waits for a capture that is over").unwrap();
    world.runtime.block_on(world.outboxes.stop());
}

#[test]
fn the_carrier_ships_until_it_is_stopped() {
    let world = World::new();
    let id = world.seal("one", Some("n"));
    world.outboxes.start(world.runtime.handle());
    world.runtime.block_on(world.outboxes.drained(Duration::from_mins(1)));
    assert_eq!((world.outboxes.waiting(), world.far_name("n")), (0, Some(id)));
    let two = world.seal("two", Some("n"));
    world.runtime.block_on(world.outboxes.drained(Duration::from_mins(1)));
    assert_eq!(world.far_name("n"), Some(two));
    // A failure on this host is not waited for.
    world.runtime.block_on(world.outboxes.stop());
    let three = world.seal("three", None);
    fs::write(world.blob_of(three), "damaged").unwrap();
    world.outboxes.start(world.runtime.handle());
    world.runtime.block_on(world.outboxes.drained(Duration::from_mins(1)));
    assert!(world.waiting().contains(&three));
    world.runtime.block_on(world.outboxes.stop());
}

#[test]
fn a_panic_while_shipping_pauses_its_store_only() {
    let mut world = World::new();
    let id = world.seal("a", None);
    let opened = Arc::new(AtomicI64::new(0));
    let (counts, far) = (Arc::clone(&opened), world.far.clone());
    let open = move |_: &StoreRef| {
        assert!(counts.fetch_add(1, SeqCst) > 0, "a defect");
        Ok(far.clone())
    };
    world.outboxes = Outboxes::with_clock(&world.state, Box::new(open), Arc::new(Moment::now));
    world.outboxes.start(world.runtime.handle());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(opened.load(SeqCst), 1);
    world.outbox().unpause();
    world.outboxes.inner.more.notify_one();
    let deadline = Instant::now() + Duration::from_mins(1);
    while world.stored(id).is_none() {
        assert!(Instant::now() < deadline, "not shipped");
        std::thread::sleep(Duration::from_millis(5));
    }
    world.runtime.block_on(world.outboxes.stop());
}
