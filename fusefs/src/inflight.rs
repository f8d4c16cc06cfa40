//! Records requests that were read from the kernel and not answered yet, for kernels that cannot
//! resend them: `FUSE_NOTIFY_RESEND` came with Linux 6.9.
//!
//! On such a kernel, a request that a killed server had read would hang forever. So requests are
//! kept in the ledger's memfd, which outlives the server:
//! - fuser reads requests into that file ([`buffers`]). The kernel's copy is the record, so a
//!   request is never in the server's private memory only.
//! - A request that outlives its thread's turn (a read that waits for the store, or any request for
//!   a snapshot that is not open yet) is copied to a record of its own before the thread reads the
//!   next one.
//!
//! The next server answers the requests it finds. If the dead server had answered already, the
//! kernel rejects the second reply with `ENOENT`, which is harmless.

mod buffers;
mod log;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, write};

use crate::kind::ConnectionKind;
use buffers::of_thread;
pub(crate) use buffers::{Recorded, THREADS_MAX, answered_by_thread, lend};
use log::{Log, LogPosition};
pub(crate) use text::{RequestText, Unique};

/// State of a recorded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting to be replayed.
    Left,
    /// A thread works on it.
    Asked,
}

type RequestKey = (ConnectionKind, Unique);

/// The recorded requests of a host's server.
#[derive(Debug)]
pub(crate) struct InFlight {
    book: Mutex<InflightBook>,
    /// Eventfds per connection, readable when requests may be ready for replay.
    wakes: BTreeMap<ConnectionKind, OwnedFd>,
}

#[derive(Debug)]
struct InflightBook {
    log: Log,
    known: HashMap<RequestKey, RecordedRequest>,
}

/// A recorded request.
#[derive(Debug)]
struct RecordedRequest {
    place: LogPosition,
    /// Node ID of the request.
    node: u64,
    stage: Stage,
}

impl InFlight {
    /// Takes over the requests that earlier servers left in the memfd `file`. All of them wait for
    /// replay.
    pub(crate) fn take_over(file: &Arc<OwnedFd>) -> io::Result<Self> {
        let (mut log, records) = Log::open(Arc::clone(file))?;
        let mut known = HashMap::new();
        for (place, kind, text) in records {
            let left = RecordedRequest { place, node: text.node(), stage: Stage::Left };
            known.insert((kind, text.unique()), left);
        }
        // Add to records before clearing buffers: after a crash in between, a request is in both
        // places and counts once.
        for (kind, text) in buffers::unanswered(file)? {
            if let std::collections::hash_map::Entry::Vacant(entry) =
                known.entry((kind, text.unique()))
            {
                let place = log.add(kind, &text)?;
                entry.insert(RecordedRequest { place, node: text.node(), stage: Stage::Left });
            }
        }
        buffers::clear(file)?;
        let wake = |kind| {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            Ok::<_, io::Error>((kind, eventfd(0, flags)?))
        };
        let wakes = ConnectionKind::ALL.into_iter().map(wake).collect::<Result<_, _>>()?;
        Ok(Self { book: Mutex::new(InflightBook { log, known }), wakes })
    }

    /// Returns the eventfd that becomes readable when requests of a connection may be ready for
    /// replay.
    pub(crate) fn wake(&self, kind: ConnectionKind) -> Option<BorrowedFd<'_>> {
        self.wakes.get(&kind).map(AsFd::as_fd)
    }

    /// Wakes the replay of a connection.
    pub(crate) fn look_again(&self, kind: ConnectionKind) {
        match self.wake(kind).map(|wake| write(wake, &1u64.to_ne_bytes())) {
            // It is readable already.
            Some(Ok(_) | Err(Errno::AGAIN)) | None => {}
            Some(Err(error)) => tracing::warn!(%error, "can't inspect waiting requests"),
        }
    }

    /// Records a request that this thread leaves unanswered, for replay.
    pub(crate) fn leave(&self, kind: ConnectionKind, unique: Unique) -> io::Result<()> {
        let mut book = self.book.lock();
        let key = (kind, unique);
        match book.known.get_mut(&key) {
            Some(known) => known.stage = Stage::Left,
            None => book.add(key, of_thread(unique), Stage::Left)?,
        }
        drop(book);
        self.look_again(kind);
        Ok(())
    }

    /// Records a request that another thread will answer, unless it has already `answered` it.
    pub(crate) fn hand_over(
        &self,
        kind: ConnectionKind,
        unique: Unique,
        answered: &AtomicBool,
    ) -> io::Result<()> {
        let mut book = self.book.lock();
        let key = (kind, unique);
        // Set under the same lock.
        if answered.load(Relaxed) || book.known.contains_key(&key) {
            return Ok(());
        }
        book.add(key, of_thread(unique), Stage::Asked)
    }

    /// Removes the record of a request that was answered.
    pub(crate) fn answered(
        &self,
        kind: ConnectionKind,
        unique: Unique,
        answered: Option<&AtomicBool>,
    ) {
        let mut book = self.book.lock();
        if let Some(answered) = answered {
            answered.store(true, Relaxed);
        }
        if let Some(known) = book.known.remove(&(kind, unique))
            && let Err(error) = book.log.remove(known.place)
        {
            tracing::warn!(%error, "can't remove the record of an answered request");
        }
    }

    /// Returns whether requests of a connection wait for replay.
    pub(crate) fn waits(&self, kind: ConnectionKind) -> bool {
        let book = self.book.lock();
        book.known.iter().any(|((of, _), known)| *of == kind && known.stage == Stage::Left)
    }

    /// Returns the waiting requests of a connection with a node ID that `ready` accepts, and marks
    /// them as asked.
    pub(crate) fn take_left(
        &self,
        kind: ConnectionKind,
        ready: impl Fn(u64) -> bool,
    ) -> io::Result<Vec<RequestText>> {
        let mut book = self.book.lock();
        let InflightBook { log, known } = &mut *book;
        let mut taken = Vec::new();
        for ((of, _), known) in known.iter_mut() {
            if *of == kind
                && known.stage == Stage::Left
                && ready(known.node)
                && let Some((_, text)) = log.read(known.place)?
            {
                known.stage = Stage::Asked;
                taken.push(text);
            }
        }
        // In order of arrival.
        taken.sort_by_key(RequestText::unique);
        Ok(taken)
    }

    /// Marks a taken request as waiting again, because its replay failed.
    pub(crate) fn put_back(&self, kind: ConnectionKind, unique: Unique) {
        if let Some(known) = self.book.lock().known.get_mut(&(kind, unique)) {
            known.stage = Stage::Left;
        }
    }
}

