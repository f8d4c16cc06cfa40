//! Tests of writing and repairing content-addressed objects.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use inlay_testkit::weed::{BUCKET, Weed};

use super::super::http_server::{Reply, Server, ServerRequest};
use super::*;
use crate::ids::{BlobId, Digest};
use crate::remote::StoreConfig;

const WHOLE: &[u8] = b"the bytes that belong here";

fn key() -> ObjectKey {
    ObjectKey::Blob(BlobId(Digest::of(WHOLE)))
}

/// Each kind of damage: truncated, one flipped bit, empty, too long.
fn damaged() -> [Bytes; 4] {
    let mut flipped = WHOLE.to_vec();
    flipped[5] ^= 1;
    let long = [WHOLE, b"x"].concat();
    [Bytes::from_static(&WHOLE[..9]), Bytes::new(), flipped.into(), long.into()]
}

/// Checks that `remote` repairs all damage that `existing` detects.
async fn repairs(remote: &Remote, existing: Existing) {
    let key = key();
    let put = || remote.put_checked(&key, Bytes::from_static(WHOLE), existing);
    put().await.unwrap();
    for bytes in damaged() {
        remote.put(&key, bytes.clone()).await.unwrap();
        assert_eq!(put().await.unwrap(), PutOutcome::Repaired, "{bytes:?}");
        assert_eq!(remote.get(&key, 100).await.unwrap(), WHOLE);
        assert_eq!(put().await.unwrap(), PutOutcome::AlreadyThere, "{bytes:?}");
    }
}

fn s3(url: String, secrets: [(&'static str, String); 5]) -> Remote {
    let mut config = StoreConfig::new(url);
    config.options = secrets.map(|(name, value)| (name.to_owned(), value)).into();
    Remote::open(&config).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Remote::open(&StoreConfig::new(dir.path().to_str().unwrap())).unwrap();
    repairs(&directory, Existing::Compared).await;
    repairs(&directory, Existing::Read).await;
    repairs(&Remote::open(&StoreConfig::new("memory:")).unwrap(), Existing::Read).await;
    let weed = Weed::start().unwrap();
    let remote = s3(format!("s3://{BUCKET}/p"), Weed::environment(weed.address()));
    repairs(&remote, Existing::Compared).await;
    repairs(&remote, Existing::Read).await;
}

#[tokio::test]
async fn non_regular_files_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::open(&StoreConfig::new(dir.path().to_str().unwrap())).unwrap();
    let file = key().file(dir.path());
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    let put = remote.put_immutable(&key(), Bytes::from_static(WHOLE)).await;
    assert_eq!(put.unwrap(), PutOutcome::Repaired);
    assert_eq!(std::fs::read(&file).unwrap(), WHOLE);
}

/// A service that has the object with `tag`. Counts reads.
async fn tagged(tag: Option<&'static str>) -> (Server, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reads);
    let server = Server::start(move |request: &ServerRequest| {
        if request.method == "GET" {
            counter.fetch_add(1, Ordering::SeqCst);
        }
        let tag = tag.map(|tag| ("ETag", format!("\"{tag}\"")));
        let time = ("Last-Modified", "Tue, 01 Sep 2026 10:00:00 GMT".to_owned());
        Reply { headers: tag.into_iter().chain([time]).collect(), ..Reply::new(200, WHOLE) }
    })
    .await;
    (server, reads)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_is_right_is_read_only_if_that_is_asked_for() {
    let md5 = "d36b9ab9e53ba9ef3e4bbf1a7d1bba6c";
    let of_parts = "00000000000000000000000000000000-2";
    // The second tag looks like an MD5 but is not; this is detected once.
    for (tag, compared, read) in
        [(Some(of_parts), [0, 0], [1, 2]), (Some(md5), [1, 1], [2, 3]), (None, [0, 0], [1, 2])]
    {
        let (server, reads) = tagged(tag).await;
        let secrets = Weed::environment(server.address);
        let remote = s3("s3://bucket/p".to_owned(), secrets);
        for (existing, expected) in [(Existing::Compared, compared), (Existing::Read, read)] {
            for expected in expected {
                let put = remote.put_checked(&key(), Bytes::from_static(WHOLE), existing).await;
                assert_eq!(put.unwrap(), PutOutcome::AlreadyThere, "{tag:?}");
                assert_eq!(reads.load(Ordering::SeqCst), expected, "{tag:?} {existing:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_is_the_md5_is_enough() {
    let digest = u128::from_be_bytes(Md5::digest(WHOLE).as_slice().try_into().unwrap());
    let hex = format!("{digest:032X}");
    let (server, reads) = tagged(Some(hex.leak())).await;
    let remote = s3("s3://bucket/p".to_owned(), Weed::environment(server.address));
    let put = remote.put_immutable(&key(), Bytes::from_static(WHOLE)).await;
    assert_eq!((put.unwrap(), reads.load(Ordering::SeqCst)), (PutOutcome::AlreadyThere, 0));
}

#[tokio::test]
async fn a_truncated_object_of_a_directory_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::open(&StoreConfig::new(dir.path().to_str().unwrap())).unwrap();
    remote.put(&key(), Bytes::new()).await.unwrap();
    let budget = remote.policy().budget();
    let empty = remote.get_start(&key(), 10).await.unwrap_err();
    remote.put(&key(), Bytes::from_static(&WHOLE[..9])).await.unwrap();
    let cut = remote.get_range(&key(), 5..20, budget).await.unwrap_err();
    let behind = remote.get_range(&key(), 9..20, budget).await.unwrap_err();
    for (error, len) in [(empty, 0), (cut, 9), (behind, 9)] {
        let text = error.to_string();
        assert!(error.is_damage(), "{text}");
        assert!(text.contains(&format!("it has only {len} bytes (attempts: 1,")), "{text}");
    }
}
