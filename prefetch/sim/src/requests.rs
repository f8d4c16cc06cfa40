//! Runs one request of the simulated driver end to end: the steps of `batch.rs`.

use std::collections::VecDeque;
use std::time::Duration;

use inlay_prefetch::scheduler::{Failed, Kept, Request, RequestId, Settled};
use inlay_prefetch::{Class, FetchLimits, GroupRef};

use crate::link::Nanos;
use crate::permits::Permits;
use crate::readers::Answer;
use crate::reference::{Gid, Held};
use crate::world::{Event, World, moment};

/// Store attempts of a demand request, and of a prefetch request.
const ATTEMPTS: u32 = 8;
const ATTEMPTS_AHEAD: u32 = 2;

/// Decode and insert threads, and the insert backlog.
pub(crate) struct Threads {
    decoders: Permits<DecodeJob>,
    inserters: Permits<Step>,
    /// Low-priority threads that decode and insert prefetched groups.
    workers: Permits<Step>,
    backlog: u64,
}

impl Threads {
    pub(crate) fn new(limits: &FetchLimits) -> Self {
        Self {
            decoders: Permits::new(limits.decoders.max(1)),
            inserters: Permits::new(limits.inserters.max(1)),
            workers: Permits::new(limits.ahead_workers.max(1)),
            backlog: limits.insert_backlog_bytes,
        }
    }
}

/// A job of a worker thread.
#[derive(Debug, Clone, Copy)]
enum Step {
    Decode(DecodeJob),
    Insert(RequestId),
}

/// A group to decode.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecodeJob {
    id: RequestId,
    gid: Gid,
    ahead: bool,
}

/// Progress of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestPhase {
    Begins,
    Fetches,
    Decodes,
    Inserts,
}

/// Whether the request was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Told,
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) request: Request,
    /// Groups that were not in the cache when the task started.
    pub(crate) wants: Vec<GroupRef>,
    /// When the store request was sent, and its length.
    began: Nanos,
    len: u64,
    /// Bytes that have not arrived, of the range the scheduler requested.
    left: u64,
    phase: RequestPhase,
    stop: Stop,
    /// Maximum concurrent responses and maximum bytes in flight so far.
    beside: (usize, u64),
    decoding: usize,
    landed: VecDeque<Gid>,
    buffers: u64,
    backlog: u64,
}

impl Run {
    pub(crate) fn stop(&mut self) {
        self.stop = Stop::Told;
    }

    /// Returns whether it uses bandwidth and was not cancelled.
    pub(crate) fn is_going_on(&self) -> bool {
        matches!(self.phase, RequestPhase::Begins | RequestPhase::Fetches) && self.stop == Stop::No
    }
}

impl World {
    /// Starts a request of the scheduler.
    pub(crate) fn start(&mut self, request: Request) {
        let id = request.id;
        for want in &request.wants {
            let gid = self.books.gid(&want.key());
            self.books.unhint(gid);
            let group = self.books.group(gid);
            group.busy = Some(id);
            group.claimed = true;
        }
        let used = self.books.used(request.class);
        used.requests += 1;
        used.bytes += request.buffer_bytes;
        let len = request.range.end - request.range.start;
        if request.class == Class::Demand {
            self.outcome.demands += 1;
        } else {
            self.books.ahead_under_way += len;
        }
        self.outcome.requests += 1;
        self.outcome.asked_bytes += len;
        let run = Run {
            wants: request.wants.clone(),
            began: self.now,
            len,
            left: len,
            phase: RequestPhase::Begins,
            stop: Stop::No,
            beside: (1, 0),
            decoding: 0,
            landed: VecDeque::new(),
            buffers: request.buffer_bytes,
            backlog: 0,
            request,
        };
        self.runs.insert(id, run);
        let delay = self.rng.u64(0..20_000);
        self.after(delay, Event::Begin(id));
    }

    fn run_mut(&mut self, id: RequestId) -> &mut Run {
        self.runs.get_mut(&id).unwrap()
    }

    /// Starts a request's task: groups cached meanwhile are served from the cache.
    pub(crate) fn begin(&mut self, id: RequestId) {
        let mut open = Vec::new();
        for want in self.run_mut(id).wants.clone() {
            let gid = self.books.gid(&want.key());
            if self.books.of(gid).held == Held::Cached {
                self.landed(gid);
                self.forget(gid, Kept::Cached);
            } else {
                open.push(want);
            }
        }
        if open.is_empty() {
            self.ended(id);
            self.release(id);
            self.runs.remove(&id);
            return;
        }
        let start = open.iter().map(|want| want.group.offset).min().unwrap();
        let end = |want: &GroupRef| want.group.offset + u64::from(want.group.stored_len);
        let len = open.iter().map(end).max().unwrap() - start;
        let now = self.now;
        let run = self.run_mut(id);
        (run.wants, run.len, run.began, run.phase) = (open, len, now, RequestPhase::Fetches);
        if run.stop == Stop::Told {
            self.give_up_request(id, Failed::Cancelled);
            return;
        }
        let class = run.request.class;
        let attempts = if class == Class::Demand { ATTEMPTS } else { ATTEMPTS_AHEAD };
        self.link.ask(now, id, len, attempts);
        self.crowd();
    }

