//! Conformance tests that every kind of store must pass.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use inlay_testkit::weed::{BUCKET, Weed};
use object_store::memory::InMemory;

use super::http_server::{Reply, Server, ServerRequest};
use super::profiles_tests::{check_profiles, check_read_only};
use super::records::tests::{id, name_record, record};
use super::*;
use crate::ids::{BlobId, Digest, IndexDigest};

fn blob(bytes: &[u8]) -> ObjectKey {
    ObjectKey::Blob(BlobId(Digest::of(bytes)))
}

fn content() -> Bytes {
    (0..200_000u32).map(|n| (n % 251) as u8).collect()
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn directory(path: &std::path::Path) -> Remote {
    Remote::open(&StoreConfig::new(path.to_str().unwrap())).unwrap()
}

async fn fill(remote: &Remote) {
    let bytes = content();
    let key = blob(&bytes);
    assert_eq!(remote.len(&key).await.unwrap(), None);
    assert_eq!(remote.put_immutable(&key, bytes.clone()).await.unwrap(), PutOutcome::Written);
    assert_eq!(remote.put_immutable(&key, bytes).await.unwrap(), PutOutcome::AlreadyThere);
    let empty = ObjectKey::Index(IndexDigest(Digest::of(b"")));
    remote.put_immutable(&empty, Bytes::new()).await.unwrap();
    for number in [1, 2, 3] {
        remote.put_snapshot(&record(number)).await.unwrap();
    }
    for (name, number) in [("base", 1), ("base/app", 2), ("python:3.12-slim", 3)] {
        assert_eq!(remote.set_name(&name_record(name, number)).await.unwrap(), None);
    }
}

async fn check_reads(remote: &Remote) {
    let bytes = content();
    let key = blob(&bytes);
    let len = bytes.len() as u64;
    let budget = remote.policy().budget();
    assert_eq!(remote.len(&key).await.unwrap(), Some(len));
    assert_eq!(remote.get(&key, len).await.unwrap(), bytes);
    for range in [0..1, 0..len, 5..100_000, len - 1..len, 7..7] {
        let expected = bytes.slice(place(range.start)..place(range.end));
        assert_eq!(remote.get_range(&key, range, budget).await.unwrap(), expected);
    }
    for start in [1, 70_000, len, len + 1, 1 << 30] {
        let expected = bytes.slice(..place(start.min(len)));
        assert_eq!(remote.get_start(&key, start).await.unwrap(), (expected, len));
    }
    let error = remote.get(&key, len - 1).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLong { .. }), "{error}");
    let hasty = RetryBudget { attempts_max: 2, ..budget };
    for range in [0..len + 1, len - 1..len + 1, len..len + 1, len + 7..len + 9] {
        let error = remote.get_range(&key, range, hasty).await.unwrap_err();
        assert!(error.to_string().contains(&remote.object_name(&key)), "{error}");
    }
    let empty = ObjectKey::Index(IndexDigest(Digest::of(b"")));
    assert_eq!(remote.get(&empty, 10).await.unwrap(), "");

    let missing = blob(b"missing");
    assert_eq!(remote.len(&missing).await.unwrap(), None);
    for error in [
        remote.get(&missing, 10).await.unwrap_err(),
        remote.get_range(&missing, 0..10, budget).await.unwrap_err(),
        remote.get_start(&missing, 10).await.unwrap_err(),
        remote.snapshot(&id(77)).await.unwrap_err(),
    ] {
        assert!(error.is_not_found(), "{error}");
        assert!(error.to_string().contains(remote.description()), "{error}");
    }
    assert_eq!(remote.snapshot(&id(2)).await.unwrap(), record(2));
    for (name, number) in [("base", 1), ("base/app", 2), ("python:3.12-slim", 3)] {
        let found = remote.name(&name.parse().unwrap()).await.unwrap();
        assert_eq!(found, Some(name_record(name, number)));
    }
    assert_eq!(remote.name(&"nobody".parse().unwrap()).await.unwrap(), None);
}

async fn check_lists(remote: &Remote) {
    let mut ids = [1, 2, 3].map(id);
    ids.sort();
    assert_eq!(remote.snapshot_ids().await.unwrap(), ids);
    let records: Vec<_> = remote.snapshots().await.unwrap().collect().await;
    assert_eq!(
        records
            .iter()
            .map(|(id, record)| record.as_ref().map(|_| *id).unwrap())
            .collect::<Vec<_>>(),
        ids
    );
    let names: Vec<_> = remote.names().await.unwrap().try_collect().await.unwrap();
    let names: Vec<_> = names.iter().map(|record| record.name.as_str()).collect();
    assert_eq!(names, ["base", "base/app", "python:3.12-slim"]);
}

