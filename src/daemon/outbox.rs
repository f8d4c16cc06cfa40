//! Snapshots that are sealed on this host and on their way to their stores.
//!
//! Each store has a directory for them, `STATE/outbox/<digest>/`: `store.json` says which store, `objects`
//! is laid out as a store. One task carries them, tries again when a store can't be reached, and begins where
//! an earlier daemon has ended.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use inlay_store::ids::Digest;
use inlay_store::remote::{Near, Remote, Used};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::api::StoreRef;
use super::error::DaemonError;
use crate::mount::{make_private_dirs, write_whole};
use crate::snapshots::Waiting;
use crate::state::State;

/// The pause before a store that can't be reached is tried again: twice as long after each try.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LAST: Duration = Duration::from_mins(2);

/// Opens the store of a reference, past its outbox.
pub(super) type OpenFar = Box<dyn Fn(&StoreRef) -> Result<Remote, DaemonError> + Send + Sync>;

/// All outboxes. Clones share everything.
#[derive(Clone)]
pub(super) struct Outboxes {
    inner: Arc<Inner>,
}

struct Inner {
    state: State,
    open: OpenFar,
    all: Mutex<HashMap<StoreRef, Arc<Outbox>>>,
    /// There is more to carry.
    more: Notify,
    /// Something was carried.
    less: Notify,
    shipping: Mutex<Option<JoinHandle<()>>>,
}

/// What is on its way to one store.
pub(super) struct Outbox {
    store: StoreRef,
    dir: PathBuf,
    near: Near,
    load: Mutex<Load>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Load {
    /// Snapshots that are being sealed.
    sealing: usize,
    /// Snapshots that wait.
    waiting: usize,
}

/// A snapshot that is being sealed. When it is done, it is carried to its store.
pub(super) struct Sealing {
    outboxes: Outboxes,
    outbox: Arc<Outbox>,
}

impl Sealing {
    /// The directory that is looked into first.
    pub(super) fn near(&self) -> &Near {
        &self.outbox.near
    }

    /// It is sealed.
    pub(super) fn done(&self) {
        self.outbox.load.lock().waiting += 1;
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        self.outbox.load.lock().sealing -= 1;
        self.outboxes.inner.more.notify_one();
    }
}

impl Outboxes {
    /// Those of the state directory. What earlier daemons have sealed is found again.
    pub(super) fn open(state: &State, open: OpenFar) -> Result<Self, DaemonError> {
        let inner = Inner {
            state: state.clone(),
            open,
            all: Mutex::default(),
            more: Notify::new(),
            less: Notify::new(),
            shipping: Mutex::default(),
        };
        let outboxes = Self { inner: Arc::new(inner) };
        let dir = outboxes.dir();
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(outboxes),
            Err(error) => return Err(DaemonError::io("list", &dir)(error)),
        };
        for entry in entries.flatten() {
            let path = entry.path().join("store.json");
            let store = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let Some(store) = store else { continue };
            let outbox = outboxes.of(&store);
            let waiting = outbox.count();
            outbox.load.lock().waiting = waiting;
            if waiting > 0 {
                tracing::info!(waiting, "snapshots wait to be carried to their store");
            }
        }
        Ok(outboxes)
    }

    fn dir(&self) -> PathBuf {
        self.inner.state.root().join("outbox")
    }

    /// That of `store`.
    pub(super) fn of(&self, store: &StoreRef) -> Arc<Outbox> {
        let mut all = self.inner.all.lock();
        let outbox = all.entry(store.clone()).or_insert_with(|| {
            let url = store.url.as_deref().unwrap_or_default();
            let dir = self.dir().join(Digest::of(url.as_bytes()).to_hex());
            let near = Near::new(dir.join("objects"));
            Arc::new(Outbox { store: store.clone(), dir, near, load: Mutex::default() })
        });
        Arc::clone(outbox)
    }

