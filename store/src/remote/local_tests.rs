//! Tests of the directory store.

use std::os::unix::fs::symlink;
use std::time::Duration;

use futures::TryStreamExt;
use rustix::fs::{CWD, FileType as Kind, mknodat};

use super::*;

/// Far longer than anything here takes, and far shorter than opening a FIFO without a writer.
const LIMIT: Duration = Duration::from_mins(1);

fn directory() -> (tempfile::TempDir, LocalDirectory) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalDirectory::open(&dir.path().join("a/store")).unwrap();
    (dir, store)
}

async fn names(store: &LocalDirectory, prefix: &str) -> Vec<String> {
    let listed: Vec<_> = store.list(Some(&Path::from(prefix))).try_collect().await.unwrap();
    let mut names: Vec<_> = listed.iter().map(|meta| meta.location.to_string()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    let (_dir, store) = directory();
    let at = |name: &str| store.root.join("snapshots").join(name);
    store.put(&Path::from("snapshots/file"), "bytes".into()).await.unwrap();
    mknodat(CWD, at("fifo"), Kind::Fifo, 0o600.into(), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    symlink("file", at("link")).unwrap();
    symlink("loop", at("loop")).unwrap();
    std::fs::create_dir(at("directory")).unwrap();
    for (name, found) in [
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("link", "a symbolic link"),
        ("loop", "a symbolic link"),
        ("directory", "a directory"),
    ] {
        let path = Path::from(format!("snapshots/{name}"));
        let got = tokio::time::timeout(LIMIT, ObjectStoreExt::get(&store, &path))
            .await
            .unwrap()
            .unwrap_err();
        let head = tokio::time::timeout(LIMIT, store.head(&path)).await.unwrap().unwrap_err();
        for error in [got, head] {
            assert!(error.to_string().contains(found), "{name}: {error}");
        }
    }
    let missing = ObjectStoreExt::get(&store, &Path::from("snapshots/missing")).await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    assert_eq!(
        ObjectStoreExt::get(&store, &Path::from("snapshots/file"))
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
        "bytes"
    );
}

#[tokio::test]
async fn everything_in_a_directory_is_listed_and_nothing_below() {
    let (_dir, store) = directory();
    assert_eq!(names(&store, "names").await, [""; 0]);
    store.put(&Path::from("names/one"), "1".into()).await.unwrap();
    store.put(&Path::from("names/sub/two"), "2".into()).await.unwrap();
    symlink("loop", store.root.join("names/loop")).unwrap();
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd-\xff");
    std::fs::write(store.root.join("names").join(odd), "").unwrap();
    assert_eq!(names(&store, "names").await, ["names/loop", "names/one", "names/sub"]);
    let listed = store.list_with_delimiter(Some(&Path::from("names"))).await.unwrap();
    assert_eq!(listed.common_prefixes, [Path::from("names/sub")]);
    assert_eq!(listed.objects.len(), 2);
}

#[tokio::test]
async fn more_entries_than_a_batch_holds_are_listed() {
    let (_dir, store) = directory();
    std::fs::create_dir(store.root.join("names")).unwrap();
    for number in 0..LIST_BATCH + 3 {
        std::fs::write(store.root.join(format!("names/{number}")), "").unwrap();
    }
    assert_eq!(names(&store, "names").await.len(), LIST_BATCH + 3);
}

#[tokio::test]
async fn directories_above_an_object_are_made_durable_once() {
    let (_dir, store) = directory();
    // Created by another process, which may have died before it synced them.
    std::fs::create_dir_all(store.root.join("blobs/ab")).unwrap();
    store.put(&Path::from("blobs/ab/x"), "1".into()).await.unwrap();
    let known = |name: &str| store.durable.lock().contains(&store.root.join(name));
    assert!(known("blobs") && known("blobs/ab") && !known("blobs/ab/x") && !known(""));
    // An existing object makes its directories durable, too, on request.
    let again = LocalDirectory::open(&store.root).unwrap();
    let mut options = GetOptions::new().with_head(true);
    again.get_opts(&Path::from("blobs/ab/x"), options.clone()).await.unwrap();
    assert!(again.durable.lock().is_empty());
    options.extensions.insert(Settle);
    again.get_opts(&Path::from("blobs/ab/x"), options).await.unwrap();
    assert_eq!(again.durable.lock().len(), 2);
}

async fn update(store: &LocalDirectory, at: &Path, bytes: &str, tag: Option<String>) -> Result<()> {
    let mode = PutMode::Update(UpdateVersion { e_tag: tag, version: None });
    store.put_opts(at, bytes.to_owned().into(), mode.into()).await.map(drop)
}

#[tokio::test]
async fn a_replacement_with_equal_inode_time_and_size_is_noticed() {
    let (_dir, store) = directory();
    let at = Path::from("names/one");
    store.put(&at, "first".into()).await.unwrap();
    let tag = store.head(&at).await.unwrap().e_tag;
    assert_eq!(ObjectStoreExt::get(&store, &at).await.unwrap().meta.e_tag, tag);
    let file = std::fs::OpenOptions::new().write(true).open(store.root.join("names/one")).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    // As if two replacements within one tick of the clock had reused the inode.
    file.write_all_at(b"other", 0).unwrap();
    file.set_modified(modified).unwrap();
    let lost = update(&store, &at, "third", tag).await.unwrap_err();
    assert!(matches!(lost, Error::Precondition { .. }), "{lost}");
    let tag = store.head(&at).await.unwrap().e_tag;
    update(&store, &at, "third", tag).await.unwrap();
}

#[tokio::test]
async fn writes_and_deletions_wait_while_an_object_is_replaced() {
    let (_dir, store) = directory();
    let at = Path::from("names/one");
    store.put(&at, "first".into()).await.unwrap();
    // Held by another process between its check and its write.
    let lock = File::open(store.root.as_path()).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let read = || std::fs::read(store.root.join("names/one"));
    let waiting = Duration::from_millis(100);
    let (put, deletion) = (store.put(&at, "second".into()), store.delete(&at));
    tokio::pin!(put, deletion);
    tokio::time::timeout(waiting, &mut put).await.unwrap_err();
    tokio::time::timeout(waiting, &mut deletion).await.unwrap_err();
    assert_eq!(read().unwrap(), b"first");
    drop(lock);
    tokio::time::timeout(LIMIT, put).await.unwrap().unwrap();
    // Either order is right.
    let _ = tokio::time::timeout(LIMIT, deletion).await.unwrap();
    store.put(&at, "third".into()).await.unwrap();
    store.delete(&at).await.unwrap();
    assert_eq!(read().unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_store_in_the_place_of_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(LocalDirectory::open(&file).is_err());
    assert!(LocalDirectory::open(&file.join("below")).is_err());
}
