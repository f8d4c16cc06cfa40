//! How each attached snapshot is loaded ahead of its readers, and what is learned from their reads.
//!
//! A snapshot that is attached several times, whole or in parts, is tracked once. What was learned is
//! merged into its profile in the store when a start is over: when nothing new is touched any more, or
//! when the snapshot is detached.

use std::collections::HashMap;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use inlay_prefetch::scheduler::{Extent, Known, Phase, Plan, Urgency};
use inlay_store::format::Index;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::profile::{Profile, ProfileLabel, Run};
use inlay_store::remote::{Remote, StoreError};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::api::{CacheUse, LoadOptions, LoadingShown, Prefetch, RecordProfile, StoreRef};
use super::metrics::{Loaded, Recorded, StartTotals};
use super::stores::Store;
use crate::content::{Groups, Tracker, TrackerFigures, guess};
use crate::mount::PathText;
use crate::snapshots::{PathPart, groups_of_paths};
use crate::trace::record::{About, Fetched, Recorder, Source};
use crate::trace::{FetchClass, FetchOutcome, clock};

/// What makes two attached snapshots the same to readers.
type Key = (SnapshotId, StoreRef, CacheUse);
/// A profile that is being fetched.
pub(super) type Early = JoinHandle<Option<Profile>>;

/// All tracked snapshots. Clones share everything.
#[derive(Clone)]
pub(super) struct Trackings {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Handle,
    tasks: TaskTracker,
    known: Mutex<HashMap<Key, Weak<Tracking>>>,
    recorder: Recorder,
    totals: StartTotals,
}

/// One tracked snapshot. When the last of its slots is forgotten, what was learned is saved.
pub(super) struct Tracking {
    key: Key,
    load: LoadOptions,
    index: Index,
    remote: Remote,
    tracker: Arc<Tracker>,
    source: Arc<Source>,
    profile: OnceLock<Option<Profile>>,
    /// Slots that somebody may still look into.
    visible: AtomicUsize,
    inner: Arc<Inner>,
}

/// Whether a start is seen from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// The snapshot is attached now.
    Now,
    /// An earlier daemon has attached it: what it saw is lost, and the rest would teach nothing.
    Earlier,
}

impl Trackings {
    pub(super) fn new(runtime: Handle, tasks: TaskTracker, recorder: Recorder) -> Self {
        let (known, totals) = Default::default();
        Self { inner: Arc::new(Inner { runtime, tasks, known, recorder, totals }) }
    }

    /// Begins to fetch a snapshot's profile, so that it comes at the same time as the index.
    pub(super) fn fetch(&self, remote: &Remote, id: SnapshotId, load: &LoadOptions) -> Early {
        let (remote, load) = (remote.clone(), load.clone());
        let recorder = self.inner.recorder.clone();
        let fetch = async move {
            if load.prefetch == Prefetch::Off {
                return None;
            }
            let asked = clock::now();
            let profile = profile(&remote, id, &load).await;
            if recorder.is_on() {
                recorder.fetched(&Fetched {
                    class: FetchClass::ProfileRecord,
                    snapshot: id,
                    times: [asked, 0, clock::now()],
                    bytes: 0,
                    outcome: FetchOutcome::Ok,
                });
            }
            profile
        };
        self.inner.tasks.spawn_on(fetch, &self.inner.runtime)
    }

    /// The tracking of a snapshot whose slot is about to be attached: shared with its other slots.
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
                store: shown(&key.1),
                watch: store.watch(),
                index: index.clone(),
            }),
            profile: OnceLock::new(),
            visible: AtomicUsize::new(1),
            inner: Arc::clone(&self.inner),
            load,
        });
        if tracking.load.record == RecordProfile::Off {
            // Nothing is written down from the beginning.
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

    /// Saves what starts have taught that are over.
    pub(super) fn end_runs(&self) {
        for tracking in self.all() {
            if tracking.tracker.is_recording() && tracking.tracker.is_over() {
                tracking.save();
            }
        }
    }

    /// What was loaded ahead in all, and how many starts were recorded and could not be.
    pub(super) fn totals(&self) -> (Loaded, (u64, u64)) {
        let all = self.all();
        let totals = &self.inner.totals;
        let loading = || all.iter().filter_map(|one| one.tracker.figures().loading).collect();
        (totals.loaded(loading), totals.recordings())
    }

    /// How far each is.
    pub(super) fn list(&self) -> Vec<LoadingShown> {
        let mut shown: Vec<_> = self.all().iter().map(|tracking| tracking.shown()).collect();
        shown.sort_by_key(|shown| shown.snapshot.to_string());
        shown
    }
}