    /// Begins to seal a snapshot for `store`. Blocks.
    pub(super) fn seal(&self, store: &StoreRef) -> Result<Sealing, DaemonError> {
        let outbox = self.of(store);
        make_private_dirs(outbox.near.dir())?;
        let path = outbox.dir.join("store.json");
        let failed = || DaemonError::io("write", &path);
        let json = serde_json::to_vec(store).map_err(|error| failed()(io::Error::other(error)))?;
        write_whole(&outbox.dir, &path, &json).map_err(failed())?;
        outbox.load.lock().sealing += 1;
        outbox.near.set_used(Used::Yes);
        Ok(Sealing { outboxes: self.clone(), outbox })
    }

    /// How many snapshots are not in their stores yet.
    pub(super) fn waiting(&self) -> usize {
        let all = self.inner.all.lock();
        all.values()
            .map(|outbox| {
                let load = *outbox.load.lock();
                load.waiting + load.sealing
            })
            .sum()
    }

    /// Waits at most `limit` until all are. Returns how many are not.
    pub(super) async fn drained(&self, limit: Duration) -> usize {
        let wait = async {
            loop {
                let notified = self.inner.less.notified();
                if self.waiting() == 0 {
                    return;
                }
                notified.await;
            }
        };
        // What is left is told either way.
        let _ = timeout(limit, wait).await;
        self.waiting()
    }

    /// Carries what there is and what comes, until [`Outboxes::stop`].
    pub(super) fn start(&self, runtime: &Handle) {
        let outboxes = self.clone();
        *self.inner.shipping.lock() = Some(runtime.spawn(async move { outboxes.run().await }));
    }

    /// Carries no more. What was not carried is found by the next daemon.
    pub(super) async fn stop(&self) {
        let shipping = self.inner.shipping.lock().take();
        if let Some(shipping) = shipping {
            shipping.abort();
            // That it was aborted is what was wanted.
            let _ = shipping.await;
        }
    }

    async fn run(&self) {
        let mut pause = PAUSE_FIRST;
        loop {
            let all: Vec<_> = self.inner.all.lock().values().cloned().collect();
            let mut failed = false;
            for outbox in all {
                if outbox.load.lock().waiting == 0 {
                    continue;
                }
                if let Err(error) = self.carry(&outbox).await {
                    let store = outbox.store.url.as_deref().unwrap_or("the embedded store");
                    tracing::warn!(store, %error, "sealed snapshots wait; trying again");
                    failed = true;
                }
            }
            if failed {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_LAST);
            } else {
                pause = PAUSE_FIRST;
                self.inner.more.notified().await;
            }
        }
    }

    async fn carry(&self, outbox: &Outbox) -> Result<(), DaemonError> {
        let far = (self.inner.open)(&outbox.store)?;
        let waiting = Waiting::open(outbox.near.dir())?;
        for id in waiting.list().await? {
            waiting.ship(id, &far, &self.inner.state).await?;
            tracing::info!(snapshot = %id, "a sealed snapshot is in its store");
            {
                let mut load = outbox.load.lock();
                load.waiting = load.waiting.saturating_sub(1);
            }
            self.inner.less.notify_waiters();
        }
        waiting.ship_names(&far).await?;
        let mut load = outbox.load.lock();
        if load.sealing == 0 {
            // Only now: nobody puts anything in.
            let left = outbox.count();
            load.waiting = left;
            if left == 0 {
                // What is left is of captures that did not come to their end.
                clear(outbox.near.dir());
                outbox.near.set_used(Used::No);
            }
        }
        drop(load);
        self.inner.less.notify_waiters();
        Ok(())
    }
}

impl Outbox {
    /// How many snapshots are in the directory, or names without theirs.
    fn count(&self) -> usize {
        let count = |part| fs::read_dir(self.near.dir().join(part)).map_or(0, Iterator::count);
        count("snapshots").max(count("names"))
    }

    /// The directory that is looked into before the store.
    pub(super) fn near(&self) -> &Near {
        &self.near
    }
}

fn clear(dir: &Path) {
    for part in ["snapshots", "names", "indexes", "blobs"] {
        match fs::remove_dir_all(dir.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "something stays in an outbox");
            }
            _ => {}
        }
    }
}