impl InflightBook {
    fn add(&mut self, key: RequestKey, text: Option<RequestText>, stage: Stage) -> io::Result<()> {
        let text = text.ok_or_else(|| io::Error::other("the thread has no such request"))?;
        let place = self.log.add(key.0, &text)?;
        self.known.insert(key, RecordedRequest { place, node: text.node(), stage });
        Ok(())
    }
}

/// Returns all requests that a dead server left unanswered in `file`. Used when no server takes
/// over.
pub(crate) fn unanswered(file: &OwnedFd) -> io::Result<Vec<(ConnectionKind, RequestText)>> {
    let records = log::read_all(file.as_fd())?;
    let mut all: Vec<_> = records.into_iter().map(|(_, kind, text)| (kind, text)).collect();
    all.extend(buffers::unanswered(file)?);
    all.sort_by_key(|(kind, text)| (*kind, text.unique()));
    all.dedup_by_key(|(kind, text)| (*kind, text.unique()));
    Ok(all)
}

/// Clears all recorded requests.
pub(crate) fn clear(file: &OwnedFd) -> io::Result<()> {
    log::clear(file)?;
    buffers::clear(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    const KIND: ConnectionKind = ConnectionKind::General;

    fn file() -> Arc<OwnedFd> {
        Arc::new(Ledger::create().unwrap())
    }

    fn uniques(texts: &[RequestText]) -> Vec<u64> {
        texts.iter().map(|text| text.unique().0).collect()
    }

    /// Records a request with a node ID equal to its own number.
    fn record(in_flight: &InFlight, unique: u64) {
        let text = RequestText::for_tests(unique, unique, 15);
        let mut book = in_flight.book.lock();
        book.add((KIND, text.unique()), Some(text), Stage::Asked).unwrap();
    }

    #[test]
    fn unanswered_requests_wait_for_the_next_server_in_order() {
        let file = file();
        let first = InFlight::take_over(&file).unwrap();
        for unique in [6, 2, 4] {
            record(&first, unique);
        }
        first.answered(KIND, Unique(4), None);
        assert_eq!(first.take_left(KIND, |_| true).unwrap(), []);
        drop(first);
        let next = InFlight::take_over(&file).unwrap();
        assert!(next.waits(KIND) && !next.waits(ConnectionKind::Plain));
        assert_eq!(uniques(&next.take_left(KIND, |_| true).unwrap()), [2, 6]);
        assert!(!next.waits(KIND));
        next.put_back(KIND, Unique(6));
        assert_eq!(uniques(&next.take_left(KIND, |_| true).unwrap()), [6]);
    }

    #[test]
    fn only_ready_requests_are_taken() {
        let in_flight = InFlight::take_over(&file()).unwrap();
        for unique in [2, 4] {
            record(&in_flight, unique);
            in_flight.leave(KIND, Unique(unique)).unwrap();
        }
        assert_eq!(uniques(&in_flight.take_left(KIND, |node| node == 4).unwrap()), [4]);
        assert!(in_flight.waits(KIND));
    }

    #[test]
    fn a_request_that_is_answered_before_it_is_recorded_is_not_recorded() {
        let in_flight = InFlight::take_over(&file()).unwrap();
        let answered = AtomicBool::new(false);
        in_flight.answered(KIND, Unique(8), Some(&answered));
        // This thread has no request, so recording would fail.
        in_flight.hand_over(KIND, Unique(8), &answered).unwrap();
        in_flight.hand_over(KIND, Unique(8), &AtomicBool::new(false)).unwrap_err();
    }

    #[test]
    fn the_keeper_lists_and_clears_unanswered_requests() {
        let file = file();
        let in_flight = InFlight::take_over(&file).unwrap();
        record(&in_flight, 2);
        let found = unanswered(&file).unwrap();
        assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [KIND]);
        clear(&file).unwrap();
        assert!(unanswered(&file).unwrap().is_empty());
    }
}
