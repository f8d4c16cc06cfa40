use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::ids::{BlobId, Digest, IndexDigest, Kind, SnapshotId};

struct Both {
    dir: TempDir,
    near: Near,
}

impl Both {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let near = Near::new(dir.path().join("near"));
        Self { dir, near }
    }

    fn open(&self, writes: Writes) -> Remote {
        let mut config = StoreConfig::new(self.dir.path().join("far").display().to_string());
        config.near = Some(self.near.with(writes));
        Remote::open(&config).unwrap()
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
    NameRecord { name: name.parse().unwrap(), id: id(text), updated: 1 }
}

#[tokio::test]
async fn what_is_near_is_read_as_if_the_store_had_it() {
    let both = Both::new();
    let (sealing, usual) = (both.open(Writes::Near), both.open(Writes::Far));
    both.near.set_used(Used::Yes);
    let (near, far) = (blob(b"near"), blob(b"far"));
    sealing.put_immutable(&near, Bytes::from_static(b"near")).await.unwrap();
    usual.put_immutable(&far, Bytes::from_static(b"far")).await.unwrap();
    for remote in [&sealing, &usual] {
        assert_eq!(remote.get(&near, 10).await.unwrap(), "near");
        assert_eq!(remote.get(&far, 10).await.unwrap(), "far");
        let budget = remote.policy().budget();
        assert_eq!(remote.get_range(&near, 1..3, budget).await.unwrap(), "ea");
    }
    assert!(both.far().get(&near, 10).await.unwrap_err().is_not_found());
    // Nobody looks there when there is said to be nothing.
    both.near.set_used(Used::No);
    assert!(usual.get(&near, 10).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn snapshots_of_both_are_listed_once() {
    let both = Both::new();
    let (sealing, usual) = (both.open(Writes::Near), both.open(Writes::Far));
    both.near.set_used(Used::Yes);
    sealing.put_snapshot(&record("a")).await.unwrap();
    usual.put_snapshot(&record("b")).await.unwrap();
    both.far().put_snapshot(&record("a")).await.unwrap();
    let mut wanted = vec![id("a"), id("b")];
    wanted.sort();
    assert_eq!(usual.snapshot_ids().await.unwrap(), wanted);
    assert_eq!(sealing.snapshot(&id("b")).await.unwrap(), record("b"));
}

#[tokio::test]
async fn a_name_is_what_was_said_last() {
    let both = Both::new();
    let (sealing, usual) = (both.open(Writes::Near), both.open(Writes::Far));
    both.near.set_used(Used::Yes);
    let name = |remote: &Remote| {
        let remote = remote.clone();
        async move { remote.name(&"n".parse().unwrap()).await.unwrap().map(|found| found.id) }
    };
    usual.set_name(&named("n", "a")).await.unwrap();
    sealing.set_name(&named("n", "b")).await.unwrap();
    assert_eq!((name(&usual).await, name(&both.far()).await), (Some(id("b")), Some(id("a"))));
    sealing.set_name(&named("n", "c")).await.unwrap();
    assert_eq!(name(&usual).await, Some(id("c")));
    // What is said of the store itself is newer than what waits.
    usual.set_name(&named("n", "d")).await.unwrap();
    assert_eq!((name(&usual).await, name(&both.far()).await), (Some(id("d")), Some(id("d"))));
}
