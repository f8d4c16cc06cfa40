//! Tests of profiles in a store: conformance of every kind of store, and faults.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use inlay_testkit::faulty_store::{Fault, FaultyStore, Operation as On, Times, What};
use object_store::memory::InMemory;

use super::records::tests::id;
use super::*;
use crate::format::GroupIdx;
use crate::profile::{Profile, ProfileError, ProfileLabel, Run, Touch, UnitSet};

fn label(text: &str) -> ProfileLabel {
    text.parse().unwrap()
}

fn run(groups: &[u32]) -> Run {
    Run::in_order(groups.iter().copied().map(GroupIdx))
}

fn order(profile: &Profile) -> Vec<u32> {
    profile.groups().map(|group| group.0).collect()
}

fn key(label: &ProfileLabel) -> ObjectKey {
    ObjectKey::Profile { snapshot: id(1), label: label.clone() }
}

/// Checks that every writable store must pass.
pub(super) async fn check_profiles(remote: &Remote) {
    let (default, other) = (ProfileLabel::default(), label("python3"));
    assert_eq!(remote.profile(&id(1), &default).await.unwrap(), None);
    assert_eq!(remote.profiles(&id(1)).await.unwrap(), []);
    let nothing = remote.merge_profile(&id(1), &default, &Run::new()).await.unwrap();
    assert!(nothing.entries().is_empty());
    assert_eq!(remote.profile(&id(1), &default).await.unwrap(), None, "nothing was to be said");

    let merged = remote.merge_profile(&id(1), &default, &run(&[3, 1, 2])).await.unwrap();
    assert_eq!(remote.profile(&id(1), &default).await.unwrap(), Some(merged));
    let merged = remote.merge_profile(&id(1), &default, &run(&[3, 1, 4])).await.unwrap();
    assert_eq!((merged.runs(), order(&merged)), (2, vec![3, 1, 2, 4]));
    assert_eq!(remote.profile(&id(1), &default).await.unwrap(), Some(merged));

    let own = Profile::of_run(id(1), other.clone(), &run(&[7]));
    remote.put_profile(&own).await.unwrap();
    let elsewhere = Profile::of_run(id(2), default.clone(), &run(&[8]));
    remote.put_profile(&elsewhere).await.unwrap();
    assert_eq!(remote.profile(&id(1), &other).await.unwrap(), Some(own));
    assert_eq!(remote.profiles(&id(1)).await.unwrap(), [default.clone(), other.clone()]);
    assert_eq!(remote.profiles(&id(2)).await.unwrap(), std::slice::from_ref(&default));
    for _ in 0..2 {
        remote.remove_profile(&id(1), &default).await.unwrap();
        assert_eq!(remote.profiles(&id(1)).await.unwrap(), std::slice::from_ref(&other));
    }
    remote.remove_profile(&id(1), &other).await.unwrap();
    remote.remove_profile(&id(2), &default).await.unwrap();
    assert_eq!(remote.profiles(&id(1)).await.unwrap(), []);
    check_races(remote).await;
}

/// Concurrent merges: no run is lost.
async fn check_races(remote: &Remote) {
    let contended = label("contended");
    let racers = (0..8).map(|group| {
        let (remote, contended) = (remote.clone(), contended.clone());
        async move { remote.merge_profile(&id(1), &contended, &run(&[100, group])).await }
    });
    futures::future::try_join_all(racers).await.unwrap();
    let merged = remote.profile(&id(1), &contended).await.unwrap().unwrap();
    assert_eq!(merged.runs(), 8);
    let seen = |group: u32| {
        let entry = merged.entries().iter().find(|entry| entry.group.0 == group);
        entry.map_or(0, |entry| entry.seen.count())
    };
    assert_eq!(seen(100), 8);
    assert_eq!((0..8).map(seen).collect::<Vec<_>>(), [1; 8]);
    remote.remove_profile(&id(1), &contended).await.unwrap();
}

/// Checks that writes to a read-only store fail.
pub(super) async fn check_read_only(remote: &Remote) {
    let default = ProfileLabel::default();
    let profile = Profile::of_run(id(1), default.clone(), &run(&[1]));
    assert_eq!(remote.profile(&id(1), &default).await.unwrap(), None);
    for error in [
        remote.merge_profile(&id(1), &default, &run(&[1])).await.unwrap_err(),
        remote.put_profile(&profile).await.unwrap_err(),
        remote.remove_profile(&id(1), &default).await.unwrap_err(),
    ] {
        assert!(matches!(&error, StoreError::ReadOnly { .. }), "{error}");
    }
}

