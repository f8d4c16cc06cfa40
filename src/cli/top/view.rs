//! Computes the view from one or two samples, for the screen and for `--json`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use inlay_mounts::View as MountView;
use serde::Serialize;

use super::numbers::{growth, quantile};
use super::sample::Sample;
use crate::daemon::{LoadingStatus, MountInfo, SandboxInfo};

/// Tiers of readers' waits, as the `tier` label.
pub(super) const TIERS: [&str; 3] = ["cache", "in_flight", "store"];
const WAITS: &str = "inlay_demand_wait_seconds";

/// The view. Rates and waits cover the time since the previous sample, and are absent without one.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct View {
    /// Time of the sample, in milliseconds since 1970-01-01 00:00 UTC.
    pub(super) at_ms: u64,
    /// Time since the previous sample, in seconds.
    pub(super) interval_s: Option<f64>,
    pub(super) daemon: DaemonRow,
    pub(super) cache: CacheRow,
    pub(super) stores: Vec<StoreRow>,
    /// Waits of readers, by tier.
    pub(super) waits: BTreeMap<String, WaitRow>,
    /// Fetch rate in bytes per second, by class.
    pub(super) fetch: BTreeMap<String, f64>,
    pub(super) sandboxes: Vec<SandboxRow>,
    pub(super) mounts: Vec<MountRow>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct DaemonRow {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) state: String,
    pub(super) uptime_s: Option<u64>,
    /// Number of snapshots not in their stores yet.
    pub(super) sealed: usize,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct CacheRow {
    pub(super) used_bytes: u64,
    pub(super) budget_bytes: u64,
    /// Hit rate of lookups since the previous sample, 0 to 1.
    pub(super) hits: Option<f64>,
    pub(super) disk_failing: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct StoreRow {
    pub(super) store: String,
    pub(super) round_trip_ms: Option<f64>,
    /// Bytes per second.
    pub(super) rate: Option<f64>,
    /// Share of the link for prefetching, 0 to 1.
    pub(super) share: f64,
    pub(super) readers_waiting: u64,
    /// Number of queued groups.
    pub(super) queued: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct WaitRow {
    /// Number of reads.
    pub(super) reads: u64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct SandboxRow {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) image: String,
    /// Time since creation.
    pub(super) age_s: Option<u64>,
    /// CPU use in processors: 1.0 is one fully used.
    pub(super) cpu: Option<f64>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) mounts: usize,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct MountRow {
    pub(super) path: String,
    pub(super) sandbox: Option<String>,
    pub(super) snapshot: String,
    pub(super) writable: bool,
    /// Phase of prefetching, as in `inlay prefetch status`.
    pub(super) phase: String,
    /// Share of the snapshot's groups visited by prefetching, 0 to 1.
    pub(super) progress: Option<f64>,
    /// Stored bytes prefetched.
    pub(super) fetched_bytes: u64,
    /// Part of the prefetched bytes that was read.
    pub(super) read_bytes: u64,
    /// Number of groups touched by readers.
    pub(super) touched: u64,
    /// Number of readers waiting for the snapshot's store, for any snapshot.
    pub(super) store_readers_waiting: u64,
}

impl View {
    /// Computes the view from a sample and the previous one.
    pub(super) fn of(now: &Sample, before: Option<&Sample>) -> Self {
        // Counters of a new daemon start from zero.
        let same = before.filter(|before| before.status.server == now.status.server);
        let seconds = |before: &Sample| now.taken.duration_since(before.taken).as_secs_f64();
        Self {
            at_ms: millis(now.at),
            interval_s: before.map(seconds),
            daemon: DaemonRow {
                version: now.status.version.clone(),
                pid: now.status.server.pid,
                state: now.status.state.to_path().to_string_lossy().into_owned(),
                uptime_s: now.uptime.map(|uptime| uptime.as_secs()),
                sealed: now.status.sealed,
            },
            cache: cache(now, same),
            stores: stores(now),
            waits: if before.is_some() { waits(now, same) } else { BTreeMap::new() },
            fetch: before.map(|before| fetch(now, same, seconds(before))).unwrap_or_default(),
            sandboxes: now.sandboxes.iter().map(|one| sandbox(one, now, before)).collect(),
            mounts: now.mounts.iter().map(|one| mount(one, now)).collect(),
        }
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Converts a metric to an integer: the values used here are whole numbers far below 2^52.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(number: Option<f64>) -> u64 {
    number.unwrap_or(0.0) as u64
}

fn cache(now: &Sample, before: Option<&Sample>) -> CacheRow {
    let grown = |name: &str| {
        let at = |sample: &Sample| sample.numbers.one(name).unwrap_or(0.0);
        growth(before.map_or(0.0, at), at(now))
    };
    let hits = before.and_then(|_| {
        let (hits, misses) = (grown("inlay_cache_hits_total"), grown("inlay_cache_misses_total"));
        (hits + misses > 0.0).then(|| hits / (hits + misses))
    });
    CacheRow {
        used_bytes: whole(now.numbers.one("inlay_cache_disk_bytes")),
        budget_bytes: whole(now.numbers.one("inlay_cache_budget_bytes")),
        hits,
        disk_failing: now.numbers.one("inlay_cache_disk_failing").is_some_and(|on| on > 0.0),
    }
}

fn stores(now: &Sample) -> Vec<StoreRow> {
    let row = |store: &crate::daemon::StoreStatus| StoreRow {
        store: store.store.url.clone().unwrap_or_else(|| "embedded".to_owned()),
        round_trip_ms: store.round_trip_ms,
        rate: store.rate,
        share: store.share,
        readers_waiting: store.readers_waiting,
        queued: store.queued.values().sum(),
    };
    now.loading.stores.iter().map(row).collect()
}

fn waits(now: &Sample, before: Option<&Sample>) -> BTreeMap<String, WaitRow> {
    let of_tier = |tier: &str| {
        let at = |sample: &Sample| {
            let of =
                |labels: &BTreeMap<String, String>| labels.get("tier").is_some_and(|of| of == tier);
            sample.numbers.by(&format!("{WAITS}_bucket"), "le", of)
        };
        let mut buckets = at(now);
        let earlier = before.map(at).unwrap_or_default();
        for (bound, count) in &mut buckets {
            *count = growth(earlier.get(bound).copied().unwrap_or(0.0), *count);
        }
        let millis = |q| quantile(q, &buckets).map(|seconds| seconds * 1e3);
        WaitRow {
            reads: whole(buckets.get("+Inf").copied()),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
        }
    };
    TIERS.iter().map(|tier| ((*tier).to_owned(), of_tier(tier))).collect()
}

fn fetch(now: &Sample, before: Option<&Sample>, seconds: f64) -> BTreeMap<String, f64> {
    let at =
        |sample: &Sample| sample.numbers.by("inlay_fetch_received_bytes_total", "class", |_| true);
    let earlier = before.map(at).unwrap_or_default();
    let rate = |(class, bytes): (String, f64)| {
        let grown = growth(earlier.get(&class).copied().unwrap_or(0.0), bytes);
        (class, if seconds > 0.0 { grown / seconds } else { 0.0 })
    };
    at(now).into_iter().map(rate).collect()
}

fn sandbox(shown: &SandboxInfo, now: &Sample, before: Option<&Sample>) -> SandboxRow {
    let usage = now.usage.get(&shown.id);
    let cpu = before.and_then(|before| {
        let earlier = before.usage.get(&shown.id)?.cpu?;
        let used: Duration = usage?.cpu?.checked_sub(earlier)?;
        let passed = now.taken.duration_since(before.taken).as_secs_f64();
        (passed > 0.0).then(|| used.as_secs_f64() / passed)
    });
    SandboxRow {
        id: shown.id.to_string(),
        name: shown.name.clone(),
        state: format!("{:?}", shown.state).to_lowercase(),
        image: shown.image.clone().unwrap_or_else(|| "-".to_owned()),
        age_s: shown.created_ms.map(|made| millis(now.at).saturating_sub(made) / 1000),
        cpu,
        memory_bytes: usage.and_then(|usage| usage.memory),
        mounts: shown.mounts.len(),
    }
}

fn mount(shown: &MountInfo, now: &Sample) -> MountRow {
    let loading: Option<&LoadingStatus> =
        now.loading.snapshots.iter().find(|loading| loading.snapshot == shown.snapshot);
    let store = loading
        .and_then(|loading| now.loading.stores.iter().find(|store| store.store == loading.store));
    let progress = loading.filter(|loading| loading.phase != "off" && loading.groups > 0);
    MountRow {
        path: super::super::output::escaped(std::os::unix::ffi::OsStrExt::as_bytes(
            shown.mountpoint.to_path().as_os_str(),
        )),
        sandbox: shown.sandbox.clone(),
        snapshot: shown.snapshot.to_string(),
        writable: matches!(shown.view, MountView::Writable { .. }),
        phase: loading.map_or("-", |loading| &loading.phase).to_owned(),
        progress: progress
            .map(|loading| (f64::from(loading.looked) / f64::from(loading.groups)).min(1.0)),
        fetched_bytes: loading.map_or(0, |loading| loading.fetched_bytes),
        read_bytes: loading.map_or(0, |loading| loading.used_bytes),
        touched: loading.map_or(0, |loading| loading.touched),
        store_readers_waiting: store.map_or(0, |store| store.readers_waiting),
    }
}
