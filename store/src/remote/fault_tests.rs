//! Injects every kind of fault: a read returns the right bytes in the end, or an error that names
//! the object.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use inlay_testkit::faulty_store::{Fault, FaultyStore, Operation as On, Times, What};
use object_store::memory::InMemory;
use tokio::time::Instant;

use super::records::tests::{id, name_record, record};
use super::*;
use crate::ids::{BlobId, Digest};

const LEN: usize = 10_000;

/// All transient faults.
const PASSING: [What; 10] = [
    What::Status(429),
    What::Status(500),
    What::Status(503),
    What::Stall,
    What::ConnectionReset,
    What::LostAnswer,
    What::CutBody(0),
    What::ShortBody(9_999),
    What::StallBody(5_000),
    What::LongBody(1),
];

fn content() -> Bytes {
    (0..10_000u32).map(|n| (n % 241) as u8).collect()
}

fn key() -> ObjectKey {
    ObjectKey::Blob(BlobId(Digest::of(&content())))
}

fn fault(on: On, times: Times, what: What) -> Fault {
    Fault { on, key: String::new(), times, what }
}

async fn faulty() -> (Arc<FaultyStore>, Remote) {
    let store = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Vec::new()));
    let policy = RetryPolicy { attempts_max: 4, ..RetryPolicy::default() };
    let remote = Remote::from_object_store(store.clone(), "faulty:".to_owned(), policy);
    remote.put_immutable(&key(), content()).await.unwrap();
    for number in [1, 2, 3] {
        remote.put_snapshot(&record(number)).await.unwrap();
    }
    remote.set_name(&name_record("base", 1)).await.unwrap();
    (store, remote)
}

