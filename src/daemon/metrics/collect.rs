//! Reads the daemon's counters at each scrape.

use inlay_fusefs::RequestCounts;
use inlay_prefetch::{Class, FetchStats, HistogramCounts};
use inlay_store::cache::{CacheStats, DiskState};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::defs::{METRICS, Metric};
use super::families::Families;
use super::store_stats::Fetched;
use crate::daemon::error::DaemonError;
use crate::daemon::server::Server;
use crate::daemon::service::Service;

/// Prometheus collector of the daemon's counters.
pub(super) struct MetricSources {
    service: Service,
    server: Server,
    descriptions: Vec<Desc>,
}

impl MetricSources {
    pub(super) fn new(service: Service, server: Server) -> Result<Self, DaemonError> {
        let describe = |definition: &super::Definition| {
            let labels = definition.labels.iter().map(|label| (*label).to_owned()).collect();
            let constant = std::collections::HashMap::new();
            Desc::new(definition.name.to_owned(), definition.help.to_owned(), labels, constant)
        };
        let descriptions = METRICS.iter().map(describe).collect::<Result<_, _>>()?;
        Ok(Self { service, server, descriptions })
    }

    fn daemon(&self, to: &mut Families) {
        to.number(Metric::Build, &[env!("CARGO_PKG_VERSION")], 1);
        to.number(Metric::Mounts, &[], wide(self.service.mounted()));
        to.number(Metric::Attached, &[], wide(self.service.snapshots().count()));
        // Fails while the daemon is stopping; then the metric is omitted.
        if let Ok(files) = self.server.open_files() {
            let served = files.open.saturating_sub(files.passthrough);
            to.number(Metric::OpenFiles, &["kernel"], wide(files.passthrough));
            to.number(Metric::OpenFiles, &["daemon"], wide(served));
        }
        if let Ok(counts) = self.server.requests() {
            requests(to, &counts);
        }
    }

    fn stores(&self, to: &mut Families) {
        let (mut in_flight, mut store) = <(HistogramCounts, HistogramCounts)>::default();
        let stores = self.service.snapshots().stores();
        for fetched in stores.books().all() {
            fetches(to, &fetched);
            in_flight.add(&fetched.stats.wait_in_flight);
            store.add(&fetched.stats.wait_store);
        }
        to.histogram(Metric::DemandWait, &["cache"], &stores.waits().stats());
        to.histogram(Metric::DemandWait, &["in_flight"], &in_flight);
        to.histogram(Metric::DemandWait, &["store"], &store);
    }

    fn activity(&self, to: &mut Families) {
        let activity = self.service.activity();
        for (timed, took, failed) in [
            (&activity.mounts, Metric::MountTime, Metric::MountFailures),
            (&activity.attaches, Metric::AttachTime, Metric::AttachFailures),
            (&activity.sandbox_starts, Metric::SandboxStart, Metric::SandboxStartFailures),
            (&activity.live_mounts, Metric::SandboxMountTime, Metric::SandboxMountFailures),
            (&activity.captures, Metric::CaptureTime, Metric::CaptureFailures),
        ] {
            to.histogram(took, &[], &timed.took());
            to.number(failed, &[], timed.failed());
        }
        to.histogram(Metric::CaptureFrozen, &[], &activity.frozen());
        let (read, stored) = activity.capture_bytes();
        to.number(Metric::CaptureRead, &[], read);
        to.number(Metric::CaptureStored, &[], stored);
        for (request, number) in activity.requests() {
            let status = request.status.to_string();
            to.number(Metric::ApiRequests, &[&request.route, request.method, &status], number);
        }
        for (route, took) in activity.routes() {
            to.histogram(Metric::ApiTime, &[&route], &took);
        }
    }

    fn sandboxes(&self, to: &mut Families) {
        for (state, number) in self.service.sandboxes().by_state() {
            to.number(Metric::Sandboxes, &[state], wide(number));
        }
        to.number(Metric::SandboxMounts, &[], wide(self.service.mounted_in_sandboxes()));
        let outboxes = self.service.snapshots().stores().outboxes();
        to.number(Metric::SealedSnapshots, &[], wide(outboxes.waiting()));
    }

