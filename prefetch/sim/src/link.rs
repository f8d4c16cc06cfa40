//! Models a link to a store in virtual time: latency, one bandwidth shared by all responses, and a
//! store that fails now and then. Exact: between two events, rates are constant.

use std::time::Duration;

use inlay_prefetch::scheduler::RequestId;

/// Nanoseconds since the start.
pub(crate) type Nanos = u64;

/// Arriving bytes are reported in steps of this size, as in the driver.
const TELL_BYTES: f64 = 65_536.0;
/// Stall timeout of an attempt, time budget of a request with all its attempts, and first retry
/// delay: as in the driver.
const STALL: Duration = Duration::from_secs(10);
const BUDGET: Duration = Duration::from_secs(25);
const BACKOFF: Duration = Duration::from_millis(50);

/// Parameters of a link.
#[derive(Debug, Clone)]
pub struct LinkModel {
    /// Time from a request to the first byte of its response, on an idle link.
    pub latency: Duration,
    /// Random extra latency, up to this fraction of `latency`.
    pub jitter: f64,
    /// Bytes per second, for all responses together.
    pub rate: f64,
    /// How the bandwidth is shared.
    pub sharing: Sharing,
    /// Fault rates.
    pub faults: Faults,
    /// Changes over time, sorted by time.
    pub weather: Vec<Weather>,
}

/// How responses share the bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All at the same rate, like TCP through a bottleneck with a short queue.
    Fair,
    /// One after the other, in the order in which they start: a bottleneck with a long queue.
    Fifo,
}

/// Fault probabilities per attempt, from 0 to 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The store returns an error.
    pub errors: f64,
    /// The store does not respond.
    pub stalls: f64,
    /// The response is truncated.
    pub cuts: f64,
}

/// A change of the link.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Start time.
    pub from: Duration,
    /// Factor on the model's rate.
    pub rate: f64,
    /// Factor on the model's latency.
    pub latency: f64,
}

/// What the driver sees of the link.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sign {
    /// The first byte arrived.
    First(RequestId),
    /// This many more bytes arrived.
    Bytes(RequestId, u64),
    /// The last bytes arrived.
    End(RequestId, u64),
    /// All attempts failed.
    Failed(RequestId),
}

/// One request, across its attempts.
#[derive(Debug, Clone, Copy)]
struct Asked {
    id: RequestId,
    len: u64,
    began: Nanos,
    attempts_left: u32,
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Ask,
    Answer,
    Fail,
}

#[derive(Debug)]
struct Flow {
    asked: Asked,
    passed: f64,
    told: f64,
    /// Byte at which it is truncated.
    cut: Option<f64>,
    begun: bool,
}

impl Flow {
    fn target(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let len = self.asked.len as f64;
        (self.told + TELL_BYTES).min(self.cut.unwrap_or(len)).min(len)
    }
}

/// State of a link.
#[derive(Debug)]
pub(crate) struct SimulatedLink {
    model: LinkModel,
    rng: fastrand::Rng,
    now: Nanos,
    /// Events at known times.
    later: Vec<(Nanos, Asked, Then)>,
    flows: Vec<Flow>,
    weather_next: usize,
    rate: f64,
    latency: f64,
    /// How long at least one response was being transferred.
    pub(crate) busy: Nanos,
    /// Bytes transferred.
    pub(crate) passed: f64,
}

fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn scaled(nanos: Nanos, by: f64) -> Nanos {
    (nanos as f64 * by) as Nanos
}

