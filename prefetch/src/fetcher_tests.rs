//! Tests the fetcher against a store that stalls, fails and corrupts on command.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use inlay_store::cache::{Cache, CacheOptions};
use tokio::runtime::Handle;
use tokio::task::yield_now;

use crate::doubles::{Blob, Double, Fault, SharedStore};
use crate::{Class, FetchError, FetchLimits, FetchStats, Fetcher, GroupRef};

fn fetcher(double: Double, cache: Option<Cache>, limits: FetchLimits) -> (Fetcher, Arc<Double>) {
    let double = Arc::new(double);
    let source = Box::new(SharedStore(Arc::clone(&double)));
    (Fetcher::with_source(source, cache, limits, Handle::current()), double)
}

fn plain(double: Double) -> (Fetcher, Arc<Double>) {
    fetcher(double, None, FetchLimits::default())
}

/// Yields to other tasks until `done` returns true.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        yield_now().await;
    }
}

async fn ends_clean(fetcher: &Fetcher) -> FetchStats {
    fetcher.shutdown().await;
    let stats = fetcher.stats();
    let gauges = (stats.waiting, stats.tasks, stats.flights, stats.buffer_bytes);
    assert_eq!(gauges, (0, 0, 0, 0));
    stats
}

#[tokio::test]
async fn a_thousand_readers_make_one_request() {
    let blob = Blob::new(1, 1, 50_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).gated(Class::Demand));
    let reads = (0..1000).map(|_| fetcher.group(&blob.wants[0]));
    let mut reads = Box::pin(join_all(reads));
    assert!(reads.as_mut().now_or_never().is_none());
    assert_eq!(fetcher.stats().waiting, 1000);
    double.open(Class::Demand, 1000);
    for read in reads.await {
        assert_eq!(read.unwrap(), blob.raw[0]);
    }
    assert_eq!(double.seen().len(), 1);
    assert_eq!(ends_clean(&fetcher).await.joined, 999);
}