    fn starts(&self, to: &mut Families) {
        let (loaded, (recorded, failed)) = self.service.snapshots().starts();
        to.number(Metric::PrefetchFetched, &[], loaded.fetched);
        to.number(Metric::PrefetchUsed, &[], loaded.used);
        to.number(Metric::PrefetchWasted, &[], loaded.wasted);
        to.number(Metric::ProfilesRecorded, &[], recorded);
        to.number(Metric::ProfilesFailed, &[], failed);
    }
}

impl Collector for MetricSources {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = Families::default();
        self.daemon(&mut families);
        self.stores(&mut families);
        self.starts(&mut families);
        self.activity(&mut families);
        self.sandboxes(&mut families);
        cache(&mut families, &self.service.snapshots().stores().cache_figures());
        families.finish()
    }
}

fn requests(to: &mut Families, counts: &RequestCounts) {
    for (name, number) in counts.named() {
        match name {
            "read_hit" => to.number(Metric::FuseReads, &["at_once"], number),
            "read_miss" => to.number(Metric::FuseReads, &["later"], number),
            "open_passthrough" => to.number(Metric::FusePassthrough, &[], number),
            "passthrough_refused" => to.number(Metric::FuseRefused, &[], number),
            "failed" => to.number(Metric::FuseFailed, &[], number),
            request => to.number(Metric::FuseRequests, &[request], number),
        }
    }
    to.number(Metric::FuseRequests, &["read"], counts.read_hit + counts.read_miss);
}

fn fetches(to: &mut Families, fetched: &Fetched) {
    let Fetched { store, stats, link } = fetched;
    for class in Class::ALL {
        let labels = [store.as_str(), class.name()];
        let mut by_class = |metric, numbers| {
            to.number(metric, &labels, stats.of(numbers, class));
        };
        by_class(Metric::FetchRequests, &stats.requests);
        by_class(Metric::FetchFailedRequests, &stats.failed_requests);
        by_class(Metric::FetchBytes, &stats.bytes);
        by_class(Metric::FetchGroups, &stats.groups);
        by_class(Metric::FetchQueued, &stats.queued);
    }
    for (metric, number) in plain(stats) {
        to.number(metric, &[store], number);
    }
    if let Some(link) = link {
        if let Some(time) = link.round_trip {
            to.value(Metric::LinkRoundTrip, &[store], time.as_secs_f64());
        }
        if let Some(rate) = link.rate {
            to.value(Metric::LinkRate, &[store], rate);
        }
        to.value(Metric::LinkShare, &[store], link.share);
    }
}

fn cache(to: &mut Families, stats: &CacheStats) {
    for (metric, number) in [
        (Metric::CacheHits, stats.hits),
        (Metric::CacheMisses, stats.misses),
        (Metric::CacheInsertedGroups, stats.inserted_groups),
        (Metric::CacheInsertedBytes, stats.inserted_bytes),
        (Metric::CacheRefused, stats.refused_full),
        (Metric::CacheWriteFailures, stats.write_failures),
        (Metric::CacheReadFailures, stats.read_failures),
        (Metric::CacheVerified, stats.verified),
        (Metric::CacheDamaged, stats.verify_failures),
        (Metric::CacheSealed, stats.sealed),
        (Metric::CacheContradictions, stats.contradictions),
        (Metric::CacheEvictedFiles, stats.evictions),
        (Metric::CacheEvictedBytes, stats.evicted_bytes),
        (Metric::CacheDiskBytes, stats.disk_bytes),
        (Metric::CacheBudgetBytes, stats.budget_bytes),
        (Metric::CacheDiskFailing, u64::from(stats.disk == DiskState::Failing)),
    ] {
        to.number(metric, &[], number);
    }
}