fn faulty() -> (Arc<FaultyStore>, Remote) {
    let store = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), Vec::new()));
    let policy = RetryPolicy { attempts_max: 4, ..RetryPolicy::default() };
    let remote = Remote::from_object_store(store.clone(), "faulty:".to_owned(), policy);
    (store, remote)
}

fn fault(on: On, times: Times, what: What) -> Fault {
    Fault { on, key: String::new(), times, what }
}

#[tokio::test]
async fn a_profile_is_read_with_one_request() {
    let (store, remote) = faulty();
    let default = ProfileLabel::default();
    let before = store.requests();
    assert_eq!(remote.profile(&id(1), &default).await.unwrap(), None);
    assert_eq!(store.requests() - before, 1);
    remote.merge_profile(&id(1), &default, &run(&[1])).await.unwrap();
    let before = store.requests();
    assert!(remote.profile(&id(1), &default).await.unwrap().is_some());
    assert_eq!(store.requests() - before, 1);
}

#[tokio::test]
async fn a_damaged_profile_is_an_error_of_its_own_and_is_begun_anew() {
    let (_, remote) = faulty();
    let default = ProfileLabel::default();
    let mut bytes = Profile::of_run(id(1), default.clone(), &run(&[1, 2])).encode();
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    let others = Profile::of_run(id(2), default.clone(), &run(&[9])).encode();
    let mislabelled = Profile::of_run(id(1), label("other"), &run(&[9])).encode();
    for damage in [vec![], b"{}".to_vec(), bytes, others, mislabelled, vec![0; 2 << 20]] {
        remote.put(&key(&default), Bytes::from(damage)).await.unwrap();
        let error = remote.profile(&id(1), &default).await.unwrap_err();
        assert!(matches!(&error, StoreError::Profile { .. }), "{error}");
        assert!(error.to_string().contains("default.profile"), "{error}");
        let merged = remote.merge_profile(&id(1), &default, &run(&[5])).await.unwrap();
        assert_eq!((merged.runs(), order(&merged)), (1, vec![5]));
        assert_eq!(remote.profile(&id(1), &default).await.unwrap(), Some(merged));
    }
}

#[tokio::test]
async fn a_profile_of_a_newer_inlay_is_left() {
    let (_, remote) = faulty();
    let default = ProfileLabel::default();
    let mut bytes = Profile::of_run(id(1), default.clone(), &run(&[1])).encode();
    bytes[8] = 3;
    remote.put(&key(&default), Bytes::from(bytes.clone())).await.unwrap();
    let error = remote.merge_profile(&id(1), &default, &run(&[5])).await.unwrap_err();
    let reason = ProfileError::Version { found: 3 };
    assert!(matches!(&error, StoreError::Profile { reason: r, .. } if *r == reason), "{error}");
    assert_eq!(remote.get(&key(&default), 1 << 20).await.unwrap(), bytes);
}

#[tokio::test(start_paused = true)]
async fn a_run_is_merged_once_though_the_answer_was_lost() {
    let (store, remote) = faulty();
    let default = ProfileLabel::default();
    for runs in 1..4 {
        store.set_faults(vec![fault(On::Put, Times::Nth(1), What::LostAnswer)]);
        let merged = remote.merge_profile(&id(1), &default, &run(&[1, 2])).await.unwrap();
        assert_eq!(merged.runs(), runs);
        assert_eq!(remote.profile(&id(1), &default).await.unwrap(), Some(merged));
    }
}

#[tokio::test(start_paused = true)]
async fn a_profile_that_others_keep_changing_is_given_up() {
    let (store, remote) = faulty();
    store.set_faults(vec![fault(On::Put, Times::Always, What::Status(412))]);
    let default = ProfileLabel::default();
    let error = remote.merge_profile(&id(1), &default, &run(&[1])).await.unwrap_err();
    assert!(matches!(&error, StoreError::Contended { .. }), "{error}");
    assert!(error.to_string().contains("default.profile"), "{error}");
    assert!(store.requests() < 100);
}

#[tokio::test(start_paused = true)]
async fn a_run_is_merged_where_nothing_is_conditional() {
    let (store, remote) = faulty();
    let default = ProfileLabel::default();
    remote.merge_profile(&id(1), &default, &run(&[1])).await.unwrap();
    store.set_faults(vec![fault(On::Put, Times::Nth(1), What::Status(501))]);
    let touch = Touch { group: GroupIdx(2), units: UnitSet::ALL, at: Duration::ZERO };
    let merged = remote.merge_profile(&id(1), &default, &[touch].into_iter().collect()).await;
    assert_eq!(merged.unwrap().runs(), 2);
    assert_eq!(remote.profile(&id(1), &default).await.unwrap().unwrap().runs(), 2);
}
