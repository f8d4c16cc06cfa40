//! Prefetches each attached snapshot and learns its profile from reads.
//!
//! A snapshot that is attached several times, whole or in parts, is tracked once. When a start is
//! over, i.e. when no new groups are touched or the snapshot is detached, the recorded run is
//! merged into the profile in the store.

use std::collections::HashMap;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use inlay_mounts::PathText;
use inlay_prefetch::scheduler::{Extent, Known, Phase, Plan, Urgency};
use inlay_snapshots::content::{Groups, Tracker, TrackerStats, guess};
use inlay_snapshots::{PathPart, groups_of_paths};
use inlay_store::format::Index;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::profile::{Profile, ProfileLabel, Run};
use inlay_store::remote::{Remote, StoreError};
use inlay_trace::record::{About, Fetched, Recorder, Source};
use inlay_trace::{FetchClass, FetchOutcome, clock};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::api::{CacheUse, LoadOptions, LoadingStatus, Prefetch, RecordProfile, StoreRef};
use super::metrics::{Loaded, Recorded, StartTotals};
use super::redacted::redacted;
use super::stores::Store;

/// Identity of a tracked snapshot.
type TrackedKey = (SnapshotId, StoreRef, CacheUse);
/// A profile fetch in flight.
pub(super) type Early = JoinHandle<Option<Profile>>;

/// All tracked snapshots. Clones share state.
#[derive(Clone)]
pub(super) struct Trackings {
    inner: Arc<TrackingInner>,
}

struct TrackingInner {
    runtime: Handle,
    tasks: TaskTracker,
    known: Mutex<HashMap<TrackedKey, Weak<Tracking>>>,
    recorder: Recorder,
    totals: StartTotals,
}

/// One tracked snapshot. Dropped with its last slot, which saves the recorded run.
pub(super) struct Tracking {
    key: TrackedKey,
    load: LoadOptions,
    index: Index,
    remote: Remote,
    tracker: Arc<Tracker>,
    source: Arc<Source>,
    profile: OnceLock<Option<Profile>>,
    /// Slots that are not detached.
    visible: AtomicUsize,
    inner: Arc<TrackingInner>,
}

/// Whether a start is observed from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// The snapshot is being attached.
    Now,
    /// An earlier daemon attached it: its observations are lost, so this run is not recorded.
    Earlier,
}

impl Trackings {
    pub(super) fn new(runtime: Handle, tasks: TaskTracker, recorder: Recorder) -> Self {
        let (known, totals) = Default::default();
        Self { inner: Arc::new(TrackingInner { runtime, tasks, known, recorder, totals }) }
    }

    /// Starts fetching a snapshot's profile, concurrently with its index.
    pub(super) fn fetch(&self, remote: &Remote, id: SnapshotId, load: &LoadOptions) -> Early {
        let (remote, load) = (remote.clone(), load.clone());
        let recorder = self.inner.recorder.clone();
        let fetch = async move {
            if load.prefetch == Prefetch::Off {
                return None;
            }
            let asked = clock::now();
            let (profile, outcome) = profile(&remote, id, &load).await;
            if recorder.is_on() {
                recorder.fetched(&Fetched {
                    class: FetchClass::ProfileRecord,
                    snapshot: id,
                    times: [asked, 0, clock::now()],
                    bytes: 0,
                    outcome,
                });
            }
            profile
        };
        self.inner.tasks.spawn_on(fetch, &self.inner.runtime)
    }

    /// Returns the tracking of a snapshot that is about to be attached, shared with its other
    /// slots.
    pub(super) fn of(
        &self,
        key: (SnapshotId, StoreRef, CacheUse),
        store: &Arc<Store>,
        index: &Index,
        load: &LoadOptions,
        begins: Begins,
        early: Option<Early>,
    ) -> Arc<Tracking> {
        let mut known = self.inner.known.lock();
        known.retain(|_, tracking| tracking.strong_count() > 0);
        if let Some(tracking) = known.get(&key).and_then(Weak::upgrade)
            && tracking.join()
        {
            return tracking;
        }
        let mut load = load.clone();
        if begins == Begins::Earlier {
            load.record = RecordProfile::Off;
        }
        let tracking = Arc::new(Tracking {
            key: key.clone(),
            index: index.clone(),
            remote: store.remote.clone(),
            tracker: Arc::new(Tracker::new(index.group_count())),
            source: self.inner.recorder.source(About {
                snapshot: key.0,
                store: store_name(&key.1),
                watch: store.watch(),
                index: index.clone(),
            }),
            profile: OnceLock::new(),
            visible: AtomicUsize::new(1),
            inner: Arc::clone(&self.inner),
            load,
        });
        if tracking.load.record == RecordProfile::Off {
            // Not recorded from the start.
            drop(tracking.tracker.finish(index, None));
        }
        known.insert(key, Arc::downgrade(&tracking));
        drop(known);
        tracking.begin(store, early);
        tracking
    }

