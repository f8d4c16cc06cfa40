//! Ships sealed snapshots: several stores concurrently, the snapshots of one store in the order of
//! sealing, except that a failing one does not hold up the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use inlay_base::inject::{self, Step};
use inlay_snapshots::{ShipError, Shipped, Waiting};
use inlay_store::remote::{NameMove, NameRecord, Remote};
use tokio::task::{self, JoinError, JoinSet, block_in_place, spawn_blocking};
use tokio::time::sleep_until;

use super::queue::{Claim, QueueEntry};
use super::store_outbox::{Due, Outbox, Side};
use super::{Outboxes, conflict};
use crate::daemon::error::DaemonError;
use crate::daemon::timestamp::Moment;

/// Maximum number of stores shipped to concurrently.
const STORES_AT_ONCE: usize = 8;

/// Why an entry stays in its outbox for now.
struct NotYet {
    side: Side,
    error: String,
}

impl NotYet {
    fn here(error: &dyn std::fmt::Display) -> Self {
        Self { side: Side::Here, error: error.to_string() }
    }

    fn store(error: &dyn std::fmt::Display) -> Self {
        Self { side: Side::Store, error: error.to_string() }
    }
}

impl From<ShipError> for NotYet {
    fn from(error: ShipError) -> Self {
        match error {
            ShipError::Here(_) => Self::here(&error),
            ShipError::Store(_) => Self::store(&error),
        }
    }
}

/// Ships until aborted.
pub(super) async fn run(outboxes: Outboxes) {
    let mut tasks = JoinSet::new();
    let mut busy: HashMap<task::Id, Arc<Outbox>> = HashMap::new();
    loop {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for outbox in outboxes.all() {
            if busy.values().any(|one| Arc::ptr_eq(one, &outbox)) {
                continue;
            }
            match block_in_place(|| outbox.due(now)) {
                Due::Now if busy.len() < STORES_AT_ONCE => {
                    let task = tasks.spawn(ship_all(outboxes.clone(), Arc::clone(&outbox)));
                    busy.insert(task.id(), outbox);
                }
                // No capacity: the next task to end frees some.
                Due::Now | Due::Never => {}
                Due::At(at) => next = Some(next.map_or(at, |next| next.min(at))),
            }
        }
        let wake = async {
            match next {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = outboxes.inner.more.notified() => {}
            () = wake => {}
            Some(done) = tasks.join_next_with_id() => {
                let id = done.as_ref().map_or_else(JoinError::id, |(id, ())| *id);
                let outbox = busy.remove(&id);
                if let (Err(error), Some(outbox)) = (done, outbox) {
                    let path = outbox.dir.display();
                    tracing::error!(%path, %error, "shipping to a store panicked; it pauses");
                    block_in_place(|| outbox.pause(Instant::now()));
                }
            },
        }
    }
}

/// Ships all due entries of one outbox, until the store fails.
pub(super) async fn ship_all(outboxes: Outboxes, outbox: Arc<Outbox>) {
    while let Some(entry) = block_in_place(|| outbox.next(Instant::now())) {
        let shipped = match block_in_place(|| open(&outboxes, &outbox)) {
            Ok((far, waiting)) => ship(&outboxes, &outbox, &entry, &far, &waiting).await,
            Err(not_yet) => Err(not_yet),
        };
        let store = block_in_place(|| outbox.store());
        let store = store.url.as_deref().unwrap_or("the embedded store");
        match shipped {
            Ok(()) => {
                tracing::info!(snapshot = %entry.snapshot, store, "shipped a sealed snapshot");
            }
            Err(NotYet { side, error }) => {
                tracing::warn!(
                    snapshot = %entry.snapshot, store, error,
                    "can't ship a sealed snapshot; it waits on this host for a retry"
                );
                let now = Instant::now();
                block_in_place(|| outbox.failed(entry.sequence, side, error, now));
            }
        }
        outboxes.inner.changed.notify_waiters();
    }
}

fn open(outboxes: &Outboxes, outbox: &Outbox) -> Result<(Remote, Waiting), NotYet> {
    let far = (outboxes.inner.open)(&outbox.store()).map_err(|error| NotYet::store(&error))?;
    let waiting = Waiting::open(outbox.objects.dir()).map_err(|error| NotYet::here(&error))?;
    Ok((far, waiting))
}

/// Ships one snapshot, moves its name, and removes it from the queue.
async fn ship(
    outboxes: &Outboxes,
    outbox: &Arc<Outbox>,
    entry: &QueueEntry,
    far: &Remote,
    waiting: &Waiting,
) -> Result<(), NotYet> {
    let objects = match waiting.ship(entry.snapshot, far, &outboxes.inner.state).await? {
        Shipped::Now(objects) => objects,
        Shipped::Before => Vec::new(),
    };
    // A later snapshot may have taken over the name since.
    let claim = block_in_place(|| {
        outbox.with_queue(|queue| queue.get(entry.sequence)?.name.clone()).flatten()
    });
    if let Some(claim) = claim {
        move_name(outbox, entry, &claim, far, (outboxes.inner.clock)()).await?;
    }
    let (outbox, sequence) = (Arc::clone(outbox), entry.sequence);
    let finished = spawn_blocking(move || outbox.finish(sequence, objects)).await;
    finished
        .map_err(|_| NotYet::here(&DaemonError::Panicked))?
        .map_err(|error| NotYet::here(&error))
}

/// Points the name at the snapshot, unless it was moved elsewhere since the snapshot was sealed.
async fn move_name(
    outbox: &Outbox,
    entry: &QueueEntry,
    claim: &Claim,
    far: &Remote,
    now: Moment,
) -> Result<(), NotYet> {
    let outbox_dir = &outbox.objects;
    if !outbox_dir.has_name(&claim.name) {
        let name = claim.name.as_str();
        tracing::info!(name, snapshot = %entry.snapshot, "skipping a name that this host has set since");
        return Ok(());
    }
    let sealed = now.earliest_wall_of(&entry.sealed);
    let record = NameRecord {
        name: claim.name.clone(),
        id: entry.snapshot,
        updated: sealed.as_secs(),
        updated_ns: sealed.subsec_nanos(),
    };
    let allowed = block_in_place(|| outbox.with_queue(|queue| queue.allowed(entry, &now)));
    let allowed = allowed.ok_or_else(|| NotYet::here(&"the queue can't be read"))?;
    let moved = far.move_name(&record, |found| allowed.permits(found)).await;
    let moved = moved.map_err(|error| NotYet::store(&error))?;
    inject::point(Step::NameStored).map_err(|error| NotYet::here(&error))?;
    block_in_place(|| match moved {
        NameMove::Refused { found } if found.as_ref().is_none_or(|it| it.id != entry.snapshot) => {
            outbox_dir.note(&claim.name, found.as_ref().map(|found| found.id));
            conflict::keep(outbox_dir, entry, claim, found.as_ref())
                .map_err(|error| NotYet::here(&error))
        }
        NameMove::Moved { .. } | NameMove::There | NameMove::Refused { .. } => {
            outbox_dir.note(&claim.name, Some(entry.snapshot));
            conflict::forget(outbox_dir, &claim.name).map_err(|error| NotYet::here(&error))
        }
    })
}
