//! Tests of adopted slots, without a kernel that uses them.

use std::fs;
use std::thread::{self, sleep};

use inlay_base::boot::LastServed;
use inlay_fusefs::keeper::KeptSlot;
use inlay_fusefs::{ConnectionKind, Restored};
use inlay_snapshots::keep_empty;
use parking_lot::MutexGuard;
use tokio::runtime::Runtime;

use super::*;
use crate::daemon::api::Prefetch;
use crate::daemon::testing;

const SLOT: u32 = 5;
/// Often enough to hit a window of a few instructions.
const ROUNDS: u32 = 300;

struct Fixture {
    dir: tempfile::TempDir,
    runtime: Runtime,
    snapshots: Snapshots,
}

impl Fixture {
    fn new() -> Self {
        let (dir, runtime) = (tempfile::tempdir().unwrap(), Runtime::new().unwrap());
        let snapshots = testing::snapshots(dir.path(), runtime.handle());
        keep_empty(snapshots.state()).unwrap();
        Self { dir, runtime, snapshots }
    }

    fn restore(&self) -> (Vec<Restored>, Uses) {
        let slot = Slot::new(SLOT).unwrap();
        let kept = KeptSlot { slot, kind: ConnectionKind::General, detached: true };
        self.snapshots.restore(&[kept], LastServed::ThisBoot).unwrap()
    }
}

fn key() -> AttachKey {
    AttachKey {
        snapshot: inlay_snapshots::empty_id(),
        store: StoreRef { url: None, plain_http: false },
        cache: CacheUse::Kept,
        part: Part::Whole,
        alias: None,
    }
}

fn load() -> LoadOptions {
    LoadOptions { prefetch: Prefetch::Off, ..LoadOptions::default() }
}

#[test]
fn a_slot_that_is_detached_while_it_is_opened_leaves_its_tracking() {
    let of = Fixture::new();
    let (inner, slot) = (&of.snapshots.inner, Slot::new(SLOT).unwrap());
    for _ in 0..ROUNDS {
        let serving = Serving { key: Some(key()), open: None, ending: None };
        inner.serving.lock().insert(SLOT, serving);
        let opener = inner.opener(slot, key(), load());
        thread::scope(|scope| {
            // Both queue for the lock, the opener first.
            let held = inner.serving.lock();
            let opened = scope.spawn(move || opener().map(drop).map_err(|error| error.to_string()));
            sleep(Duration::from_millis(2));
            scope.spawn(|| SnapshotsInner::detach(inner, slot));
            sleep(Duration::from_millis(1));
            MutexGuard::unlock_fair(held);
            assert_eq!(opened.join().unwrap(), Ok(()));
        });
        let serving = inner.serving.lock().remove(&SLOT).unwrap();
        assert!(serving.ending.is_some());
        assert!(serving.open.unwrap().tracking.is_left());
    }
}

#[test]
fn a_slot_with_a_damaged_file_counts_until_the_kernel_has_forgotten_it() {
    let of = Fixture::new();
    let inner = &of.snapshots.inner;
    let file = of.dir.path().join("attached").join(format!("{SLOT}.json"));
    fs::write(&file, "{").unwrap();
    let (restored, uses) = of.restore();
    assert_eq!((restored.len(), of.snapshots.count()), (1, 1));
    // No mount uses it; programs may still have files open.
    drop(uses);
    assert_eq!(of.snapshots.count(), 1);
    assert!(of.snapshots.sweep().is_some(), "it is probed");
    assert!((restored[0].opener)().is_err());
    assert!(of.snapshots.list().is_empty() && of.snapshots.damaged().len() == 1);
    // Repaired: it is read again, and not prefetched.
    inner.files.add(SLOT, &key(), &load()).unwrap();
    (restored[0].opener)().unwrap();
    assert_eq!(of.snapshots.list().len(), 1);
    let tracking = Arc::clone(&inner.serving.lock()[&SLOT].open.as_ref().unwrap().tracking);
    assert!(tracking.is_left());
    SnapshotsInner::forget(inner, Slot::new(SLOT).unwrap());
    assert!(of.snapshots.count() == 0 && !file.exists());
    drop(of.runtime);
}