    fn all(&self) -> Vec<Arc<Tracking>> {
        self.inner.known.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Saves the recordings of starts that are over.
    pub(super) fn end_runs(&self) {
        for tracking in self.all() {
            if tracking.tracker.is_recording() && tracking.tracker.is_over() {
                tracking.save();
            }
        }
    }

    /// Returns prefetch totals, and the numbers of starts recorded and failed to record.
    pub(super) fn totals(&self) -> (Loaded, (u64, u64)) {
        let all = self.all();
        let totals = &self.inner.totals;
        let loading = || all.iter().filter_map(|one| one.tracker.stats().loading).collect();
        (totals.loaded(loading), totals.recordings())
    }

    /// Returns the progress of each snapshot.
    pub(super) fn list(&self) -> Vec<LoadingStatus> {
        let mut shown: Vec<_> = self.all().iter().map(|tracking| tracking.status()).collect();
        shown.sort_by_key(|shown| shown.snapshot.to_string());
        shown
    }
}

/// Returns the name of a store for traces.
fn store_name(store: &StoreRef) -> String {
    store.url.as_deref().map_or_else(|| "the state's own store".to_owned(), redacted)
}

/// Fetches the profile for the label of `load`; `None` if there is none or it is unusable, which
/// only affects the order of prefetching.
async fn profile(
    remote: &Remote,
    id: SnapshotId,
    load: &LoadOptions,
) -> (Option<Profile>, FetchOutcome) {
    let default = ProfileLabel::default();
    if load.label == default {
        return found(remote.profile(&id, &default).await);
    }
    // A new label starts from the profile of all starts.
    let (own, all) = tokio::join!(remote.profile(&id, &load.label), remote.profile(&id, &default));
    match found(own) {
        (None, FetchOutcome::Ok) => found(all),
        (None, failed) => (found(all).0, failed),
        own => own,
    }
}

fn found(profile: Result<Option<Profile>, StoreError>) -> (Option<Profile>, FetchOutcome) {
    match profile {
        Ok(profile) => (profile, FetchOutcome::Ok),
        Err(error) => {
            tracing::debug!(%error, "can't use a profile");
            (None, FetchOutcome::Failed)
        }
    }
}

impl Tracking {
    /// The tracker that reads report to.
    pub(super) fn tracker(&self) -> &Arc<Tracker> {
        &self.tracker
    }

    /// The source that reads are recorded under.
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Adds a slot. Returns false if the last one is detached already.
    fn join(&self) -> bool {
        let more = |count: usize| (count > 0).then_some(count + 1);
        self.visible.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Removes a slot. After the last one, prefetching stops.
    pub(super) fn leave(&self) {
        if self.visible.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.inner.totals.end(|| self.tracker.end_loading());
        }
    }

    /// Whether all its slots are detached.
    #[cfg(test)]
    pub(super) fn is_left(&self) -> bool {
        self.visible.load(Ordering::SeqCst) == 0
    }

    fn begin(self: &Arc<Self>, store: &Arc<Store>, early: Option<Early>) {
        let extent = match self.load.prefetch {
            Prefetch::Off => return,
            Prefetch::Profile => Extent::Likely,
            Prefetch::All => Extent::All,
        };
        let urgency = match self.key.0.kind {
            Kind::Directory => Urgency::Directory,
            Kind::Image | Kind::Filesystem | Kind::Memory => Urgency::Image,
        };
        if self.index.group_count() == 0 {
            return;
        }
        let Some(loading) = store.load(urgency, Groups::of(&self.index)) else { return };
        self.tracker.set_loading(loading);
        let tracking = Arc::downgrade(self);
        let prepare = async move {
            let profile = match early {
                Some(early) => early.await.ok().flatten(),
                None => None,
            };
            let Some(tracking) = tracking.upgrade() else { return };
            let inner = Arc::clone(&tracking.inner);
            // May read much of the index.
            let plan = move || tracking.plan(profile, extent);
            drop(inner.runtime.spawn_blocking(plan).await);
        };
        self.inner.tasks.spawn_on(prepare, &self.inner.runtime);
    }

    fn plan(&self, profile: Option<Profile>, extent: Extent) {
        let groups = self.index.group_count();
        let profile = profile.map(|mut profile| {
            profile.retain_groups(groups);
            profile
        });
        let mut first = self.hinted();
        let known = if let Some(profile) = &profile {
            first.extend(profile.groups().map(|group| group.0));
            Known::Recorded
        } else {
            first.extend(guess(&self.index).into_iter().map(|group| group.0));
            Known::Guessed
        };
        // Set once: this function is called once.
        drop(self.profile.set(profile));
        if let Some(loading) = self.tracker.loading() {
            loading.plan(Plan { groups, first, known, extent });
        }
        self.index.release_pages();
    }