    /// Updates the maximum concurrency of all requests, for their time bounds.
    fn crowd(&mut self) {
        let under_way = self.runs.values().map(|run| run.left).sum();
        for run in self.runs.values_mut() {
            run.beside.0 = run.beside.0.max(self.link.passing());
            run.beside.1 = run.beside.1.max(under_way);
        }
    }

    /// Checks that a request took no longer than its concurrent load explains.
    fn in_time(&self, id: RequestId) {
        let run = &self.runs[&id];
        let bound = self.link.bound(run.len, run.beside.0, run.beside.1);
        let took = self.now - run.began;
        if bound.is_some_and(|bound| took > bound) {
            self.books.broken(self.now, &format!("{run:?} took {took} ns, not {bound:?}"));
        }
    }

    pub(crate) fn first_byte(&mut self, id: RequestId) {
        let after = Duration::from_nanos(self.now - self.runs[&id].began);
        self.scheduler.answered(moment(self.now), after);
        self.crowd();
    }

    pub(crate) fn bytes(&mut self, id: RequestId, bytes: u64) {
        self.account(id, bytes);
        self.scheduler.arrived(moment(self.now), id, bytes);
        self.pump();
    }

    /// Subtracts bytes that are no longer in flight.
    fn account(&mut self, id: RequestId, bytes: u64) {
        let run = self.run_mut(id);
        let bytes = bytes.min(run.left);
        run.left -= bytes;
        if run.request.class != Class::Demand {
            self.books.ahead_under_way -= bytes;
        }
    }

    /// Handles the last bytes of a response.
    pub(crate) fn whole(&mut self, id: RequestId, bytes: u64) {
        self.in_time(id);
        self.bytes(id, bytes);
        self.ended(id);
        let (decoders, now) = (self.runs[&id].wants.clone(), self.now);
        let run = self.run_mut(id);
        (run.phase, run.decoding) = (RequestPhase::Decodes, decoders.len());
        self.books.log(now, "came", id.0, 0);
        let gids = decoders.iter().map(|want| self.books.gid(&want.key()));
        let mut jobs: Vec<DecodeJob> = gids
            .map(|gid| DecodeJob { id, gid, ahead: self.books.of(gid).waiting.is_empty() })
            .collect();
        jobs.sort_by_key(|job| job.ahead);
        for job in jobs {
            if job.ahead {
                let step = self.threads.workers.acquire(Step::Decode(job));
                self.goes_on(step);
            } else if let Some(job) = self.threads.decoders.acquire(job) {
                self.decodes(job);
            }
        }
    }

    /// Ends a successful store request.
    fn ended(&mut self, id: RequestId) {
        let run = &self.runs[&id];
        let (class, left, fetched) =
            (run.request.class, run.left, run.phase == RequestPhase::Fetches);
        let (waited, len) = (Duration::from_nanos(self.now - run.began), run.len);
        self.account(id, left);
        self.books.used(class).requests -= 1;
        let now = moment(self.now);
        self.scheduler.ended(now, id);
        if class == Class::Demand && fetched {
            self.scheduler.served(now, waited, len);
        }
        self.pump();
    }

    /// Runs a step on a worker thread.
    fn goes_on(&mut self, step: Option<Step>) {
        match step {
            Some(Step::Decode(job)) => self.decodes(job),
            Some(Step::Insert(id)) => self.inserts(id),
            None => {}
        }
    }

    fn decodes(&mut self, job: DecodeJob) {
        let raw_len = self.books.of(job.gid).want.group.raw_len;
        let time = self.work_time(self.scenario.host.decode, raw_len);
        self.after(time, Event::Decoded(job));
    }

    pub(crate) fn decoded(&mut self, job: DecodeJob) {
        if job.ahead {
            let next = self.threads.workers.release();
            self.goes_on(next);
        } else if let Some(next) = self.threads.decoders.release() {
            self.decodes(next);
        }
        if self.rng.f64() < self.scenario.host.corrupt {
            self.corrupt(job.gid);
        } else {
            self.landed(job.gid);
            self.run_mut(job.id).landed.push_back(job.gid);
        }
        let run = self.run_mut(job.id);
        run.decoding -= 1;
        if run.decoding == 0 {
            self.insert(job.id);
        }
    }

    fn corrupt(&mut self, gid: Gid) {
        let key = self.books.of(gid).want.key();
        self.books.log(self.now, "corrupt", u64::from(gid), 0);
        self.books.group(gid).busy = None;
        let (settled, _) = self.scheduler.corrupt(moment(self.now), &key);
        self.settle(gid, settled, Failed::Store);
        self.pump();
    }