#[tokio::test]
async fn neighbours_that_are_wanted_together_come_together() {
    let blob = Blob::new(1, 8, 50_000);
    let (fetcher, double) = plain(Double::new(&[&blob]));
    let order = [3, 4, 5, 7, 0];
    let wants: Vec<GroupRef> = order.map(|place| blob.wants[place]).to_vec();
    let groups = fetcher.groups(&wants).await.unwrap();
    assert!(groups.iter().zip(order).all(|(group, place)| *group == blob.raw[place]));
    let ranges: Vec<_> = double.seen().into_iter().map(|seen| seen.range).collect();
    let range = |from: usize, to: usize| blob.wants[from].group.offset..blob.wants[to].end();
    assert_eq!(ranges, [range(3, 5), range(7, 7), range(0, 0)]);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn a_request_is_no_longer_than_it_may_be() {
    let blob = Blob::new(1, 20, 50_000);
    let limits = FetchLimits { request_bytes: 120_000, ..FetchLimits::default() };
    let (fetcher, double) = fetcher(Double::new(&[&blob]), None, limits);
    fetcher.groups(&blob.wants).await.unwrap();
    let seen = double.seen();
    assert_eq!(seen.len(), 10);
    assert!(seen.iter().all(|seen| seen.range.end - seen.range.start <= 120_000));
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn demand_does_not_wait_behind_read_ahead() {
    let blob = Blob::new(1, 64, 10_000);
    let limits = FetchLimits { request_bytes: 1, ahead_requests: 2, ..FetchLimits::default() };
    let double = Double::new(&[&blob]).gated(Class::ReadAhead);
    let (fetcher, double) = fetcher(double, None, limits);
    fetcher.read_ahead(blob.wants.clone());
    until(|| double.seen().len() == 2).await;
    // Read-ahead is stuck. A group it has queued is promoted; a group it has dropped or never seen
    // is fetched, too.
    assert_eq!(fetcher.group(&blob.wants[63]).await.unwrap(), blob.raw[63]);
    assert_eq!(fetcher.group(&blob.wants[40]).await.unwrap(), blob.raw[40]);
    let demand: Vec<_> = double.seen().into_iter().skip(2).map(|seen| seen.class).collect();
    assert_eq!(demand, [Class::Demand, Class::Demand]);
    assert_eq!(fetcher.stats().promoted, 2);
    // A group that read-ahead has in flight is joined.
    let mut first = Box::pin(fetcher.group(&blob.wants[0]));
    assert!(first.as_mut().now_or_never().is_none());
    double.open(Class::ReadAhead, 1000);
    assert_eq!(first.await.unwrap(), blob.raw[0]);
    until(|| fetcher.stats().flights == 0).await;
    assert_eq!(double.seen().len(), 64, "each group is fetched once");
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn too_many_hints_are_dropped() {
    let blob = Blob::new(1, 64, 1000);
    let limits = FetchLimits {
        read_ahead_queue: 8,
        ahead_requests: 1,
        request_bytes: 1,
        ..FetchLimits::default()
    };
    let double = Double::new(&[&blob]).gated(Class::ReadAhead);
    let (fetcher, double) = fetcher(double, None, limits);
    fetcher.read_ahead(blob.wants.clone());
    assert_eq!(fetcher.stats().hints_dropped, 56);
    double.open(Class::ReadAhead, 1000);
    until(|| fetcher.stats().flights == 0).await;
    assert_eq!(double.seen().len(), 8);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn a_reader_that_goes_away_takes_nothing_from_others() {
    let blob = Blob::new(1, 2, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).gated(Class::Demand));
    let mut first = Box::pin(fetcher.group(&blob.wants[0]));
    assert!(first.as_mut().now_or_never().is_none());
    let mut second = Box::pin(fetcher.group(&blob.wants[0]));
    assert!(second.as_mut().now_or_never().is_none());
    until(|| double.seen().len() == 1).await;
    drop(first);
    yield_now().await;
    double.open(Class::Demand, 1);
    assert_eq!(second.await.unwrap(), blob.raw[0]);
    assert_eq!(*double.cut.lock(), 0);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn an_abandoned_fetch_is_cancelled_and_can_be_repeated() {
    let blob = Blob::new(1, 2, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).gated(Class::Demand));
    let mut read = Box::pin(fetcher.group(&blob.wants[0]));
    assert!(read.as_mut().now_or_never().is_none());
    until(|| double.seen().len() == 1).await;
    drop(read);
    until(|| fetcher.stats().tasks == 0).await;
    assert_eq!(*double.cut.lock(), 1);
    assert_eq!(fetcher.stats().flights, 0);
    double.open(Class::Demand, 1);
    assert_eq!(fetcher.group(&blob.wants[0]).await.unwrap(), blob.raw[0]);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more() {
    let blob = Blob::new(1, 3, 10_000);
    let fault = |number| if number == 0 { Fault::Lies } else { Fault::None };
    let (fetcher, double) = plain(Double::new(&[&blob]).faulty(fault));
    let groups = fetcher.groups(&blob.wants).await.unwrap();
    assert_eq!(groups, blob.raw);
    // All three in one request, then the first, which was corrupt, alone.
    assert_eq!(double.seen().len(), 2);
    assert_eq!(ends_clean(&fetcher).await.corrupt, 1);
}

#[tokio::test]
async fn wrong_bytes_twice_are_an_error_that_names_the_blob() {
    let blob = Blob::new(1, 3, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).faulty(|_| Fault::Lies));
    let error = fetcher.group(&blob.wants[1]).await.unwrap_err();
    let FetchError::Corrupt { blob: id, offset, attempts, .. } = &error else { panic!("{error}") };
    assert_eq!((*id, *offset, *attempts), (blob.id, blob.wants[1].group.offset, 2));
    assert!(error.to_string().contains(&blob.id.to_string()));
    assert_eq!(double.seen().len(), 2);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn a_panic_in_the_decoder_is_an_error_of_its_own_and_counted() {
    let blob = Blob::new(1, 3, 10_000);
    for class in [Class::Demand, Class::ReadAhead] {
        let double = Arc::new(Double::new(&[&blob]));
        let source = Box::new(SharedStore(Arc::clone(&double)));
        let limits = FetchLimits::default();
        let fetcher =
            Fetcher::decoding(source, None, limits, Handle::current(), |_, _| panic!("on purpose"));
        if class == Class::ReadAhead {
            fetcher.read_ahead(vec![blob.wants[1]]);
        } else {
            let error = fetcher.group(&blob.wants[1]).await.unwrap_err();
            let FetchError::Panicked { blob: id, offset } = &error else { panic!("{error}") };
            assert_eq!((*id, *offset), (blob.id, blob.wants[1].group.offset));
        }
        until(|| !double.seen().is_empty() && fetcher.stats().tasks == 0).await;
        assert_eq!(double.seen().len(), 1);
        let failed_readers = u64::from(class == Class::Demand);
        assert_eq!(ends_clean(&fetcher).await.failed, failed_readers);
    }
}

#[tokio::test]
async fn a_panic_in_the_store_is_an_error_of_its_own_and_counted() {
    let blob = Blob::new(1, 3, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).faulty(|_| Fault::Panics));
    let error = fetcher.group(&blob.wants[1]).await.unwrap_err();
    assert!(matches!(error, FetchError::Panicked { .. }), "{error}");
    assert_eq!(double.seen().len(), 1);
    let stats = ends_clean(&fetcher).await;
    assert!(stats.failed == 1 && stats.failed_requests.iter().sum::<u64>() == 1);
}

#[tokio::test]
async fn a_lying_index_does_not_affect_other_readers() {
    let blob = Blob::new(1, 3, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).gated(Class::Demand));
    // The digest of the first group, at the location of the second.
    let mut lie = blob.wants[1];
    lie.group.digest = blob.wants[0].group.digest;
    let mut liar = Box::pin(fetcher.group(&lie));
    assert!(liar.as_mut().now_or_never().is_none());
    let mut honest = Box::pin(fetcher.group(&blob.wants[0]));
    assert!(honest.as_mut().now_or_never().is_none());
    double.open(Class::Demand, 10);
    assert!(matches!(liar.await, Err(FetchError::Corrupt { .. })));
    assert_eq!(honest.await.unwrap(), blob.raw[0]);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn a_group_does_not_suffer_for_its_neighbour() {
    let blob = Blob::new(1, 3, 10_000);
    let mut beyond = blob.wants[2];
    beyond.group.offset = blob.wants[2].end();
    let (fetcher, _double) = plain(Double::new(&[&blob]));
    let both = [blob.wants[2], beyond];
    let (good, bad) = tokio::join!(fetcher.group(&both[0]), fetcher.groups(&both));
    assert_eq!(good.unwrap(), blob.raw[2]);
    assert!(matches!(bad, Err(FetchError::Store { .. })));
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn the_stores_error_reaches_all() {
    let blob = Blob::new(1, 1, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).faulty(|_| Fault::Missing));
    for read in join_all((0..10).map(|_| fetcher.group(&blob.wants[0]))).await {
        let Err(FetchError::Store { source, .. }) = read else { panic!("{read:?}") };
        assert!(source.is_not_found());
    }
    assert_eq!(double.seen().len(), 1);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn read_ahead_that_fails_is_tried_again_for_a_reader() {
    let blob = Blob::new(1, 4, 10_000);
    let fault = |number| if number == 0 { Fault::Fails } else { Fault::None };
    let double = Double::new(&[&blob]).faulty(fault).gated(Class::ReadAhead);
    let (fetcher, double) = plain(double);
    fetcher.read_ahead(blob.wants.clone());
    let mut read = Box::pin(fetcher.group(&blob.wants[1]));
    assert!(read.as_mut().now_or_never().is_none());
    double.open(Class::ReadAhead, 1);
    assert_eq!(read.await.unwrap(), blob.raw[1]);
    let classes: Vec<_> = double.seen().into_iter().map(|seen| seen.class).collect();
    assert_eq!(classes, [Class::ReadAhead, Class::Demand]);
    ends_clean(&fetcher).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stalls_ends_at_the_deadline() {
    let blob = Blob::new(1, 1, 10_000);
    let (fetcher, double) = plain(Double::new(&[&blob]).faulty(|_| Fault::Stalls));
    let before = tokio::time::Instant::now();
    let error = fetcher.group(&blob.wants[0]).await.unwrap_err();
    assert!(matches!(error, FetchError::Deadline { .. }), "{error}");
    let waited = before.elapsed();
    assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&waited), "{waited:?}");
    assert!(error.to_string().contains(&blob.id.to_string()));
    until(|| *double.cut.lock() == 1).await;
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn without_a_cache_memory_keeps_a_group_for_a_while() {
    let blob = Blob::new(1, 4, 10_000);
    let limits = FetchLimits { recent_bytes: 20_000, ..FetchLimits::default() };
    let (fetcher, double) = fetcher(Double::new(&[&blob]), None, limits);
    for place in [0, 0, 1, 0, 1] {
        assert_eq!(fetcher.group(&blob.wants[place]).await.unwrap(), blob.raw[place]);
        until(|| fetcher.stats().tasks == 0).await;
    }
    assert_eq!(double.seen().len(), 2);
    assert_eq!(fetcher.here(&blob.wants[0]), Some(blob.raw[0].clone()));
    fetcher.group(&blob.wants[2]).await.unwrap();
    until(|| fetcher.stats().tasks == 0).await;
    assert_eq!([0, 1, 2].map(|p| fetcher.here(&blob.wants[p]).is_some()), [true, false, true]);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn fetched_groups_are_cached_and_not_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), CacheOptions::default()).unwrap();
    let blob = Blob::new(1, 4, 10_000);
    let limits = FetchLimits::default();
    let (fetcher, double) = fetcher(Double::new(&[&blob]), Some(cache.clone()), limits);
    fetcher.read_ahead(blob.wants[2..].to_vec());
    fetcher.groups(&blob.wants[..2]).await.unwrap();
    until(|| fetcher.stats().tasks == 0).await;
    for (want, raw) in blob.wants.iter().zip(&blob.raw) {
        assert_eq!(cache.read_all(&want.group.digest).unwrap(), raw[..]);
    }
    // Cached groups are neither fetched nor read ahead again.
    let requests = double.seen().len();
    fetcher.read_ahead(blob.wants.clone());
    assert_eq!(fetcher.groups(&blob.wants).await.unwrap(), blob.raw);
    assert_eq!(double.seen().len(), requests);
    ends_clean(&fetcher).await;
}

#[tokio::test]
async fn shutdown_answers_all_and_leaves_nothing() {
    let blob = Blob::new(1, 100, 10_000);
    let limits = FetchLimits {
        demand_requests: 4,
        ahead_requests: 4,
        request_bytes: 1,
        ..FetchLimits::default()
    };
    let double = Double::new(&[&blob]).gated(Class::Demand).gated(Class::ReadAhead);
    let (fetcher, double) = fetcher(double, None, limits);
    fetcher.read_ahead(blob.wants[50..].to_vec());
    let mut reads = Box::pin(join_all(blob.wants[..50].iter().map(|want| fetcher.group(want))));
    assert!(reads.as_mut().now_or_never().is_none());
    until(|| double.seen().len() == 8).await;
    let (reads, ()) = tokio::join!(reads, fetcher.shutdown());
    assert!(reads.iter().all(|read| matches!(read, Err(FetchError::Shutdown))));
    assert!(matches!(fetcher.group(&blob.wants[0]).await, Err(FetchError::Shutdown)));
    assert_eq!(double.seen().len(), 8);
    ends_clean(&fetcher).await;
}