async fn check_names_change(remote: &Remote) {
    let name: Name = "moving".parse().unwrap();
    assert_eq!(remote.set_name(&name_record("moving", 1)).await.unwrap(), None);
    assert_eq!(remote.set_name(&name_record("moving", 2)).await.unwrap(), Some(id(1)));
    let again = remote.set_name(&name_record("moving", 2)).await.unwrap();
    assert_eq!(again, Some(id(2)), "nothing was to be done");
    assert_eq!(remote.name(&name).await.unwrap().unwrap().id, id(2));
    remote.remove_name(&name).await.unwrap();
    remote.remove_name(&name).await.unwrap();
    assert_eq!(remote.name(&name).await.unwrap(), None);
}

/// Concurrent updates of a name: each sees the value of exactly one other update, or none, as its
/// predecessor.
async fn check_names_race(remote: &Remote) {
    let racers = (10..18).map(|number| {
        let remote = remote.clone();
        async move { remote.set_name(&name_record("contended", number)).await }
    });
    let mut before = futures::future::try_join_all(racers).await.unwrap();
    let name = "contended".parse().unwrap();
    before.push(remote.name(&name).await.unwrap().map(|record| record.id));
    before.sort();
    let mut expected: Vec<_> = (10..18).map(|number| Some(id(number))).collect();
    expected.push(None);
    expected.sort();
    assert_eq!(before, expected);
    remote.remove_name(&name).await.unwrap();
}

async fn conforms(remote: Remote) {
    assert_eq!(remote.snapshot_ids().await.unwrap(), []);
    fill(&remote).await;
    check_reads(&remote).await;
    check_lists(&remote).await;
    check_names_change(&remote).await;
    check_names_race(&remote).await;
    check_profiles(&remote).await;
}

#[tokio::test]
async fn memory_conforms() {
    conforms(Remote::open(&StoreConfig::new("memory:")).unwrap()).await;
    let store = Arc::new(InMemory::new());
    let policy = RetryPolicy::default();
    conforms(Remote::from_object_store(store, "test:".to_owned(), policy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(directory(dir.path())).await;
    // The remains of an interrupted write are not an object.
    std::fs::write(dir.path().join("snapshots/img-00.json#1"), "half").unwrap();
    check_lists(&directory(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_conforms() {
    let server = Weed::start().unwrap();
    let mut config = StoreConfig::new(format!("s3://{BUCKET}/some/prefix"));
    let environment = Weed::environment(server.address());
    config.options = environment.map(|(name, value)| (name.to_owned(), value)).into();
    conforms(Remote::open(&config).unwrap()).await;
}

/// Serves a directory like an ordinary web server.
fn serve(root: PathBuf) -> impl Fn(&ServerRequest) -> Reply + Send + Sync {
    move |request| {
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return Reply::new(405, "only for reading");
        }
        let path = request.path.strip_prefix("/images/").unwrap_or("none");
        let Ok(body) = std::fs::read(root.join(path)) else { return Reply::new(404, "none") };
        let Some(range) = request.headers.get("range") else { return Reply::new(200, body) };
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse::<usize>().unwrap().saturating_add(1).min(body.len());
        if from >= to {
            return Reply::new(416, "");
        }
        let headers = vec![("Content-Range", format!("bytes {from}-{}/{}", to - 1, body.len()))];
        Reply { headers, ..Reply::new(206, &body[from..to]) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_server_conforms_as_far_as_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    fill(&directory(dir.path())).await;
    let server = Server::start(serve(dir.path().to_owned())).await;
    let remote = Remote::open(&StoreConfig::new(format!("{}/images", server.url()))).unwrap();
    check_reads(&remote).await;
    for error in [
        remote.put_immutable(&blob(b"x"), Bytes::from_static(b"x")).await.unwrap_err(),
        remote.put_snapshot(&record(9)).await.unwrap_err(),
        remote.set_name(&name_record("base", 2)).await.unwrap_err(),
        remote.remove_name(&"base".parse().unwrap()).await.unwrap_err(),
    ] {
        assert!(matches!(&error, StoreError::ReadOnly { .. }), "{error}");
    }
    check_read_only(&remote).await;
    let error = remote.snapshot_ids().await.unwrap_err();
    assert!(error.to_string().contains("does not support"), "{error}");
}