#[tokio::test(start_paused = true)]
async fn reads_outlast_faults_that_pass() {
    let (store, remote) = faulty().await;
    let budget = remote.policy().budget();
    for what in PASSING {
        for count in 1..=3 {
            store.set_faults(vec![fault(On::Get, Times::First(count), what)]);
            assert_eq!(remote.get(&key(), 1 << 20).await.unwrap(), content(), "{what:?}");
            store.set_faults(vec![fault(On::Get, Times::First(count), what)]);
            let whole = 0..LEN as u64;
            assert_eq!(
                remote.get_range(&key(), whole, budget).await.unwrap(),
                content(),
                "{what:?}"
            );
            store.set_faults(vec![fault(On::Get, Times::First(count), what)]);
            // For this range, the faults in the body fall elsewhere, so some have no effect.
            let part = remote.get_range(&key(), 100..9_000, budget).await.unwrap();
            assert_eq!(part, content().slice(100..9_000), "{what:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn faults_that_stay_end_in_an_error_within_the_deadline() {
    let (store, remote) = faulty().await;
    let budget = RetryBudget { total: Duration::from_secs(30), attempts_max: 100 };
    for what in PASSING {
        store.set_faults(vec![fault(On::Get, Times::Always, what)]);
        let begin = Instant::now();
        let error = remote.get_range(&key(), 0..LEN as u64, budget).await.unwrap_err();
        assert!(begin.elapsed() <= budget.total, "{what:?} {:?}", begin.elapsed());
        assert!(matches!(&error, StoreError::Failed { attempts: 2.., .. }), "{what:?} {error}");
        assert!(error.to_string().contains(&remote.object_name(&key())), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_wrong_are_still_as_many_as_asked_for() {
    let (store, remote) = faulty().await;
    let budget = remote.policy().budget();
    for what in [What::FlipByte(77), What::WrongBytes] {
        store.set_faults(vec![fault(On::Get, Times::Always, what)]);
        let got = remote.get_range(&key(), 0..LEN as u64, budget).await.unwrap();
        assert_eq!(got.len(), LEN);
        assert_ne!(got, content());
    }
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_are_not_retried() {
    let (store, remote) = faulty().await;
    for status in [401, 403, 404, 501] {
        store.set_faults(vec![fault(On::Get, Times::Always, What::Status(status))]);
        let before = store.requests();
        let error = remote.get(&key(), 1 << 20).await.unwrap_err();
        assert_eq!(store.requests() - before, 1, "{status}");
        assert_eq!(error.is_not_found(), status == 404);
        assert!(error.to_string().contains(&remote.object_name(&key())), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn writes_outlast_faults_that_pass() {
    let (store, remote) = faulty().await;
    for (number, what) in (0u8..).zip(PASSING) {
        let bytes = Bytes::from(vec![number; 3]);
        let key = ObjectKey::Blob(BlobId(Digest::of(&bytes)));
        store.set_faults(vec![
            fault(On::Head, Times::First(2), what),
            fault(On::Put, Times::First(2), what),
        ]);
        let outcome = remote.put_immutable(&key, bytes.clone()).await.unwrap();
        assert_eq!(outcome, PutOutcome::Written, "{what:?}");
        store.set_faults(Vec::new());
        assert_eq!(remote.get(&key, 3).await.unwrap(), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_says_so() {
    let (store, remote) = faulty().await;
    store.set_faults(vec![fault(On::Put, Times::Always, What::Status(503))]);
    let bytes = Bytes::from_static(b"new");
    let key = ObjectKey::Blob(BlobId(Digest::of(&bytes)));
    let error = remote.put_immutable(&key, bytes).await.unwrap_err();
    assert!(matches!(&error, StoreError::Failed { operation: Operation::Put, attempts: 4, .. }));
    assert!(error.to_string().contains(&remote.object_name(&key)), "{error}");
    let error = remote.put_snapshot(&record(9)).await.unwrap_err();
    assert!(error.to_string().contains(&id(9).to_string()), "{error}");
}

#[tokio::test]
async fn an_object_of_another_length_is_written_again() {
    let inner = Arc::new(InMemory::new());
    let remote = Remote::from_object_store(inner, "m:".to_owned(), RetryPolicy::default());
    remote.put(&key(), Bytes::from_static(b"half")).await.unwrap();
    let outcome = remote.put_immutable(&key(), content()).await.unwrap();
    assert_eq!(outcome, PutOutcome::Repaired);
    assert_eq!(remote.get(&key(), 1 << 20).await.unwrap(), content());
}

#[tokio::test(start_paused = true)]
async fn lists_outlast_faults_that_pass() {
    let (store, remote) = faulty().await;
    for what in [
        What::Status(500),
        What::Stall,
        What::ConnectionReset,
        What::CutBody(1),
        What::StallBody(2),
    ] {
        store.set_faults(vec![fault(On::List, Times::First(3), what)]);
        assert_eq!(remote.snapshot_ids().await.unwrap().len(), 3, "{what:?}");
        store.set_faults(vec![fault(On::List, Times::Always, what)]);
        let error = remote.snapshot_ids().await.unwrap_err();
        assert!(error.to_string().contains("faulty:/snapshots"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_record_does_not_hide_the_others() {
    let (store, remote) = faulty().await;
    let on_second = |what| Fault { key: id(2).to_string(), ..fault(On::Get, Times::Always, what) };
    store.set_faults(vec![on_second(What::FlipByte(3))]);
    let records: Vec<_> = remote.snapshots().await.unwrap().collect().await;
    assert_eq!(records.iter().filter(|(_, record)| record.is_ok()).count(), 2);
    let error = records.into_iter().find_map(|(_, record)| record.err()).unwrap();
    assert!(error.to_string().contains(&id(2).to_string()), "{error}");
    // A record deleted between the listing and the read is not an error.
    store.set_faults(vec![on_second(What::Status(404))]);
    let records: Vec<_> = remote.snapshots().await.unwrap().collect().await;
    assert_eq!(records.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_set_once_though_the_answer_was_lost() {
    let (store, remote) = faulty().await;
    store.set_faults(vec![fault(On::Put, Times::Nth(1), What::LostAnswer)]);
    let before = remote.set_name(&name_record("base", 2)).await.unwrap();
    assert_eq!(before, Some(id(1)));
    assert_eq!(remote.name(&"base".parse().unwrap()).await.unwrap().unwrap().id, id(2));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_others_keep_changing_is_given_up() {
    let (store, remote) = faulty().await;
    store.set_faults(vec![fault(On::Put, Times::Always, What::Status(412))]);
    let error = remote.set_name(&name_record("base", 2)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Contended { .. }), "{error}");
    assert!(store.requests() < 100);
}

#[tokio::test(start_paused = true)]
async fn a_name_is_set_where_nothing_is_conditional() {
    let (store, remote) = faulty().await;
    store.set_faults(vec![fault(On::Put, Times::Nth(1), What::Status(501))]);
    assert_eq!(remote.set_name(&name_record("base", 2)).await.unwrap(), Some(id(1)));
    assert_eq!(remote.name(&"base".parse().unwrap()).await.unwrap().unwrap().id, id(2));
}

#[tokio::test(start_paused = true)]
async fn a_name_with_a_damaged_record_can_be_set_again() {
    let (_, remote) = faulty().await;
    let key = ObjectKey::Name("base".parse().unwrap());
    for damage in [Bytes::from_static(b"{"), Bytes::from(vec![b'x'; 70_000])] {
        remote.put(&key, damage).await.unwrap();
        let error = remote.name(&"base".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("names/base.json"), "{error}");
        remote.set_name(&name_record("base", 2)).await.unwrap();
        assert_eq!(remote.name(&"base".parse().unwrap()).await.unwrap().unwrap().id, id(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_is_given_up_in_time_however_long_an_object_may_be() {
    let store = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Vec::new()));
    let policy = RetryPolicy { attempts_max: 100, ..RetryPolicy::default() };
    let remote = Remote::from_object_store(store.clone(), "faulty:".to_owned(), policy);
    remote.put_immutable(&key(), content()).await.unwrap();
    for what in [What::Stall, What::StallBody(5_000)] {
        store.set_faults(vec![fault(On::Get, Times::Always, what)]);
        let began = Instant::now();
        remote.get(&key(), 1 << 40).await.unwrap_err();
        assert!(began.elapsed() < policy.total * 2, "{what:?}: {:?}", began.elapsed());
    }
}
