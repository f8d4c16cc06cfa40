//! Tests of outbox directories, and of merging the records of snapshots.

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::ids::{BlobId, Digest, IndexDigest, Kind, SnapshotId};

struct Both {
    dir: TempDir,
    outbox_dir: OutboxDir,
}

impl Both {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let outbox_dir = OutboxDir::new(dir.path().join("outbox/objects"));
        outbox_dir.set_used(Used::Yes);
        Self { dir, outbox_dir }
    }

    /// The store behind the directory.
    fn usual(&self) -> Remote {
        let mut config = StoreConfig::new(self.dir.path().join("far").display().to_string());
        config.outbox_dir = Some(self.outbox_dir.clone());
        Remote::open(&config).unwrap()
    }

    /// The directory alone.
    fn sealing(&self) -> Remote {
        Remote::open(&StoreConfig::new(self.outbox_dir.dir().display().to_string())).unwrap()
    }

    fn far(&self) -> Remote {
        Remote::open(&StoreConfig::new(self.dir.path().join("far").display().to_string())).unwrap()
    }
}

fn blob(bytes: &[u8]) -> ObjectKey {
    ObjectKey::Blob(BlobId(Digest::of(bytes)))
}

fn id(text: &str) -> SnapshotId {
    SnapshotId { kind: Kind::Directory, index: IndexDigest(Digest::of(text.as_bytes())) }
}

fn record(text: &str) -> SnapshotRecord {
    let json = serde_json::json!({
        "version": 1, "id": id(text).to_string(), "created": 1, "source": text,
        "counts": {"files": 0, "directories": 1, "others": 0}, "content_bytes": 0,
        "stored_bytes_new": 0, "index_bytes": 1, "index_packed_bytes": 1, "blobs": 0, "tool": "test"
    });
    serde_json::from_value(json).unwrap()
}

fn named(name: &str, text: &str) -> NameRecord {
    NameRecord { name: name.parse().unwrap(), id: id(text), updated: 1, updated_ns: 0 }
}

fn name() -> Name {
    "team/n".parse().unwrap()
}