    /// Handles the outcome of a group that was not delivered.
    fn settle(&mut self, gid: Gid, settled: Settled, why: Failed) {
        let waiting = !self.books.of(gid).waiting.is_empty();
        match (settled, why) {
            (Settled::Again, _) if !waiting => self.books.broken(self.now, "nobody wants it again"),
            (Settled::Dropped, _) if waiting => {
                self.books.broken(self.now, "a reader is forgotten")
            }
            (Settled::Failed, Failed::Cancelled) => {
                self.books.broken(self.now, "a reader got an error for a request that was stopped");
            }
            (Settled::Failed, Failed::Store) => {
                self.books.store_failed(self.now, gid);
                self.answer(gid, Answer::Error);
            }
            (Settled::Dropped, Failed::Store) => self.books.store_failed(self.now, gid),
            (Settled::Again, _) | (Settled::Dropped, Failed::Cancelled) => {}
        }
    }

    fn landed(&mut self, gid: Gid) {
        let key = self.books.of(gid).want.key();
        self.books.group(gid).held = Held::Landed;
        self.scheduler.landed(&key);
        self.answer(gid, Answer::Bytes);
    }

    /// Ends a flight: the cache has inserted or rejected the group.
    fn forget(&mut self, gid: Gid, kept: Kept) {
        let key = self.books.of(gid).want.key();
        let group = self.books.group(gid);
        group.busy = None;
        match kept {
            Kept::Cached => group.held = Held::Cached,
            Kept::Nowhere => self.books.cache_failed(self.now, gid),
        }
        self.scheduler.forget(moment(self.now), &key, kept);
        self.wake_patient();
    }

    fn release(&mut self, id: RequestId) {
        let run = self.run_mut(id);
        let (class, bytes) = (run.request.class, std::mem::take(&mut run.buffers));
        self.books.used(class).bytes -= bytes;
        self.scheduler.release(class, bytes);
        self.pump();
    }

    /// Inserts decoded groups into the cache.
    fn insert(&mut self, id: RequestId) {
        let run = &self.runs[&id];
        let raw = run.landed.iter().map(|gid| u64::from(self.books.of(*gid).want.group.raw_len));
        let bytes: u64 = raw.sum();
        let class = run.request.class;
        self.run_mut(id).phase = RequestPhase::Inserts;
        if class == Class::Demand {
            if bytes > self.threads.backlog {
                for gid in std::mem::take(&mut self.run_mut(id).landed) {
                    self.forget(gid, Kept::Nowhere);
                }
                return self.done(id);
            }
            self.threads.backlog -= bytes;
            self.run_mut(id).backlog = bytes;
            self.release(id);
        }
        self.insert_next(id);
    }

    fn insert_next(&mut self, id: RequestId) {
        if self.runs[&id].landed.is_empty() {
            return self.done(id);
        }
        let step = self.insert_threads(id).acquire(Step::Insert(id));
        self.goes_on(step);
    }

    fn insert_threads(&mut self, id: RequestId) -> &mut Permits<Step> {
        match self.runs[&id].request.class {
            Class::Demand => &mut self.threads.inserters,
            _ => &mut self.threads.workers,
        }
    }

    fn inserts(&mut self, id: RequestId) {
        let gid = *self.runs[&id].landed.front().unwrap();
        let raw_len = self.books.of(gid).want.group.raw_len;
        let time = self.work_time(self.scenario.host.insert, raw_len);
        self.after(time, Event::Inserted(id));
    }

    pub(crate) fn inserted(&mut self, id: RequestId) {
        let gid = self.run_mut(id).landed.pop_front().unwrap();
        let lost = self.rng.f64() < self.scenario.host.not_kept;
        self.forget(gid, if lost { Kept::Nowhere } else { Kept::Cached });
        let next = self.insert_threads(id).release();
        self.goes_on(next);
        self.insert_next(id);
    }

    fn done(&mut self, id: RequestId) {
        self.threads.backlog += self.runs[&id].backlog;
        self.release(id);
        self.runs.remove(&id);
    }

    pub(crate) fn failed(&mut self, id: RequestId) {
        self.books.log(self.now, "failed", id.0, 0);
        self.give_up_request(id, Failed::Store);
    }

    pub(crate) fn stopped(&mut self, id: RequestId) {
        if self.runs.get(&id).is_some_and(|run| run.phase == RequestPhase::Fetches) {
            self.link.stop(self.now, id);
            self.give_up_request(id, Failed::Cancelled);
        }
    }

    fn give_up_request(&mut self, id: RequestId, why: Failed) {
        let run = self.run_mut(id);
        let (class, left) = (run.request.class, run.left);
        // No more bytes arrive; the scheduler learns of it slightly later.
        run.phase = RequestPhase::Decodes;
        self.release(id);
        self.account(id, left);
        let Some(run) = self.runs.remove(&id) else { return };
        self.books.used(class).requests -= 1;
        let gids: Vec<Gid> = run.wants.iter().map(|want| self.books.gid(&want.key())).collect();
        for gid in &gids {
            self.books.group(*gid).busy = None;
        }
        let settled = self.scheduler.failed(moment(self.now), id, why);
        if settled.len() != gids.len() {
            self.books.broken(self.now, &format!("{settled:?} are not {gids:?}"));
        }
        for (key, settled) in settled {
            let gid = self.books.gid(&key);
            self.settle(gid, settled, why);
        }
        self.pump();
    }
}
