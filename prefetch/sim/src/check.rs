//! Checks the scheduler's invariants at each of its decisions and after each event.

use inlay_prefetch::scheduler::{Phase, Request, Scheduler, Urgency, WorkId};
use inlay_prefetch::{Class, FetchLimits, GroupRef};

use crate::link::Nanos;
use crate::reference::{Books, Held, Scope, WorkState};

/// State that the checks need.
pub(crate) struct View<'a> {
    pub(crate) now: Nanos,
    pub(crate) limits: &'a FetchLimits,
    pub(crate) books: &'a Books,
    pub(crate) scheduler: &'a Scheduler,
}

impl View<'_> {
    fn broken(&self, what: &str) -> ! {
        self.books.broken(self.now, what)
    }

    /// Checks a request before it is entered into the books.
    pub(crate) fn fetch(&self, request: &Request) {
        self.shape(request);
        self.budgets(request);
        for want in &request.wants {
            self.group(request, want);
        }
        self.order(request);
        if request.class != Class::Demand {
            self.window(request);
        }
    }

    /// Checks that the range covers its groups with small gaps only.
    fn shape(&self, request: &Request) {
        let (mut at, mut buffers) = (request.range.start, 0);
        for want in &request.wants {
            let group = &want.group;
            let gap = group.offset.checked_sub(at);
            if want.blob != request.blob || gap.is_none_or(|gap| gap > self.limits.gap_bytes) {
                self.broken(&format!("{request:?} is not a run of neighbours"));
            }
            at = group.offset + u64::from(group.stored_len);
            buffers += u64::from(group.stored_len) + u64::from(group.raw_len);
        }
        let len = request.range.end - request.range.start;
        let alone = request.wants.len() == 1;
        if at != request.range.end
            || buffers != request.buffer_bytes
            || (len > self.limits.request_bytes && !alone)
        {
            self.broken(&format!("{request:?} has a wrong size"));
        }
    }

    fn budgets(&self, request: &Request) {
        let (used, requests, bytes) = match request.class {
            Class::Demand => {
                (self.books.demand, self.limits.demand_requests, self.limits.demand_bytes)
            }
            _ => (self.books.ahead, self.limits.ahead_requests, self.limits.ahead_bytes),
        };
        if used.requests >= requests {
            self.broken(&format!("{} requests for {}", used.requests + 1, request.class));
        }
        let alone = used.bytes == 0 && request.wants.len() == 1;
        if used.bytes + request.buffer_bytes > bytes && !alone {
            self.broken(&format!("more than {bytes} bytes of buffers for {}", request.class));
        }
    }

    /// Checks that no group is fetched twice or for the wrong class.
    fn group(&self, request: &Request, want: &GroupRef) {
        let gid = self.books.gid(&want.key());
        let group = self.books.of(gid);
        let class = request.class;
        if group.busy.is_some() {
            self.broken(&format!("group {gid} is fetched twice at a time, now for {class}"));
        }
        // A reader may have probed just before the group was cached; then the driver finds it.
        if group.held == Held::Cached && class != Class::Demand {
            self.broken(&format!("group {gid} is cached and fetched for {class}"));
        }
        match class {
            Class::Demand if group.waiting.is_empty() => {
                self.broken(&format!("no reader waits for group {gid}"));
            }
            Class::ReadAhead if !group.hinted => {
                self.broken(&format!("group {gid} is read ahead and nobody said so"));
            }
            Class::Directory | Class::Profile | Class::Rest => {
                let Some(work) = request.work.and_then(|id| self.books.work(id)) else {
                    self.broken(&format!("{:?} is not attached", request.work));
                };
                let mut numbers = (0u32..).zip(&work.groups).filter(|(_, one)| **one == gid);
                if !numbers.any(|(number, _)| work.may_load(number, class)) {
                    self.broken(&format!("group {gid} is not to be loaded for {class}"));
                }
                if class == Class::Rest && !work.is_calm(self.now) {
                    self.broken("the rest does not wait until a start is over");
                }
            }
            Class::Demand | Class::ReadAhead => {}
        }
    }

    /// Checks that nothing starts while a more urgent request could.
    fn order(&self, request: &Request) {
        let (class, books) = (request.class, self.books);
        if class > Class::Demand
            && let Some(group) = books.unserved().next()
        {
            self.broken(&format!("{class} comes before a reader of {:?}", group.want));
        }
        if class > Class::ReadAhead && !books.hinted.is_empty() {
            self.broken(&format!("{class} comes before read-ahead"));
        }
        if class < Class::Directory {
            return;
        }
        for work in books.works.iter().filter(|work| self.stands_before(work, request)) {
            let Some(id) = work.id else { continue };
            if work.is_preparing(self.now) {
                self.broken(&format!("{class} does not wait for the plan of {id:?}"));
            }
            let scope = match work.urgency {
                Urgency::Directory => Scope::All,
                Urgency::Image => Scope::First,
            };
            if let Some(number) = books.fetchable(work, scope) {
                self.broken(&format!(
                    "{class} of {:?} comes before group {number} of {id:?}",
                    request.work
                ));
            }
        }
    }

    /// Returns whether a snapshot's needs come before this request.
    fn stands_before(&self, work: &WorkState, request: &Request) -> bool {
        let Some(id) = work.id else { return false };
        let before = match (work.urgency, request.class) {
            (Urgency::Directory, Class::Directory) => Some(id) > request.work,
            (Urgency::Directory, class) => class > Class::Directory,
            (Urgency::Image, class) => class > Class::Profile,
        };
        before && !work.may_rest(self.now)
    }

    /// Checks that prefetch has at most the window in flight, plus one request.
    fn window(&self, request: &Request) {
        let under_way = self.books.ahead_under_way;
        let len = request.range.end - request.range.start;
        let (window, _) = self.scheduler.window();
        // A single group may be larger than planned.
        let several = request.wants.len() > 1 && under_way + len > window;
        if under_way > 0 && (several || under_way >= window) {
            self.broken(&format!("{under_way} bytes and {len} more are ahead, of {window}"));
        }
    }

    /// Checks that the scheduler, having no action left, is right to rest.
    pub(crate) fn rests(&self) {
        let books = self.books;
        let (limits, used) = (self.limits, books.demand);
        let room = limits.demand_bytes.saturating_sub(used.bytes);
        let fits = |bytes: u64| used.bytes == 0 || bytes <= room;
        let bytes = books.unserved().map(|group| {
            u64::from(group.want.group.stored_len) + u64::from(group.want.group.raw_len)
        });
        if let Some(largest) = bytes.max()
            && used.requests < limits.demand_requests
            && fits(largest)
        {
            self.broken("a reader waits although there is room for its request");
        }
        let idle = books.ahead.requests == 0 && books.ahead.bytes == 0 && books.looks == 0;
        if idle && books.unserved().next().is_none() {
            if !books.hinted.is_empty() {
                self.broken("nothing is read ahead although there is room");
            }
            self.idles();
        }
        let (_, bytes) = self.scheduler.gauges();
        if bytes != books.demand.bytes + books.ahead.bytes {
            self.broken(&format!("{bytes} bytes of buffers are not what is in use"));
        }
    }

    /// Checks that nothing can be loaded while prefetch is idle.
    fn idles(&self) {
        let works = &self.books.works;
        if works.iter().any(|work| work.is_preparing(self.now)) {
            return;
        }
        for work in works.iter().filter(|work| work.id.is_some() && !work.may_rest(self.now)) {
            // Claimed groups are probed with the rest.
            let scope = match work.urgency {
                Urgency::Image if !work.is_calm(self.now) => Scope::First,
                _ => Scope::All,
            };
            if let Some(number) = self.books.fetchable(work, scope) {
                self.broken(&format!("group {number} of {:?} could be loaded", work.id));
            }
        }
    }

    /// Checks the requests that continue after a detach.
    pub(crate) fn detached<'a>(
        &self,
        id: WorkId,
        going_on: impl Iterator<Item = (&'a Request, &'a [GroupRef])>,
    ) {
        for (request, wants) in going_on.filter(|(request, _)| request.work == Some(id)) {
            let waited =
                |want: &GroupRef| !self.books.of(self.books.gid(&want.key())).waiting.is_empty();
            if !wants.iter().any(waited) {
                self.broken(&format!("{:?} goes on after its snapshot is gone", request.id));
            }
        }
    }

    /// Checks the final state.
    pub(crate) fn quiet(&self) {
        let (books, scheduler) = (self.books, self.scheduler);
        let (flights, bytes) = scheduler.gauges();
        let queued: u64 = scheduler.queued_by_class().iter().sum();
        if flights != 0 || bytes != 0 || queued != 0 {
            self.broken(&format!("{flights} groups, {bytes} bytes, {queued} queued are left"));
        }
        if books.ahead_under_way != 0 || books.looks != 0 || !books.wanted.is_empty() {
            self.broken("something never ended");
        }
        if let Some(group) = books.groups.iter().find(|group| group.busy.is_some()) {
            self.broken(&format!("{:?} never came", group.want));
        }
        let now = crate::world::moment(self.now);
        for work in &books.works {
            let Some(id) = work.id else { continue };
            if let Some(number) = books.missing(work) {
                self.broken(&format!("group {number} of {id:?} was never loaded"));
            }
            let phase = scheduler.work(now, id).map(|figures| figures.phase);
            if work.plan.is_some() && phase != Some(Phase::Done) {
                self.broken(&format!("{id:?} is {phase:?} in the end"));
            }
        }
    }
}