#[tokio::test]
async fn objects_in_the_outbox_are_read_as_if_stored() {
    let both = Both::new();
    let (sealing, usual) = (both.sealing(), both.usual());
    let (outbox_dir, far) = (blob(b"near"), blob(b"far"));
    sealing.put_immutable(&outbox_dir, Bytes::from_static(b"near")).await.unwrap();
    usual.put_immutable(&far, Bytes::from_static(b"far")).await.unwrap();
    assert_eq!(usual.get(&outbox_dir, 10).await.unwrap(), "near");
    assert_eq!(usual.get(&far, 10).await.unwrap(), "far");
    assert_eq!(usual.len(&outbox_dir).await.unwrap(), Some(4));
    let budget = usual.policy().budget();
    assert_eq!(usual.get_range(&outbox_dir, 1..3, budget).await.unwrap(), "ea");
    assert!(both.far().get(&outbox_dir, 10).await.unwrap_err().is_not_found());
    assert!(sealing.get(&far, 10).await.unwrap_err().is_not_found());
    // An unused directory is not probed.
    both.outbox_dir.set_used(Used::No);
    assert!(usual.get(&outbox_dir, 10).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn writes_to_the_store_are_not_satisfied_by_the_outbox() {
    let both = Both::new();
    let (sealing, usual) = (both.sealing(), both.usual());
    let key = blob(b"blob");
    let bytes = Bytes::from_static(b"blob");
    sealing.put_immutable(&key, bytes.clone()).await.unwrap();
    sealing.put_snapshot(&record("a")).await.unwrap();
    // An object in the directory does not count as stored.
    assert_eq!(usual.put_immutable(&key, bytes.clone()).await.unwrap(), PutOutcome::Written);
    assert_eq!(usual.put_immutable(&key, bytes).await.unwrap(), PutOutcome::AlreadyThere);
    assert_eq!(usual.stored_snapshot(&id("a")).await.unwrap(), None);
    assert_eq!(usual.create_or_merge_snapshot(&record("a")).await.unwrap(), record("a"));
    assert_eq!(both.far().snapshot(&id("a")).await.unwrap(), record("a"));
    assert_eq!(usual.stored_snapshot(&id("a")).await.unwrap(), Some(record("a")));
}

#[tokio::test]
async fn snapshots_of_both_are_listed_once() {
    let both = Both::new();
    let (sealing, usual) = (both.sealing(), both.usual());
    sealing.put_snapshot(&record("a")).await.unwrap();
    usual.put_snapshot(&record("b")).await.unwrap();
    both.far().put_snapshot(&record("a")).await.unwrap();
    let mut wanted = vec![id("a"), id("b")];
    wanted.sort();
    assert_eq!(usual.snapshot_ids().await.unwrap(), wanted);
}

#[tokio::test]
async fn the_latest_value_of_a_name_wins() {
    let both = Both::new();
    let (sealing, usual) = (both.sealing(), both.usual());
    let found = async |remote: &Remote| remote.name(&name()).await.unwrap().map(|found| found.id);
    let set = async |remote: &Remote, text| {
        remote.set_name(&named("team/n", text)).await.unwrap();
    };
    set(&usual, "a").await;
    set(&sealing, "b").await;
    assert!(both.outbox_dir.has_name(&name()));
    assert_eq!((found(&usual).await, found(&both.far()).await), (Some(id("b")), Some(id("a"))));
    set(&sealing, "c").await;
    assert_eq!(found(&usual).await, Some(id("c")));
    // A name set in the store is newer than the pending one.
    std::fs::create_dir_all(both.outbox_dir.conflicts()).unwrap();
    std::fs::write(both.outbox_dir.conflict_file(&name()), "{}").unwrap();
    assert_eq!(usual.set_name(&named("team/n", "d")).await.unwrap(), Some(id("a")));
    assert_eq!((found(&usual).await, found(&both.far()).await), (Some(id("d")), Some(id("d"))));
    assert!(!both.outbox_dir.has_name(&name()) && !both.outbox_dir.conflict_file(&name()).exists());
    set(&sealing, "e").await;
    usual.remove_name(&name()).await.unwrap();
    assert_eq!((found(&usual).await, found(&both.far()).await), (None, None));
}

#[tokio::test]
async fn the_last_seen_value_of_a_name_is_recorded() {
    let both = Both::new();
    let (sealing, usual) = (both.sealing(), both.usual());
    let seen = || both.outbox_dir.seen(&name());
    assert_eq!(seen(), NameSeen::Unknown);
    usual.name(&name()).await.unwrap();
    assert_eq!(seen(), NameSeen::Nothing);
    usual.set_name(&named("team/n", "a")).await.unwrap();
    assert_eq!(seen(), NameSeen::Snapshot(id("a")));
    both.far().set_name(&named("team/n", "b")).await.unwrap();
    assert_eq!(seen(), NameSeen::Snapshot(id("a")));
    // A name that is only pending here is not the store's.
    sealing.set_name(&named("team/n", "c")).await.unwrap();
    usual.name(&name()).await.unwrap();
    assert_eq!(seen(), NameSeen::Snapshot(id("a")));
    std::fs::remove_file(both.outbox_dir.file(&ObjectKey::Name(name()))).unwrap();
    usual.name(&name()).await.unwrap();
    assert_eq!(seen(), NameSeen::Snapshot(id("b")));
    usual.remove_name(&name()).await.unwrap();
    assert_eq!(seen(), NameSeen::Nothing);
    std::fs::write(both.outbox_dir.seen_file(&name()), "{").unwrap();
    assert_eq!(seen(), NameSeen::Unknown);
}

#[tokio::test]
async fn a_store_without_sealed_snapshots_has_no_note() {
    let dir = TempDir::new().unwrap();
    let outbox_dir = OutboxDir::new(dir.path().join("outbox/objects"));
    outbox_dir.note(&name(), Some(id("a")));
    assert_eq!(outbox_dir.seen(&name()), NameSeen::Unknown);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_directory_is_used_unless_it_is_empty() {
    let dir = TempDir::new().unwrap();
    let used = || OutboxDir::new(dir.path().to_owned()).is_used();
    assert!(!used());
    std::fs::create_dir(dir.path().join("names")).unwrap();
    assert!(used());
    std::fs::rename(dir.path().join("names"), dir.path().join("snapshots")).unwrap();
    assert!(used());
}

#[tokio::test]
async fn a_name_is_moved_only_if_it_may() {
    let both = Both::new();
    let far = both.far();
    let moved = async |text, may: bool| far.move_name(&named("n", text), |_| may).await.unwrap();
    assert_eq!(moved("a", false).await, NameMove::Refused { found: None });
    assert_eq!(moved("a", true).await, NameMove::Moved { before: None });
    assert_eq!(moved("a", false).await, NameMove::There);
    assert_eq!(moved("b", false).await, NameMove::Refused { found: Some(named("n", "a")) });
    assert_eq!(moved("b", true).await, NameMove::Moved { before: Some(id("a")) });
    let seen = std::cell::RefCell::new(Vec::new());
    let look = |found: Option<&NameRecord>| {
        seen.borrow_mut().push(found.cloned());
        false
    };
    far.move_name(&named("n", "c"), look).await.unwrap();
    assert_eq!(seen.into_inner(), [Some(named("n", "b"))]);
    assert_eq!(far.name(&"n".parse().unwrap()).await.unwrap(), Some(named("n", "b")));
}

#[tokio::test]
async fn labels_and_time_to_live_are_merged() {
    let both = Both::new();
    let far = both.far();
    let with = |labels: &[(&str, &str)], ttl_s| SnapshotRecord {
        labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        ttl_s,
        ..record("a")
    };
    let first = with(&[("a", "1"), ("b", "1")], None);
    assert_eq!(far.put_or_merge_snapshot(&first).await.unwrap(), first);
    let later = SnapshotRecord { source: "other".into(), ..with(&[("b", "2"), ("c", "2")], None) };
    let merged = with(&[("a", "1"), ("b", "2"), ("c", "2")], None);
    assert_eq!(far.put_or_merge_snapshot(&later).await.unwrap(), merged);
    assert_eq!(far.create_or_merge_snapshot(&later).await.unwrap(), merged);
    assert_eq!(far.snapshot(&id("a")).await.unwrap(), merged);
}

#[test]
fn a_time_to_live_only_extends() {
    const DAY: u64 = 86_400;
    let merged = |kind, known, later| {
        let id = SnapshotId { kind, ..id("a") };
        let mut record = SnapshotRecord { id, ttl_s: known, ..record("a") };
        record.merge(&SnapshotRecord { ttl_s: later, ..record.clone() });
        record.ttl_s
    };
    for (kind, default) in [(Kind::Directory, 30 * DAY), (Kind::Memory, 7 * DAY)] {
        assert_eq!(merged(kind, None, Some(default)), None);
        assert_eq!(merged(kind, None, Some(default + 1)), Some(default + 1));
        assert_eq!(merged(kind, Some(5), None), Some(5));
        assert_eq!(merged(kind, Some(5), Some(4)), Some(5));
        assert_eq!(merged(kind, Some(5), Some(6)), Some(6));
    }
    for kind in [Kind::Image, Kind::Filesystem] {
        // Without a TTL, the snapshot is kept until it is deleted.
        assert_eq!(merged(kind, None, Some(u64::MAX)), None);
        assert_eq!(merged(kind, Some(5), Some(6)), Some(6));
    }
}
