//! Tests uploads of single snapshots from one directory to another.

use std::fs;

use inlay_store::ids::Kind;
use inlay_store::pack::PackOptions;
use inlay_store::remote::Existing;

use super::*;
use crate::host::Host;
use crate::{CreateOptions, Parent, create};
use inlay_images::import::{ImportOptions, NoProgress, Source};

struct Fixture {
    dir: tempfile::TempDir,
    host: Host,
    far: Remote,
    waiting: Waiting,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outbox_dir = dir.path().join("near");
        let state = State::open(&dir.path().join("state")).unwrap();
        let host = Host::open(state, &StoreConfig::new(outbox_dir.display().to_string())).unwrap();
        let guard = host.handle().enter();
        let far = dir.path().join("far").display().to_string();
        let far = Remote::open(&StoreConfig::new(far)).unwrap();
        let waiting = Waiting::open(&outbox_dir).unwrap();
        drop(guard);
        Self { dir, host, far, waiting }
    }

    fn create(&self) -> SnapshotId {
        let source = self.dir.path().join("source");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("file"), "contents".repeat(10_000)).unwrap();
        let options = CreateOptions {
            existing: Existing::Compared,
            kind: Kind::Directory,
            name: None,
            parent: Parent::None,
            dedup: Vec::new(),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            import: ImportOptions::default(),
            pack: PackOptions::default(),
        };
        create(&self.host, &Source::Dir(source), &options, &NoProgress).unwrap().record.id
    }

    fn ship(&self, id: SnapshotId) -> Result<Shipped, ShipError> {
        self.host.wait(self.waiting.ship(id, &self.far, self.host.state()))
    }

    fn keys(&self, id: SnapshotId) -> (ObjectKey, ObjectKey, ObjectKey) {
        let index = self.host.wait(open_index(self.host.remote(), self.host.state(), id)).unwrap();
        let blob = ObjectKey::Blob(index.blob(BlobIdx(0)).unwrap().id);
        (blob, ObjectKey::Index(id.index), ObjectKey::Record(id))
    }
}

#[test]
fn everything_is_shipped_once() {
    let of = Fixture::new();
    let id = of.create();
    let (blob, index, record) = of.keys(id);
    let shipped = Shipped::Now(vec![blob.clone(), index.clone()]);
    assert_eq!(of.ship(id).unwrap(), shipped);
    assert_eq!(of.ship(id).unwrap(), shipped, "again after a crash");
    let (outbox_dir, far) = (of.dir.path().join("near"), of.dir.path().join("far"));
    for key in [&blob, &index, &record] {
        assert_eq!(fs::read(key.file(&outbox_dir)).unwrap(), fs::read(key.file(&far)).unwrap());
    }
    // A record without index extends a snapshot in the store.
    for key in [&blob, &index] {
        fs::remove_file(key.file(&outbox_dir)).unwrap();
    }
    assert_eq!(of.ship(id).unwrap(), Shipped::Now(Vec::new()));
    fs::remove_file(record.file(&outbox_dir)).unwrap();
    assert_eq!(of.ship(id).unwrap(), Shipped::Before);
    fs::remove_file(record.file(&far)).unwrap();
    assert!(matches!(of.ship(id), Err(ShipError::Here(_))));
}

#[test]
fn damaged_objects_are_not_shipped() {
    let of = Fixture::new();
    let id = of.create();
    let (blob, index, record) = of.keys(id);
    let outbox_dir = of.dir.path().join("near");
    for key in [blob, index.clone(), record] {
        let path = key.file(&outbox_dir);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x80;
        for bytes in [&flipped[..], &whole[..whole.len() - 1]] {
            fs::write(&path, bytes).unwrap();
            let error = of.ship(id).unwrap_err();
            assert!(matches!(error, ShipError::Here(_)), "{error}");
            let found = of.host.wait(of.far.stored_snapshot(&id)).unwrap();
            assert_eq!(found, None, "{}", path.display());
        }
        fs::write(&path, whole).unwrap();
    }
    // Without its index, the snapshot must already be in the store.
    let path = index.file(&outbox_dir);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(of.ship(id), Err(ShipError::Here(_))));
    let longer = [&bytes[..], b"x"].concat();
    fs::write(&path, longer).unwrap();
    assert!(matches!(of.ship(id), Err(ShipError::Here(_))));
    fs::write(&path, bytes).unwrap();
    of.ship(id).unwrap();
}

#[test]
fn failures_of_the_store_are_told_apart() {
    let of = Fixture::new();
    let id = of.create();
    let far = of.dir.path().join("far");
    fs::remove_dir_all(&far).unwrap();
    fs::write(&far, "no directory").unwrap();
    assert!(matches!(of.ship(id), Err(ShipError::Store(_))));
}

#[test]
fn tables_of_shipped_blobs_are_kept_locally() {
    let of = Fixture::new();
    let id = of.create();
    of.ship(id).unwrap();
    let index = of.host.wait(open_index(of.host.remote(), of.host.state(), id)).unwrap();
    let blob = index.blob(BlobIdx(0)).unwrap();
    let table = tables::read(of.host.state(), blob.toc_digest).unwrap();
    inlay_store::pack::read_toc(&table, blob.toc_offset, blob.toc_digest).unwrap();
}