/// Fetch counters without a class label.
fn plain(stats: &FetchStats) -> [(Metric, u64); 12] {
    [
        (Metric::FetchCoalesced, stats.coalesced),
        (Metric::FetchJoined, stats.joined),
        (Metric::FetchPromoted, stats.promoted),
        (Metric::FetchHintsDropped, stats.hints_dropped),
        (Metric::FetchCancelled, stats.cancelled),
        (Metric::FetchCorrupt, stats.corrupt),
        (Metric::FetchFailed, stats.failed),
        (Metric::FetchNotCached, stats.not_cached),
        (Metric::FetchWaiting, stats.waiting),
        (Metric::FetchTasks, stats.tasks),
        (Metric::FetchFlights, stats.flights),
        (Metric::FetchBuffers, stats.buffer_bytes),
    ]
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Returns the samples of one family, by label values.
    fn numbers(families: Families, metric: Metric) -> BTreeMap<Vec<String>, u64> {
        let name = metric.definition().name;
        let family = families.finish().into_iter().find(|family| family.name() == name).unwrap();
        let counter = metric.definition().kind == super::super::MetricKind::Counter;
        let numbers = family.get_metric().iter().map(|series| {
            let labels = series.get_label().iter().map(|pair| pair.value().to_owned()).collect();
            let value = if counter {
                series.get_counter().get_value()
            } else {
                series.get_gauge().get_value()
            };
            (labels, format!("{value}").parse().unwrap())
        });
        numbers.collect()
    }

    #[test]
    fn each_number_of_the_cache_is_its_own_metric() {
        let none = CacheStats::default();
        let failing = DiskState::Failing;
        for (metric, stats) in [
            (Metric::CacheHits, CacheStats { hits: 1, ..none }),
            (Metric::CacheMisses, CacheStats { misses: 1, ..none }),
            (Metric::CacheInsertedGroups, CacheStats { inserted_groups: 1, ..none }),
            (Metric::CacheInsertedBytes, CacheStats { inserted_bytes: 1, ..none }),
            (Metric::CacheRefused, CacheStats { refused_full: 1, ..none }),
            (Metric::CacheWriteFailures, CacheStats { write_failures: 1, ..none }),
            (Metric::CacheReadFailures, CacheStats { read_failures: 1, ..none }),
            (Metric::CacheVerified, CacheStats { verified: 1, ..none }),
            (Metric::CacheDamaged, CacheStats { verify_failures: 1, ..none }),
            (Metric::CacheSealed, CacheStats { sealed: 1, ..none }),
            (Metric::CacheContradictions, CacheStats { contradictions: 1, ..none }),
            (Metric::CacheEvictedFiles, CacheStats { evictions: 1, ..none }),
            (Metric::CacheEvictedBytes, CacheStats { evicted_bytes: 1, ..none }),
            (Metric::CacheDiskBytes, CacheStats { disk_bytes: 1, ..none }),
            (Metric::CacheBudgetBytes, CacheStats { budget_bytes: 1, ..none }),
            (Metric::CacheDiskFailing, CacheStats { disk: failing, ..none }),
        ] {
            let mut families = Families::default();
            cache(&mut families, &stats);
            let moved: Vec<_> = families
                .finish()
                .into_iter()
                .filter(|family| {
                    let series = &family.get_metric()[0];
                    series.get_counter().get_value() + series.get_gauge().get_value() != 0.0
                })
                .map(|family| family.name().to_owned())
                .collect();
            assert_eq!(moved, [metric.definition().name]);
        }
    }

    #[test]
    fn numbers_of_a_store_have_its_label_and_their_class() {
        let mut stats = FetchStats { hints_dropped: 7, ..FetchStats::default() };
        for (place, number) in stats.requests.iter_mut().enumerate() {
            *number = place as u64 + 1;
        }
        let gathered = || {
            let mut families = Families::default();
            let fetched = Fetched { store: "s3://bucket".into(), stats, link: None };
            fetches(&mut families, &fetched);
            families
        };
        let store = || "s3://bucket".to_owned();
        let dropped = numbers(gathered(), Metric::FetchHintsDropped);
        assert_eq!(dropped, BTreeMap::from([(vec![store()], 7)]));
        let requests = numbers(gathered(), Metric::FetchRequests);
        assert_eq!(requests.len(), Class::ALL.len());
        for class in Class::ALL {
            let number = stats.of(&stats.requests, class);
            assert_eq!(requests[&vec![store(), class.name().to_owned()]], number);
        }
    }

    #[test]
    fn requests_are_counted_by_operation() {
        let counts = RequestCounts { read_hit: 3, read_miss: 2, lookup: 9, ..Default::default() };
        let mut families = Families::default();
        requests(&mut families, &counts);
        let asked = numbers(families, Metric::FuseRequests);
        assert_eq!((asked[&vec!["read".to_owned()]], asked[&vec!["lookup".to_owned()]]), (5, 9));
        assert!(!asked.contains_key(&vec!["failed".to_owned()]));
    }
}
