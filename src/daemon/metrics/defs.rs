//! Table of all metrics, from which `docs/METRICS.md` is checked and the registry is filled.

/// Type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Monotonic; starts at 0 with the daemon.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
}

impl MetricKind {
    /// Returns the Prometheus name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Definition of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: MetricKind,
    /// Unit.
    pub unit: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($metric:ident $name:literal $kind:ident $unit:literal [$($label:literal),*] $help:literal;)*) => {
        /// A metric of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Metric { $($metric,)* }

        impl Metric {
            pub(super) const fn definition(self) -> Definition {
                match self {
                    $(Self::$metric => Definition {
                        name: $name,
                        kind: MetricKind::$kind,
                        unit: $unit,
                        labels: &[$($label),*],
                        help: $help,
                    },)*
                }
            }
        }

        /// All metrics, in the order of the documentation.
        pub const METRICS: &[Definition] = &[$(Metric::$metric.definition(),)*];
    };
}

metrics! {
    Build "inlay_build_info" Gauge "-" ["version"]
        "Always 1; the label is the daemon's version";
    Mounts "inlay_mounts" Gauge "mounts" []
        "Mounts, including the roots and live mounts of sandboxes";
    Attached "inlay_attached_snapshots" Gauge "snapshots" []
        "Attached snapshots and parts of snapshots, including detached ones that are still in use";
    OpenFiles "inlay_open_files" Gauge "files" ["read_by"]
        "Open large files, read by the kernel itself (passthrough) or by the daemon";

    MountTime "inlay_mount_seconds" Histogram "seconds" []
        "Duration of mounts outside sandboxes, from request to response";
    MountFailures "inlay_mount_failures_total" Counter "mounts" []
        "Mounts outside sandboxes that failed or were cancelled";
    AttachTime "inlay_attach_seconds" Histogram "seconds" []
        "Time to attach a snapshot: resolve its name, fetch its index if it is not on this host, and open it";
    AttachFailures "inlay_attach_failures_total" Counter "snapshots" []
        "Attempts to attach a snapshot that failed or were cancelled";
    SealedSnapshots "inlay_sealed_snapshots" Gauge "snapshots" []
        "Snapshots sealed on this host that are not yet in their stores";
    ApiRequests "inlay_api_requests_total" Counter "requests" ["route", "method", "status"]
        "Answered API requests";
    ApiTime "inlay_api_request_seconds" Histogram "seconds" ["route"]
        "Duration of answered API requests; of a stream, until it begins";

    Sandboxes "inlay_sandboxes" Gauge "sandboxes" ["state"]
        "Sandboxes by state";
    SandboxStart "inlay_sandbox_start_seconds" Histogram "seconds" []
        "Duration of requests that create and start a sandbox, until its first program runs";
    SandboxStartFailures "inlay_sandbox_start_failures_total" Counter "sandboxes" []
        "Requests to create and start a sandbox that failed or were cancelled";
    SandboxMounts "inlay_sandbox_mounts" Gauge "mounts" []
        "Live mounts in sandboxes, excluding their roots";
    SandboxMountTime "inlay_sandbox_mount_seconds" Histogram "seconds" []
        "Duration of mounts into sandboxes, from request to response";
    SandboxMountFailures "inlay_sandbox_mount_failures_total" Counter "mounts" []
        "Mounts into sandboxes that failed or were cancelled";
    CaptureTime "inlay_capture_seconds" Histogram "seconds" []
        "Duration of snapshots of sandboxes, until they were sealed or in the store, as requested";
    CaptureFrozen "inlay_capture_frozen_seconds" Histogram "seconds" []
        "Time that sandboxes were frozen for snapshots";
    CaptureFailures "inlay_capture_failures_total" Counter "snapshots" []
        "Snapshots of sandboxes that failed or were cancelled";
    CaptureRead "inlay_capture_read_bytes_total" Counter "bytes" []
        "Bytes of files read for snapshots of sandboxes; files known to be unchanged are not read";
    CaptureStored "inlay_capture_stored_bytes_total" Counter "bytes" []
        "Bytes of the blobs created for snapshots of sandboxes: new data only, compressed";

    FuseRequests "inlay_fuse_requests_total" Counter "requests" ["request"]
        "Requests from the kernel";
    FuseReads "inlay_fuse_reads_total" Counter "requests" ["answered"]
        "Reads answered at once (index or cache), or later, after a fetch";
    FusePassthrough "inlay_fuse_passthrough_opens_total" Counter "files" []
        "Opens of files that the kernel reads directly from the cache file";
    FuseRefused "inlay_fuse_passthrough_refused_total" Counter "files" []
        "Cache files that the kernel refused to pass through; they were opened in plain mode";
    FuseFailed "inlay_fuse_failed_requests_total" Counter "requests" []
        "Requests answered with an error because of damage or a failing store";

    DemandWait "inlay_demand_wait_seconds" Histogram "seconds" ["tier"]
        "Time that readers waited for bytes: on this host (cache; one read in 16 is timed and counts 16 times), already in flight (in_flight), or fetched for them (store)";

    FetchRequests "inlay_fetch_requests_total" Counter "requests" ["store", "class"]
        "Fetch requests to the store";
    FetchFailedRequests "inlay_fetch_failed_requests_total" Counter "requests" ["store", "class"]
        "Fetch requests that failed in all attempts";
    FetchBytes "inlay_fetch_received_bytes_total" Counter "bytes" ["store", "class"]
        "Bytes received from the store";
    FetchGroups "inlay_fetch_groups_total" Counter "groups" ["store", "class"]
        "Groups verified and decoded";
    FetchCoalesced "inlay_fetch_coalesced_groups_total" Counter "groups" ["store"]
        "Groups fetched in the request of a neighbour";
    FetchJoined "inlay_fetch_joined_readers_total" Counter "readers" ["store"]
        "Readers that found their group queued or in flight";
    FetchPromoted "inlay_fetch_promoted_groups_total" Counter "groups" ["store"]
        "Groups queued in a lower class when a reader requested them";
    FetchHintsDropped "inlay_fetch_hints_dropped_total" Counter "hints" ["store"]
        "Read-ahead hints dropped because the queue was full";
    FetchCancelled "inlay_fetch_cancelled_requests_total" Counter "requests" ["store"]
        "Fetch requests cancelled because they were no longer needed";
    FetchCorrupt "inlay_fetch_corrupt_groups_total" Counter "groups" ["store"]
        "Groups received with wrong bytes";
    FetchFailed "inlay_fetch_failed_groups_total" Counter "groups" ["store"]
        "Groups whose readers got an error";
    FetchNotCached "inlay_fetch_not_cached_groups_total" Counter "groups" ["store"]
        "Groups that the cache did not store";
    FetchWaiting "inlay_fetch_waiting_readers" Gauge "readers" ["store"]
        "Waiting readers";
    FetchTasks "inlay_fetch_tasks" Gauge "requests" ["store"]
        "Fetch requests in flight, or whose groups are being decoded or cached";
    FetchFlights "inlay_fetch_flights" Gauge "groups" ["store"]
        "Groups queued, in flight or being cached";
    FetchBuffers "inlay_fetch_buffer_bytes" Gauge "bytes" ["store"]
        "Size of the buffers of fetch requests";
    FetchQueued "inlay_fetch_queued_groups" Gauge "groups" ["store", "class"]
        "Groups waiting for their turn";

    LinkRoundTrip "inlay_link_round_trip_seconds" Gauge "seconds" ["store"]
        "Minimum time from a request to the first byte of its response over the last seconds; absent until measured";
    LinkRate "inlay_link_rate_bytes_per_second" Gauge "bytes per second" ["store"]
        "Maximum rate over the last seconds; absent until measured";
    LinkShare "inlay_link_prefetch_share_ratio" Gauge "ratio" ["store"]
        "Share of the link that prefetch uses: 1 unless readers had to wait";

    PrefetchFetched "inlay_prefetch_fetched_bytes_total" Counter "bytes" []
        "Stored bytes of groups prefetched for attached snapshots";
    PrefetchUsed "inlay_prefetch_used_bytes_total" Counter "bytes" []
        "Prefetched bytes that were read afterwards";
    PrefetchWasted "inlay_prefetch_wasted_bytes_total" Counter "bytes" []
        "Prefetched bytes that were still unread when the snapshot was detached";
    ProfilesRecorded "inlay_profiles_recorded_total" Counter "starts" []
        "Starts whose order of reads was merged into a profile in the store";
    ProfilesFailed "inlay_profiles_failed_total" Counter "starts" []
        "Starts whose order of reads could not be written to the store";

    CacheHits "inlay_cache_hits_total" Counter "lookups" []
        "Cache hits";
    CacheMisses "inlay_cache_misses_total" Counter "lookups" []
        "Cache misses";
    CacheInsertedGroups "inlay_cache_inserted_groups_total" Counter "groups" []
        "Groups stored in the cache";
    CacheInsertedBytes "inlay_cache_inserted_bytes_total" Counter "bytes" []
        "Decoded bytes of the groups stored in the cache";
    CacheRefused "inlay_cache_refused_groups_total" Counter "groups" []
        "Groups not stored because the budget was used up; eviction makes room";
    CacheWriteFailures "inlay_cache_write_failures_total" Counter "groups" []
        "Groups not stored because the disk failed";
    CacheReadFailures "inlay_cache_read_failures_total" Counter "lookups" []
        "Lookups that failed because of the disk or a truncated file";
    CacheVerified "inlay_cache_verified_files_total" Counter "files" []
        "Cache files that passed verification";
    CacheDamaged "inlay_cache_damaged_files_total" Counter "files" []
        "Cache files that failed verification and were removed";
    CacheSealed "inlay_cache_sealed_files_total" Counter "files" []
        "Large files that became whole in the cache";
    CacheContradictions "inlay_cache_contradictions_total" Counter "groups" []
        "Groups that contradicted other groups of the same contents: an index is wrong";
    CacheEvictedFiles "inlay_cache_evicted_files_total" Counter "files" []
        "Cache files evicted";
    CacheEvictedBytes "inlay_cache_evicted_bytes_total" Counter "bytes" []
        "Disk space freed by eviction";
    CacheDiskBytes "inlay_cache_disk_bytes" Gauge "bytes" []
        "Disk usage of the whole cache, as the daemon last saw it";
    CacheBudgetBytes "inlay_cache_budget_bytes" Gauge "bytes" []
        "Disk budget of the cache";
    CacheDiskFailing "inlay_cache_disk_failing" Gauge "-" []
        "1 while the disk fails and nothing is stored, otherwise 0";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The metric as a row of the page.
    fn row(metric: &Definition) -> String {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, unit, help) = (metric.kind.name(), metric.unit, metric.help);
        format!("| `{}` | {kind} | {unit} | {} | {help} |", metric.name, labels.join(", "))
    }

    #[test]
    fn the_page_lists_each_metric_once() {
        let page = include_str!("../../../docs/METRICS.md");
        let listed: Vec<&str> = page.lines().filter(|line| line.starts_with("| `inlay_")).collect();
        let there: Vec<String> = METRICS.iter().map(row).collect();
        assert_eq!(listed, there);
    }

    #[test]
    fn names_follow_the_conventions() {
        for metric in METRICS {
            let name = metric.name;
            assert!(name.starts_with("inlay_"));
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            let counts = name.ends_with("_total");
            assert_eq!(counts, metric.kind == MetricKind::Counter, "{name}");
            let of_unit = |unit: &str| name.trim_end_matches("_total").ends_with(unit);
            assert_eq!(metric.unit == "bytes", of_unit("_bytes"), "{name}");
            assert_eq!(metric.unit == "seconds", of_unit("_seconds"), "{name}");
            assert!(METRICS.iter().filter(|other| other.name == name).count() == 1, "{name}");
        }
    }
}
