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
        "1; the label is the daemon's version";
    Mounts "inlay_mounts" Gauge "mounts" []
        "What is mounted";
    Attached "inlay_attached_snapshots" Gauge "snapshots" []
        "Snapshots, or parts of them, that the kernel is shown, those too that only their last users see";
    OpenFiles "inlay_open_files" Gauge "files" ["read_by"]
        "Large files that are open: read by the kernel itself (passthrough), or by the daemon";

    MountTime "inlay_mount_seconds" Histogram "seconds" []
        "How long mounts for users took, from the request to the answer";
    MountFailures "inlay_mount_failures_total" Counter "mounts" []
        "Mounts for users that failed or were given up";
    AttachTime "inlay_attach_seconds" Histogram "seconds" []
        "How long it took until a snapshot was attached: its name looked up, its index here and open";
    AttachFailures "inlay_attach_failures_total" Counter "snapshots" []
        "Snapshots that could not be attached";
    SealedSnapshots "inlay_sealed_snapshots" Gauge "snapshots" []
        "Snapshots that are sealed on this host and not in their stores yet";
    ApiRequests "inlay_api_requests_total" Counter "requests" ["route", "method", "status"]
        "Requests of clients that were answered";
    ApiTime "inlay_api_request_seconds" Histogram "seconds" ["route"]
        "How long their answers took; of a stream, until it begins";

    Sandboxes "inlay_sandboxes" Gauge "sandboxes" ["state"]
        "What there is";
    SandboxStart "inlay_sandbox_start_seconds" Histogram "seconds" []
        "How long it took from the request to the start of the first program, where both are one request";
    SandboxStartFailures "inlay_sandbox_start_failures_total" Counter "sandboxes" []
        "Of such requests, those that failed or were given up";
    SandboxMounts "inlay_sandbox_mounts" Gauge "mounts" []
        "What is mounted in sandboxes, their roots not counted";
    SandboxMountTime "inlay_sandbox_mount_seconds" Histogram "seconds" []
        "How long mounts into sandboxes took, from the request to the answer";
    SandboxMountFailures "inlay_sandbox_mount_failures_total" Counter "mounts" []
        "Mounts into sandboxes that failed or were given up";
    CaptureTime "inlay_capture_seconds" Histogram "seconds" []
        "How long snapshots of sandboxes took, until they were sealed or in the store, as was wanted";
    CaptureFrozen "inlay_capture_frozen_seconds" Histogram "seconds" []
        "How long sandboxes stood still for them";
    CaptureFailures "inlay_capture_failures_total" Counter "snapshots" []
        "Snapshots of sandboxes that failed or were given up";
    CaptureRead "inlay_capture_read_bytes_total" Counter "bytes" []
        "Bytes of files that were read for snapshots; what is known to be unchanged is not read";
    CaptureStored "inlay_capture_stored_bytes_total" Counter "bytes" []
        "Bytes of the blobs that were made for them: of what was read, what is new, compressed";

    FuseRequests "inlay_fuse_requests_total" Counter "requests" ["request"]
        "Requests of the kernel";
    FuseReads "inlay_fuse_reads_total" Counter "requests" ["answered"]
        "Reads answered at once (index or cache), or later, after a fetch";
    FusePassthrough "inlay_fuse_passthrough_opens_total" Counter "files" []
        "Files opened that the kernel reads from the cached file itself";
    FuseRefused "inlay_fuse_passthrough_refused_total" Counter "files" []
        "Cached files that the kernel would not read itself: they were opened plainly";
    FuseFailed "inlay_fuse_failed_requests_total" Counter "requests" []
        "Requests answered with an error that means damage or a failing store";

    DemandWait "inlay_demand_wait_seconds" Histogram "seconds" ["tier"]
        "How long readers waited for bytes: on this host (cache; one read in 16 is timed and counts 16 times), on their way already (in_flight), or fetched for them (store)";

    FetchRequests "inlay_fetch_requests_total" Counter "requests" ["store", "class"]
        "Requests for bytes to the store";
    FetchFailedRequests "inlay_fetch_failed_requests_total" Counter "requests" ["store", "class"]
        "Of these, those that failed with all their attempts";
    FetchBytes "inlay_fetch_received_bytes_total" Counter "bytes" ["store", "class"]
        "Bytes that the store gave";
    FetchGroups "inlay_fetch_groups_total" Counter "groups" ["store", "class"]
        "Groups verified and decoded";
    FetchCoalesced "inlay_fetch_coalesced_groups_total" Counter "groups" ["store"]
        "Groups that came in the request of a neighbour";
    FetchJoined "inlay_fetch_joined_readers_total" Counter "readers" ["store"]
        "Readers that found their group queued or in flight";
    FetchPromoted "inlay_fetch_promoted_groups_total" Counter "groups" ["store"]
        "Groups that waited for something less urgent when a reader asked for them";
    FetchHintsDropped "inlay_fetch_hints_dropped_total" Counter "hints" ["store"]
        "Hints for read-ahead that found the queue full";
    FetchCancelled "inlay_fetch_cancelled_requests_total" Counter "requests" ["store"]
        "Requests stopped because nobody wanted them any more";
    FetchCorrupt "inlay_fetch_corrupt_groups_total" Counter "groups" ["store"]
        "Groups that came with wrong bytes";
    FetchFailed "inlay_fetch_failed_groups_total" Counter "groups" ["store"]
        "Groups whose readers got an error";
    FetchNotCached "inlay_fetch_not_cached_groups_total" Counter "groups" ["store"]
        "Groups that the cache did not take";
    FetchWaiting "inlay_fetch_waiting_readers" Gauge "readers" ["store"]
        "Readers that wait";
    FetchTasks "inlay_fetch_tasks" Gauge "requests" ["store"]
        "Requests under way, or whose groups are being decoded or cached";
    FetchFlights "inlay_fetch_flights" Gauge "groups" ["store"]
        "Groups queued, in flight or being cached";
    FetchBuffers "inlay_fetch_buffer_bytes" Gauge "bytes" ["store"]
        "Buffers of requests";
    FetchQueued "inlay_fetch_queued_groups" Gauge "groups" ["store", "class"]
        "Groups that wait for their turn";

    LinkRoundTrip "inlay_link_round_trip_seconds" Gauge "seconds" ["store"]
        "The least time from a request to the first byte of its answer in the last seconds; absent until measured";
    LinkRate "inlay_link_rate_bytes_per_second" Gauge "bytes per second" ["store"]
        "The greatest rate of the last seconds; absent until measured";
    LinkShare "inlay_link_prefetch_share_ratio" Gauge "ratio" ["store"]
        "The part of the link that prefetching takes: 1 unless readers had to wait";

    PrefetchFetched "inlay_prefetch_fetched_bytes_total" Counter "bytes" []
        "Stored bytes of groups fetched ahead of readers for attached snapshots";
    PrefetchUsed "inlay_prefetch_used_bytes_total" Counter "bytes" []
        "Of these, what readers have read since";
    PrefetchWasted "inlay_prefetch_wasted_bytes_total" Counter "bytes" []
        "Of these, what nobody had read when the snapshot was detached";
    ProfilesRecorded "inlay_profiles_recorded_total" Counter "starts" []
        "Starts whose order of reads was merged into a profile in the store";
    ProfilesFailed "inlay_profiles_failed_total" Counter "starts" []
        "Starts whose order of reads could not be written to the store";

    CacheHits "inlay_cache_hits_total" Counter "lookups" []
        "Lookups that the cache answered";
    CacheMisses "inlay_cache_misses_total" Counter "lookups" []
        "Lookups that it did not";
    CacheInsertedGroups "inlay_cache_inserted_groups_total" Counter "groups" []
        "Groups stored";
    CacheInsertedBytes "inlay_cache_inserted_bytes_total" Counter "bytes" []
        "Their decoded bytes";
    CacheRefused "inlay_cache_refused_groups_total" Counter "groups" []
        "Groups not stored because the budget is used up; eviction makes room";
    CacheWriteFailures "inlay_cache_write_failures_total" Counter "groups" []
        "Groups not stored because the disk failed";
    CacheReadFailures "inlay_cache_read_failures_total" Counter "lookups" []
        "Lookups that the disk failed, or found cut short";
    CacheVerified "inlay_cache_verified_files_total" Counter "files" []
        "Cached files whose contents were read and proved right";
    CacheDamaged "inlay_cache_damaged_files_total" Counter "files" []
        "Cached files whose contents were wrong and that were removed";
    CacheSealed "inlay_cache_sealed_files_total" Counter "files" []
        "Large files that became whole";
    CacheContradictions "inlay_cache_contradictions_total" Counter "groups" []
        "Groups that did not fit to what other groups of the same contents say: some index is wrong";
    CacheEvictedFiles "inlay_cache_evicted_files_total" Counter "files" []
        "Cached files that were evicted";
    CacheEvictedBytes "inlay_cache_evicted_bytes_total" Counter "bytes" []
        "What they took on disk";
    CacheDiskBytes "inlay_cache_disk_bytes" Gauge "bytes" []
        "What the whole cache takes on disk, as the daemon last saw it";
    CacheBudgetBytes "inlay_cache_budget_bytes" Gauge "bytes" []
        "How much it may take";
    CacheDiskFailing "inlay_cache_disk_failing" Gauge "-" []
        "1 while the disk fails and nothing is stored, else 0";
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
    fn the_page_lists_what_there_is() {
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
