//! Stress test with many readers, many faults and tiny limits: every read returns the right bytes
//! or an error, and nothing is left at the end.

use std::sync::Arc;

use inlay_store::cache::{Budget, Cache, CacheOptions};
use inlay_store::units::ByteSize;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::doubles::{Blob, Double, Fault, SharedStore};
use crate::{FetchError, FetchLimits, Fetcher};

/// Splitmix64: a deterministic sequence per seed.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn place(roll: u64, below: usize) -> usize {
    usize::try_from(roll % below as u64).unwrap()
}

fn fault(seed: u64, number: usize) -> Fault {
    match mix(seed ^ mix(number as u64)) % 10 {
        0 => Fault::Fails,
        1 => Fault::Lies,
        2 => Fault::Missing,
        _ => Fault::None,
    }
}

async fn reader(fetcher: Fetcher, blobs: Arc<Vec<Blob>>, seed: u64) -> (u32, u32) {
    let (mut right, mut failed) = (0, 0);
    for step in 0..60u64 {
        let roll = mix(seed ^ mix(step));
        let blob = &blobs[place(roll, blobs.len())];
        let first = place(roll >> 8, blob.wants.len());
        let last = (first + 1 + place(roll >> 16, 4)).min(blob.wants.len());
        match roll >> 60 {
            0..=3 => fetcher.read_ahead(blob.wants[first..].to_vec()),
            4..=5 => {
                // A reader that is cancelled.
                let read = fetcher.groups(&blob.wants[first..last]);
                tokio::select! { biased; () = tokio::task::yield_now() => {}, _ = read => {} }
            }
            _ => match fetcher.groups(&blob.wants[first..last]).await {
                Ok(groups) => {
                    assert_eq!(groups, blob.raw[first..last]);
                    right += 1;
                }
                Err(FetchError::Store { .. } | FetchError::Corrupt { .. }) => failed += 1,
                Err(other) => panic!("{other}"),
            },
        }
    }
    (right, failed)
}

async fn storm(seed: u64, cache: Option<Cache>) -> (u32, u32) {
    let blobs: Arc<Vec<Blob>> = Arc::new((0..3).map(|n| Blob::new(n, 24, 3000)).collect());
    let refs: Vec<&Blob> = blobs.iter().collect();
    let double = Arc::new(Double::new(&refs).faulty(move |number| fault(seed, number)));
    let limits = FetchLimits {
        demand_requests: 3,
        ahead_requests: 2,
        demand_bytes: 20_000,
        ahead_bytes: 14_000,
        read_ahead_queue: 10,
        request_bytes: 10_000,
        recent_bytes: 9000,
        insert_backlog_bytes: 8192,
        ..FetchLimits::default()
    };
    let source = Box::new(SharedStore(double));
    let fetcher = Fetcher::with_source(source, cache, limits, Handle::current());
    let mut readers = JoinSet::new();
    for number in 0..12 {
        readers.spawn(reader(fetcher.clone(), Arc::clone(&blobs), mix(seed) ^ number));
    }
    let totals = readers.join_all().await.into_iter();
    let totals = totals.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    fetcher.shutdown().await;
    let stats = fetcher.stats();
    let gauges = (stats.waiting, stats.tasks, stats.flights, stats.buffer_bytes);
    assert_eq!(gauges, (0, 0, 0, 0), "seed {seed}");
    totals
}

#[test]
fn every_read_is_right_or_an_error() {
    for seed in 0..12 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1 + place(seed, 3))
            .enable_time()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let budget = Some(Budget::Bytes(ByteSize(40 * 4096)));
        let options = CacheOptions { budget, ..CacheOptions::default() };
        let cache = (seed % 3 > 0).then(|| Cache::open(dir.path(), options).unwrap());
        let (right, failed) = runtime.block_on(storm(seed, cache));
        assert!(right > 50 && failed > 0, "seed {seed}: {right} right, {failed} failed");
    }
}