impl SimulatedLink {
    pub(crate) fn new(model: LinkModel, seed: u64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
            later: Vec::new(),
            flows: Vec::new(),
            weather_next: 0,
            rate: model.rate,
            latency: 1.0,
            busy: 0,
            passed: 0.0,
            model,
        }
    }

    /// Sends a request.
    pub(crate) fn ask(&mut self, now: Nanos, id: RequestId, len: u64, attempts: u32) {
        self.pass(now);
        let asked = Asked { id, len, began: now, attempts_left: attempts, failures: 0 };
        self.attempt(asked);
    }

    fn attempt(&mut self, mut asked: Asked) {
        asked.attempts_left = asked.attempts_left.saturating_sub(1);
        let jitter = 1.0 + self.model.jitter * self.rng.f64();
        let latency = scaled(nanos(self.model.latency), self.latency * jitter);
        let lot = self.rng.f64();
        let faults = self.model.faults;
        let event = if lot < faults.errors {
            (self.now + latency, asked, Then::Fail)
        } else if lot < faults.errors + faults.stalls {
            (self.now + nanos(STALL), asked, Then::Fail)
        } else {
            (self.now + latency, asked, Then::Answer)
        };
        self.later.push(event);
    }

    /// Cancels a request.
    pub(crate) fn stop(&mut self, now: Nanos, id: RequestId) {
        self.pass(now);
        self.later.retain(|(_, asked, _)| asked.id != id);
        self.flows.retain(|flow| flow.asked.id != id);
    }

    fn rate_of(&self, place: usize) -> f64 {
        match self.model.sharing {
            #[allow(clippy::cast_precision_loss)]
            Sharing::Fair => self.rate / self.flows.len() as f64,
            Sharing::Fifo if place == 0 => self.rate,
            Sharing::Fifo => 0.0,
        }
    }

    /// Returns the time of the next event.
    pub(crate) fn next_at(&self) -> Option<Nanos> {
        let weather = self.model.weather.get(self.weather_next).map(|weather| nanos(weather.from));
        // Changes of the link alone do not keep the simulation running.
        let weather = weather.filter(|_| !self.flows.is_empty() || !self.later.is_empty());
        let later = self.later.iter().map(|(at, ..)| *at).min();
        let flows = self.flows.iter().enumerate().filter_map(|(place, flow)| {
            let rate = self.rate_of(place);
            if rate <= 0.0 {
                return None;
            }
            if !flow.begun {
                return Some(self.now);
            }
            let left = (flow.target() - flow.passed).max(0.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let takes = (left / rate * 1e9).ceil() as Nanos;
            Some(self.now + takes)
        });
        flows.chain(later).chain(weather).min().map(|at| at.max(self.now))
    }

    /// Transfers bytes until `now`. No event may lie before `now`.
    fn pass(&mut self, now: Nanos) {
        #[allow(clippy::cast_precision_loss)]
        let seconds = now.saturating_sub(self.now) as f64 / 1e9;
        for place in 0..self.flows.len() {
            let bytes = self.rate_of(place) * seconds;
            self.flows[place].passed += bytes;
            self.passed += bytes;
        }
        if !self.flows.is_empty() {
            self.busy += now.saturating_sub(self.now);
        }
        self.now = self.now.max(now);
    }

    /// Advances to `now`, which must not be after [`Self::next_at`]. Returns the events.
    pub(crate) fn advance(&mut self, now: Nanos) -> Vec<Sign> {
        self.pass(now);
        while let Some(weather) = self.model.weather.get(self.weather_next)
            && nanos(weather.from) <= now
        {
            self.rate = self.model.rate * weather.rate;
            self.latency = weather.latency;
            self.weather_next += 1;
        }
        let mut signs = Vec::new();
        let (due, later) = self.later.drain(..).partition(|(at, ..)| *at <= now);
        self.later = later;
        let mut due: Vec<(Nanos, Asked, Then)> = due;
        due.sort_by_key(|(at, asked, _)| (*at, asked.id));
        for (_, asked, then) in due {
            match then {
                Then::Ask => self.attempt(asked),
                Then::Fail => self.fail(asked, &mut signs),
                Then::Answer => self.answer(asked),
            }
        }
        self.milestones(&mut signs);
        signs
    }

    fn answer(&mut self, asked: Asked) {
        #[allow(clippy::cast_precision_loss)]
        let len = asked.len as f64;
        let cut = self.rng.f64() < self.model.faults.cuts;
        let cut = cut.then(|| (len * self.rng.f64()).floor());
        self.flows.push(Flow { asked, passed: 0.0, told: 0.0, cut, begun: false });
    }

    fn fail(&mut self, mut asked: Asked, signs: &mut Vec<Sign>) {
        asked.failures += 1;
        let late = self.now.saturating_sub(asked.began) > nanos(BUDGET);
        if asked.attempts_left == 0 || late {
            signs.push(Sign::Failed(asked.id));
            return;
        }
        let wait = nanos(BACKOFF) << (asked.failures - 1).min(7);
        let wait = scaled(wait, 0.5 + self.rng.f64() / 2.0);
        self.later.push((self.now + wait, asked, Then::Ask));
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn milestones(&mut self, signs: &mut Vec<Sign>) {
        let mut place = 0;
        while place < self.flows.len() {
            if self.rate_of(place) <= 0.0 {
                break;
            }
            let flow = &mut self.flows[place];
            if !flow.begun {
                flow.begun = true;
                signs.push(Sign::First(flow.asked.id));
            }
            let target = flow.target();
            if flow.passed + 0.5 < target {
                place += 1;
                continue;
            }
            let bytes = (target - flow.told) as u64;
            flow.told = target;
            if target >= flow.asked.len as f64 {
                signs.push(Sign::End(flow.asked.id, bytes));
                self.flows.remove(place);
            } else if flow.cut.is_some_and(|cut| target >= cut) {
                if bytes > 0 {
                    signs.push(Sign::Bytes(flow.asked.id, bytes));
                }
                let asked = self.flows.remove(place).asked;
                self.fail(asked, signs);
            } else {
                signs.push(Sign::Bytes(flow.asked.id, bytes));
            }
        }
    }

    /// Returns the number of responses in transfer.
    pub(crate) fn passing(&self) -> usize {
        self.flows.len()
    }

    /// Returns the maximum duration of a request of `len` bytes with at most `answers` concurrent
    /// responses and `under_way` bytes in flight; `None` if requests can fail.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn bound(&self, len: u64, answers: usize, under_way: u64) -> Option<Nanos> {
        let Faults { errors, stalls, cuts } = self.model.faults;
        if errors + stalls + cuts > 0.0 {
            return None;
        }
        let rates = self.model.weather.iter().map(|weather| weather.rate);
        let latencies = self.model.weather.iter().map(|weather| weather.latency);
        let rate = self.model.rate * rates.fold(1.0, f64::min);
        let latency = latencies.fold(1.0, f64::max) * (1.0 + self.model.jitter);
        let bytes = match self.model.sharing {
            Sharing::Fair => len as f64 * answers as f64,
            Sharing::Fifo => under_way as f64,
        };
        let slack = 1000 * answers as Nanos;
        Some(scaled(nanos(self.model.latency), latency) + (bytes / rate * 1e9) as Nanos + slack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(sharing: Sharing) -> LinkModel {
        LinkModel {
            latency: Duration::from_millis(10),
            jitter: 0.0,
            rate: 1e6,
            sharing,
            faults: Faults::default(),
            weather: Vec::new(),
        }
    }

    /// Returns when each request ends, in milliseconds.
    fn ends(mut link: SimulatedLink) -> Vec<(u64, u64)> {
        let mut ends = Vec::new();
        while let Some(at) = link.next_at() {
            for sign in link.advance(at) {
                if let Sign::End(id, _) = sign {
                    ends.push((id.0, at / 1_000_000));
                }
            }
        }
        ends
    }

    #[test]
    fn answers_share_the_rate() {
        let mut link = SimulatedLink::new(model(Sharing::Fair), 0);
        link.ask(0, RequestId(0), 100_000, 1);
        link.ask(0, RequestId(1), 300_000, 1);
        assert_eq!(ends(link), [(0, 210), (1, 410)]);
    }

    #[test]
    fn answers_pass_one_after_the_other() {
        let mut link = SimulatedLink::new(model(Sharing::Fifo), 0);
        link.ask(0, RequestId(0), 300_000, 1);
        link.ask(0, RequestId(1), 100_000, 1);
        assert_eq!(ends(link), [(0, 310), (1, 410)]);
    }

    #[test]
    fn a_slower_link_takes_longer_from_then_on() {
        let weather = vec![Weather { from: Duration::from_millis(110), rate: 0.5, latency: 2.0 }];
        let mut link = SimulatedLink::new(LinkModel { weather, ..model(Sharing::Fair) }, 0);
        link.ask(0, RequestId(0), 200_000, 1);
        assert_eq!(ends(link), [(0, 310)]);
    }

    #[test]
    fn permanent_errors_are_retried_up_to_the_limit() {
        let faults = Faults { errors: 1.0, ..Faults::default() };
        let mut link = SimulatedLink::new(LinkModel { faults, ..model(Sharing::Fair) }, 0);
        link.ask(0, RequestId(7), 10, 3);
        let mut signs = Vec::new();
        while let Some(at) = link.next_at() {
            signs.extend(link.advance(at));
        }
        assert!(matches!(signs[..], [Sign::Failed(RequestId(7))]), "{signs:?}");
        assert!(link.now > 3 * 10_000_000 + 75_000_000, "{}", link.now);
    }
}