/// A store as a trace shows it, which is carried elsewhere: without what may be a password.
fn shown(store: &StoreRef) -> String {
    let Some(url) = &store.url else { return "the state's own store".to_owned() };
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let host = rest.split('/').next().unwrap_or_default().len();
            let from = rest.get(..host).and_then(|host| host.rfind('@')).map_or(0, |at| at + 1);
            format!("{scheme}://{}", rest.get(from..).unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

async fn profile(remote: &Remote, id: SnapshotId, load: &LoadOptions) -> Option<Profile> {
    let default = ProfileLabel::default();
    if load.label == default {
        return found(remote.profile(&id, &default).await);
    }
    // A new label begins with what is known of all starts.
    let (own, all) = tokio::join!(remote.profile(&id, &load.label), remote.profile(&id, &default));
    found(own).or_else(|| found(all))
}

fn found(profile: Result<Option<Profile>, StoreError>) -> Option<Profile> {
    profile.unwrap_or_else(|error| {
        // It only says what comes first.
        tracing::debug!(%error, "a profile can't be used");
        None
    })
}

impl Tracking {
    /// What reads are told to.
    pub(super) fn tracker(&self) -> &Arc<Tracker> {
        &self.tracker
    }

    /// What reads are recorded by.
    pub(super) fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// One more slot. False if the last one is out of sight already.
    fn join(&self) -> bool {
        let more = |count: usize| (count > 0).then_some(count + 1);
        self.visible.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// A slot is out of sight. After the last one, nothing is loaded any more.
    pub(super) fn leave(&self) {
        if self.visible.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.inner.totals.end(|| self.tracker.end_loading());
        }
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
            // It may look at much of the index.
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
        // Nobody sets it twice: this is called once.
        drop(self.profile.set(profile));
        if let Some(loading) = self.tracker.loading() {
            loading.plan(Plan { groups, first, known, extent });
        }
        self.index.release_pages();
    }

    /// The groups of the paths that come before everything else.
    fn hinted(&self) -> Vec<u32> {
        let whole = |path: &PathText| PathPart::whole(path.to_path().into_os_string().into_vec());
        let paths: Vec<PathPart> = self.load.first.iter().map(whole).collect();
        match groups_of_paths(&self.index, &paths) {
            Ok(found) => {
                for place in found.missing {
                    let path = self.load.first.get(place).map(PathText::to_path);
                    tracing::warn!(snapshot = %self.key.0, ?path, "nothing is there to load first");
                }
                found.groups.into_iter().map(|group| group.0).collect()
            }
            Err(error) => {
                tracing::warn!(snapshot = %self.key.0, %error, "paths can't be looked up");
                Vec::new()
            }
        }
    }

    /// Ends the run and merges it into the profile in the store, unless it has ended already.
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

    fn shown(&self) -> LoadingShown {
        let TrackerFigures { touched, loading } = self.tracker.figures();
        let phase = match loading.map(|loading| loading.phase) {
            None => "off",
            Some(Phase::Preparing) => "preparing",
            Some(Phase::First) => "first",
            Some(Phase::Rest) => "rest",
            Some(Phase::Resting) => "resting",
            Some(Phase::Done) => "done",
        };
        let loading = loading.unwrap_or_default();
        LoadingShown {
            snapshot: self.key.0,
            store: self.key.1.clone(),
            load: self.load.clone(),
            profile_runs: self.profile.get().and_then(Option::as_ref).map(Profile::runs),
            recording: self.tracker.is_recording(),
            phase: phase.to_owned(),
            groups: self.index.group_count(),
            looked: loading.looked,
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

/// Nothing if there is nowhere to write to.
async fn save(remote: Remote, id: SnapshotId, label: ProfileLabel, run: Run) -> Option<Recorded> {
    match remote.merge_profile(&id, &label, &run).await {
        Ok(_) => {
            tracing::info!(%id, %label, groups = run.len(), "a start was recorded");
            Some(Recorded::Saved)
        }
        Err(StoreError::ReadOnly { .. }) => None,
        Err(error) => {
            tracing::warn!(%error, %id, "what a start has read could not be recorded");
            Some(Recorded::Failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_shows_no_password() {
        let of = |url: &str| shown(&StoreRef { url: Some(url.to_owned()), plain_http: false });
        assert_eq!(of("s3://bucket/prefix"), "s3://bucket/prefix");
        assert_eq!(of("https://me:secret@host/a@b?sig=x"), "https://host/a@b");
        assert_eq!(of("/srv/store"), "/srv/store");
    }
}