    /// Returns the groups of the paths to fetch first.
    fn hinted(&self) -> Vec<u32> {
        let whole = |path: &PathText| PathPart::whole(path.to_path().into_os_string().into_vec());
        let paths: Vec<PathPart> = self.load.first.iter().map(whole).collect();
        match groups_of_paths(&self.index, &paths) {
            Ok(found) => {
                for place in found.missing {
                    let path = self.load.first.get(place).map(PathText::to_path);
                    tracing::warn!(snapshot = %self.key.0, ?path, "no path matches; nothing is loaded first");
                }
                found.groups.into_iter().map(|group| group.0).collect()
            }
            Err(error) => {
                tracing::warn!(snapshot = %self.key.0, %error, "can't resolve paths");
                Vec::new()
            }
        }
    }

    /// Ends the run and merges it into the profile in the store. No-op if it has ended already.
    fn save(&self) {
        let known = self.profile.get().and_then(Option::as_ref);
        let Some(run) = self.tracker.finish(&self.index, known) else { return };
        let (id, label, remote) = (self.key.0, self.load.label.clone(), self.remote.clone());
        let inner = Arc::clone(&self.inner);
        let save = async move {
            if let Some(how) = save(remote, id, label, run).await {
                inner.totals.recorded(how);
            }
        };
        self.inner.tasks.spawn_on(save, &self.inner.runtime);
    }

    fn status(&self) -> LoadingStatus {
        let TrackerStats { touched, loading } = self.tracker.stats();
        let phase = match loading.map(|loading| loading.phase) {
            None => "off",
            Some(Phase::Preparing) => "preparing",
            Some(Phase::First) => "first",
            Some(Phase::Rest) => "rest",
            Some(Phase::Resting) => "resting",
            Some(Phase::Done) => "done",
        };
        let loading = loading.unwrap_or_default();
        LoadingStatus {
            snapshot: self.key.0,
            store: self.key.1.clone(),
            load: self.load.clone(),
            profile_runs: self.profile.get().and_then(Option::as_ref).map(Profile::runs),
            recording: self.tracker.is_recording(),
            phase: phase.to_owned(),
            groups: self.index.group_count(),
            looked: loading.probed,
            here: loading.here,
            fetched: loading.fetched,
            fetched_bytes: loading.fetched_bytes,
            used_bytes: loading.used_bytes,
            given_up: loading.given_up,
            touched,
        }
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.save();
    }
}

/// Merges a run into its profile. Returns `None` if the store is read-only.
async fn save(remote: Remote, id: SnapshotId, label: ProfileLabel, run: Run) -> Option<Recorded> {
    match remote.merge_profile(&id, &label, &run).await {
        Ok(_) => {
            tracing::info!(%id, %label, groups = run.len(), "recorded a start");
            Some(Recorded::Saved)
        }
        Err(StoreError::ReadOnly { .. }) => None,
        Err(error) => {
            tracing::warn!(%error, %id, "can't record a start");
            Some(Recorded::Failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use inlay_store::remote::PlainHttp;
    use inlay_trace::Served;
    use inlay_trace::record::Wanted;

    use super::*;

    #[tokio::test]
    async fn a_trace_shows_the_outcome_of_a_profile_fetch() {
        let dir = tempfile::tempdir().unwrap();
        let url = dir.path().to_str().unwrap();
        let config = crate::config::store_config(url, PlainHttp::LoopbackOnly);
        let remote = Remote::open(&config).unwrap();
        let recorder = Recorder::default();
        let trackings = Trackings::new(Handle::current(), TaskTracker::new(), recorder.clone());
        let id = inlay_snapshots::empty_id();
        let fetched = async |label: &str| {
            let wanted = Wanted { events: 8, ..Wanted::default() };
            let recording = recorder.begin(wanted).unwrap();
            let load = LoadOptions { label: label.parse().unwrap(), ..LoadOptions::default() };
            let profile = trackings.fetch(&remote, id, &load).await.unwrap();
            assert_eq!(profile, None);
            recorder.end(&recording);
            let served = Served { requests: 0, time: 0, reads: 0 };
            let fetches = recording.events(clock::now(), served).fetches;
            fetches.into_iter().map(|fetch| fetch.outcome).collect::<Vec<_>>()
        };
        let default = ProfileLabel::default().to_string();
        assert_eq!(fetched(&default).await, [FetchOutcome::Ok]);
        let profiles = dir.path().join("profiles").join(id.to_string());
        std::fs::create_dir_all(&profiles).unwrap();
        std::fs::write(profiles.join("own.profile"), "damaged").unwrap();
        assert_eq!(fetched("own").await, [FetchOutcome::Failed]);
        assert_eq!(fetched(&default).await, [FetchOutcome::Ok]);
        std::fs::write(profiles.join(format!("{default}.profile")), "damaged").unwrap();
        assert_eq!(fetched(&default).await, [FetchOutcome::Failed]);
        assert_eq!(fetched("other").await, [FetchOutcome::Failed]);
    }
}
