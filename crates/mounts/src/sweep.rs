//! Polls the kernel for mounts that have ended, and cleans up after them.
//!
//! The kernel is queried without the table's lock: without statmount(2), a query reads files of all
//! processes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::error::MountError;
use super::namespace::Namespace;
use super::record::{MountRecord, View};
use super::table::{Live, Mounts, Phase, Table};
use super::upper::{self, Upper};

/// The polling interval for an overlay that is still in use: initial and maximum. It doubles with
/// each poll.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_LAST: Duration = Duration::from_secs(20);

/// The polling interval for mounts in other namespaces.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(2);

/// A mount to query, copied from the table.
struct Query {
    record: MountRecord,
    phase: Phase,
    /// The directory of its changes, if the table holds its lock.
    base: Option<PathBuf>,
}

/// The answer to a query.
enum Answer {
    /// Nothing of the mount is left.
    Over,
    /// It is no longer visible, but its overlay may be in use: poll again after this pause.
    Ending(Duration),
    /// It is still mounted.
    Mounted,
}

impl Mounts {
    /// Cleans up after mounts that have ended. Returns when to poll again even if no change is
    /// reported; `None`: only after a reported change.
    pub fn sweep(&self) -> Option<Duration> {
        self.look_at(|_| true);
        if self.damaged().is_empty() {
            let unclaimed = std::mem::take(&mut *self.unclaimed.lock());
            drop(unclaimed);
        }
        let own = Namespace::own().ok();
        let now = Instant::now();
        let table = self.table.lock();
        let waits = table.live.iter().filter_map(|live| match live.phase {
            Phase::Ending { again, .. } => Some(again.saturating_duration_since(now)),
            Phase::Mounted if own.as_ref().is_some_and(|own| live.record.seen.is_in(own)) => None,
            // The kernel does not report changes in other namespaces.
            Phase::Mounted => Some(LOOK_ELSEWHERE),
        });
        waits.min()
    }

    /// Cleans up after those of the `wanted` mounts that have ended.
    pub(super) fn look_at(&self, wanted: impl Fn(&Live) -> bool) {
        let now = Instant::now();
        let queries: Vec<Query> = {
            let table = self.table.lock();
            let due = table.live.iter().filter(|live| live.is_due(now) && wanted(live));
            due.map(Live::query).collect()
        };
        for query in queries {
            let (answer, adopted) = query.ask();
            // A concurrent call may have asked the same: what has ended stays so.
            let ended = self.table.lock().take_answer(&query, &answer, adopted, now);
            let Some(live) = ended else { continue };
            let number = live.record.seen.number();
            self.finish(live);
            let mut table = self.table.lock();
            table.finishing.remove(&number);
            table.to_undo.remove(&number);
            drop(table);
            self.settled.notify_waiters();
        }
    }

    /// Locks the upper directories of recovered mounts.
    pub(super) fn adopt_uppers(&self) {
        for live in &mut self.table.lock().live {
            live.upper = adopt(&live.record);
        }
    }
}

impl Table {
    /// Applies an answer, unless the mount is no longer here. Returns the mount if it is over.
    fn take_answer(
        &mut self,
        query: &Query,
        answer: &Answer,
        adopted: Option<Upper>,
        now: Instant,
    ) -> Option<Live> {
        let at = self.live.iter().position(|live| live.record.seen == query.record.seen)?;
        let live = self.live.get_mut(at)?;
        if live.upper.is_none() {
            live.upper = adopted;
        }
        match *answer {
            Answer::Over => {
                let live = self.live.swap_remove(at);
                let seen = &live.record.seen;
                self.finishing.insert(seen.number(), (seen.namespace(), live.at.clone()));
                return Some(live);
            }
            Answer::Ending(pause) if live.phase == query.phase => {
                live.phase = Phase::Ending { again: now + pause, pause };
            }
            Answer::Ending(_) | Answer::Mounted => {}
        }
        None
    }
}

impl Live {
    fn is_due(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Mounted => true,
            Phase::Ending { again, .. } => again <= now,
        }
    }

    fn query(&self) -> Query {
        let base = self.upper.as_ref().map(|upper| upper.base().to_owned());
        Query { record: self.record.clone(), phase: self.phase, base }
    }
}

impl Query {
    /// Queries the kernel. If the answer is unknown, the mount counts as alive: to keep serving it
    /// is the lesser evil. Also returns its upper directory, if it was locked only now.
    fn ask(&self) -> (Answer, Option<Upper>) {
        let pause = match self.phase {
            Phase::Mounted => match self.record.seen.is_mounted() {
                Ok(false) => LOOK_FIRST,
                Ok(true) => return (Answer::Mounted, None),
                Err(error) => {
                    tracing::warn!(%error, "can't tell whether a mount exists");
                    return (Answer::Mounted, None);
                }
            },
            Phase::Ending { pause, .. } => (pause * 2).min(LOOK_LAST),
        };
        let adopted = if self.base.is_none() { adopt(&self.record) } else { None };
        match self.is_used(adopted.as_ref()) {
            Ok(false) => return (Answer::Over, adopted),
            Ok(true) => {}
            Err(error) => tracing::warn!(%error, "can't tell whether changes are still being made"),
        }
        (Answer::Ending(pause), adopted)
    }

    /// Reports whether its overlay is in use.
    fn is_used(&self, adopted: Option<&Upper>) -> Result<bool, MountError> {
        match (&self.record.view, adopted.map(Upper::base).or(self.base.as_deref())) {
            (View::ReadOnly, _) => Ok(false),
            (View::Writable { .. }, Some(base)) => upper::is_mounted(base),
            // A daemon that died during cleanup may have removed the directory already.
            (View::Writable { upper, .. }, None) => Ok(upper.to_path().exists()),
        }
    }
}

/// Locks the upper directory of a recovered mount. Best effort: another daemon may be about to
/// release it; the next poll retries.
fn adopt(record: &MountRecord) -> Option<Upper> {
    let View::Writable { upper, keep } = &record.view else { return None };
    match Upper::adopt(&upper.to_path(), *keep) {
        Ok(upper) => Some(upper),
        Err(error) => {
            tracing::debug!(%error, "an upper directory is still in use");
            None
        }
    }
}
