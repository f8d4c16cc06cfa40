//! What the scheduler promises, checked at each of its decisions and after each event.

use inlay_prefetch::scheduler::{Phase, Request, Scheduler, Urgency, WorkId};
use inlay_prefetch::{Class, FetchLimits, GroupRef};

use crate::books::{Books, Held, Scope, WorkState};
use crate::link::Nanos;

/// What a check needs to see.
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

    /// The scheduler wants a request made, which the books do not have yet.
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

    /// One range of one blob that holds its groups and little else.
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

    /// Nothing is fetched twice, and everything for whom it is said to be.
    fn group(&self, request: &Request, want: &GroupRef) {
        let gid = self.books.gid(&want.key());
        let group = self.books.of(gid);
        let class = request.class;
        if group.busy.is_some() {
            self.broken(&format!("group {gid} is fetched twice at a time, now for {class}"));
        }
        // A reader may have looked just before the group came; then the driver finds it.
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

    /// Nothing is begun while something more urgent could be.
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

    /// Whether what a snapshot needs comes before what this request is for.
    fn stands_before(&self, work: &WorkState, request: &Request) -> bool {
        let Some(id) = work.id else { return false };
        let before = match (work.urgency, request.class) {
            (Urgency::Directory, Class::Directory) => Some(id) > request.work,
            (Urgency::Directory, class) => class > Class::Directory,
            (Urgency::Image, class) => class > Class::Profile,
        };
        before && !work.may_rest(self.now)
    }

    /// Under way is what fills the link, and one request more at most.
    fn window(&self, request: &Request) {
        let under_way = self.books.ahead_under_way;
        let len = request.range.end - request.range.start;
        let (window, _) = self.scheduler.window();
        // A single group may be larger than what was planned for it.
        let several = request.wants.len() > 1 && under_way + len > window;
        if under_way > 0 && (several || under_way >= window) {
            self.broken(&format!("{under_way} bytes and {len} more are ahead, of {window}"));
        }
    }

    /// The scheduler has nothing to do for now.
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

    /// Nothing is under way ahead of readers: so there must be nothing to do.
    fn idles(&self) {
        let works = &self.books.works;
        if works.iter().any(|work| work.is_preparing(self.now)) {
            return;
        }
        for work in works.iter().filter(|work| work.id.is_some() && !work.may_rest(self.now)) {
            // What was claimed is looked at with the rest.
            let scope = match work.urgency {
                Urgency::Image if !work.is_calm(self.now) => Scope::First,
                _ => Scope::All,
            };
            if let Some(number) = self.books.fetchable(work, scope) {
                self.broken(&format!("group {number} of {:?} could be loaded", work.id));
            }
        }
    }

    /// A snapshot has been detached: these requests go on.
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

    /// Nothing happens any more.
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
