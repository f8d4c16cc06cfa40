//! Bodies that share a link in synthetic time: it is never faster than it is said to be, never
//! idle while a body waits, and fair.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

/// What one body sends: for each frame, how long after the one before the server has it ready,
/// how many bytes it has, and how late its sleep ends if it has to sleep.
type Script = Vec<Step>;

#[derive(Clone, Copy, Debug)]
struct Step {
    gap: Duration,
    bytes: usize,
    late: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Passed {
    at: Duration,
    body: usize,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// A body whose frame waits asks whether it passes.
    Wake,
    /// A body has its next frame.
    Ready,
}

struct Simulation<'a> {
    bandwidth: Bandwidth,
    clock: LinkClock<usize>,
    /// By their time, and in the order in which they came up.
    events: BinaryHeap<Reverse<(Duration, usize, Event, usize)>>,
    count: usize,
    /// What is left of each body, its current frame first.
    steps: Vec<&'a [Step]>,
    tickets: Vec<Option<Ticket>>,
    previous: Vec<Option<Duration>>,
    passed: Vec<Passed>,
}

impl Simulation<'_> {
    fn at(&mut self, time: Duration, event: Event, body: usize) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event, body)));
    }

    fn ready(&mut self, now: Duration, body: usize) {
        let step = self.steps[body][0];
        let previous = self.previous[body];
        let (due, turn) = self.clock.reserve(self.bandwidth, step.bytes, now, previous);
        self.previous[body] = Some(due);
        match turn {
            Turn::Now => self.pass(now, body),
            Turn::Waits(ticket) => {
                self.tickets[body] = Some(ticket);
                self.at(now, Event::Wake, body);
                self.at(due.max(now) + step.late, Event::Wake, body);
            }
        }
    }

    fn wake(&mut self, now: Duration, body: usize) {
        // Woken twice: by its timer and by the body before it.
        let Some(ticket) = self.tickets[body] else { return };
        if self.clock.passes(ticket, now, body) {
            self.tickets[body] = None;
            self.pass(now, body);
        }
        if let Some(next) = self.clock.next_up(now) {
            self.at(now, Event::Wake, next);
        }
    }

    fn pass(&mut self, now: Duration, body: usize) {
        self.passed.push(Passed { at: now, body, bytes: self.steps[body][0].bytes });
        self.steps[body] = &self.steps[body][1..];
        if let Some(next) = self.steps[body].first() {
            self.at(now + next.gap, Event::Ready, body);
        }
    }
}

/// Runs all bodies over one clock, in the order of time, and gives what passed in that order.
fn simulate(bandwidth: Bandwidth, bodies: &[Script]) -> Vec<Passed> {
    let mut simulation = Simulation {
        bandwidth,
        clock: LinkClock::new(),
        events: BinaryHeap::new(),
        count: 0,
        steps: bodies.iter().map(Vec::as_slice).collect(),
        tickets: vec![None; bodies.len()],
        previous: vec![None; bodies.len()],
        passed: Vec::new(),
    };
    for (body, script) in bodies.iter().enumerate() {
        simulation.at(script[0].gap, Event::Ready, body);
    }
    while let Some(Reverse((now, _, event, body))) = simulation.events.pop() {
        match event {
            Event::Ready => simulation.ready(now, body),
            Event::Wake => simulation.wake(now, body),
        }
    }
    simulation.passed
}

fn bandwidths() -> impl Strategy<Value = Bandwidth> {
    prop_oneof![Just(200_u32), Just(2_000), Just(10_000), 1..20_000_u32,]
        .prop_map(Bandwidth::megabits_per_second)
}

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    let gap = prop_oneof![4 => Just(0), 2 => 0..2_000_u64, 1 => 0..30_000_u64];
    let late = prop_oneof![0..300_u64, 0..30_000_u64];
    let step = (gap, 1..=64_usize << 10, late).prop_map(|(gap, bytes, late)| Step {
        gap: micros(gap),
        bytes,
        late: micros(late),
    });
    let script = proptest::collection::vec(step, 1..40);
    proptest::collection::vec(script, 1..6)
}

fn bytes_of(passed: &[Passed]) -> usize {
    passed.iter().map(|frame| frame.bytes).sum()
}

/// What a link may pass at most in a window: its bandwidth for as long as that and what it is
/// allowed to be early and late; and the one frame that each body may hold since before.
fn most(bandwidth: Bandwidth, window: Duration, bodies: usize) -> u128 {
    let nanos = (window + EARLY + LATE).as_nanos();
    nanos * u128::from(bandwidth.get()) / 1_000_000_000 + (bodies as u128 * (64 << 10))
}

proptest! {
    #[test]
    fn no_window_has_more_than_the_link_passes(
        bandwidth in bandwidths(),
        bodies in scripts(),
    ) {
        let passed = simulate(bandwidth, &bodies);
        prop_assert_eq!(passed.len(), bodies.iter().map(Vec::len).sum::<usize>());
        for first in 0..passed.len() {
            let mut bytes = 0;
            for last in first..passed.len() {
                bytes += passed[last].bytes as u128;
                let window = passed[last].at.saturating_sub(passed[first].at);
                prop_assert!(bytes <= most(bandwidth, window, bodies.len()), "{:?}", window);
            }
        }
    }

    /// What lateness lends is never more than what was lost by it: from the start on, only what
    /// may pass early is ahead of the link.
    #[test]
    fn no_transfer_is_faster_than_the_link(
        bandwidth in bandwidths(),
        bodies in scripts(),
    ) {
        let passed = simulate(bandwidth, &bodies);
        let start = bodies.iter().map(|script| script[0].gap).min().unwrap();
        for last in 0..passed.len() {
            let nominal = bandwidth.time_of(bytes_of(&passed[..=last]));
            prop_assert!(passed[last].at + EARLY >= start + nominal);
        }
        for (body, script) in bodies.iter().enumerate() {
            let alone: Vec<_> = passed.iter().filter(|f| f.body == body).copied().collect();
            let nominal = bandwidth.time_of(bytes_of(&alone));
            prop_assert!(alone.last().unwrap().at + EARLY >= script[0].gap + nominal);
        }
    }

    /// Bodies that always have a next frame use all of the link, though each sleep ends late.
    #[test]
    fn a_busy_link_is_never_idle(
        bandwidth in bandwidths(),
        late in 0..10_000_u64,
        bytes in 1..=64_usize << 10,
        bodies in 1..6_usize,
    ) {
        let step = Step { gap: Duration::ZERO, bytes, late: micros(late) };
        let passed = simulate(bandwidth, &vec![vec![step; 40]; bodies]);
        let nominal = bandwidth.time_of(bytes * 40 * bodies);
        // Rounding: a nanosecond a frame.
        let nominal = nominal + Duration::from_nanos(40 * bodies as u64);
        let end = passed.last().unwrap().at;
        prop_assert!(end <= nominal + step.late, "{:?} of {:?}", end, nominal);
    }

    /// Bodies that want all they can get, and are equally quick with their next frame, get the
    /// same: one is ahead by what passed early before the others came, however late they are woken.
    #[test]
    fn busy_bodies_share(
        bandwidth in bandwidths(),
        late in 0..10_000_u64,
        bodies in 2..5_usize,
    ) {
        let bytes = frame_size(bandwidth);
        let step = Step { gap: Duration::ZERO, bytes, late: micros(late) };
        let passed = simulate(bandwidth, &vec![vec![step; 200]; bodies]);
        let mut counts = vec![0_u64; bodies];
        let early = EARLY.as_nanos() / bandwidth.time_of(bytes).as_nanos() + 2;
        for frame in passed {
            counts[frame.body] += 1;
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(u128::from(most - least) <= early, "{:?}", counts);
            if *most == 200 {
                break;
            }
        }
    }
}

#[test]
fn a_frame_is_about_a_millisecond_within_bounds() {
    let size = |megabits| frame_size(Bandwidth::megabits_per_second(megabits));
    assert_eq!(size(1), 16 << 10);
    assert_eq!(size(200), 25_000);
    assert_eq!(size(10_000), 64 << 10);
}

const SECOND: Duration = Duration::from_secs(1);

/// A byte takes a microsecond.
const SLOW: Bandwidth = Bandwidth::bytes_per_second(1_000_000);

#[test]
fn an_idle_link_owes_nothing() {
    let mut clock = LinkClock::<()>::new();
    let mut reserve = |now, previous| clock.reserve(SLOW, 1000, now, previous);
    assert_eq!(reserve(Duration::ZERO, None), (micros(1_000), Turn::Now));
    // Long after, whatever the body had before, it begins now.
    assert_eq!(reserve(SECOND, Some(micros(1_000))), (SECOND + micros(1_000), Turn::Now));
    // A body that the machine woke late has lost nothing.
    let woken = SECOND + micros(4_000);
    let due = SECOND + micros(2_000);
    assert_eq!(reserve(woken, Some(SECOND + micros(1_000))), (due, Turn::Now));
    // Another body has no such past.
    assert_eq!(reserve(woken, None), (woken + micros(1_000), Turn::Now));
    let due = woken + micros(2_000);
    assert_eq!(reserve(woken, None), (due, Turn::Waits(Ticket(0))));
}

#[test]
fn frames_pass_in_turn_and_none_early_while_another_waits() {
    let mut clock = LinkClock::new();
    assert_eq!(clock.reserve(SLOW, 900, micros(0), None).1, Turn::Now);
    let (due, Turn::Waits(first)) = clock.reserve(SLOW, 1000, micros(0), None) else {
        panic!("too early")
    };
    assert_eq!(due, micros(1_900));
    // A quarter of a millisecond would be early enough, but for the other one.
    let (due, Turn::Waits(second)) = clock.reserve(SLOW, 200, micros(1_850), None) else {
        panic!("out of turn")
    };
    assert_eq!(due, micros(2_100));

    assert!(!clock.passes(first, micros(1_899), "first"));
    assert_eq!(clock.next_up(micros(1_899)), None);
    // The second is awake before the first, which is late, and sees to it.
    assert!(!clock.passes(second, micros(2_200), "second"));
    assert_eq!(clock.next_up(micros(2_200)), Some("first"));
    assert!(clock.passes(first, micros(2_200), "first"));
    assert_eq!(clock.next_up(micros(2_200)), Some("second"));
    assert!(clock.passes(second, micros(2_200), "second"));
    assert_eq!(clock.next_up(micros(2_200)), None);
}

#[test]
fn cancelled_waits_do_not_delay_others() {
    let mut clock = LinkClock::new();
    let tickets: Vec<_> = (0..3)
        .map(|_| match clock.reserve(SLOW, 2000, micros(0), None).1 {
            Turn::Waits(ticket) => ticket,
            Turn::Now => panic!("too early"),
        })
        .collect();
    assert!(!clock.passes(tickets[2], micros(1), "last"));
    clock.give_up(tickets[0]);
    clock.give_up(tickets[1]);
    // It keeps its time.
    assert_eq!(clock.next_up(micros(5_999)), None);
    assert_eq!(clock.next_up(micros(6_000)), Some("last"));
    assert!(clock.passes(tickets[2], micros(6_000), "last"));
}

#[test]
fn a_link_begins_anew() {
    let mut clock = LinkClock::new();
    let (_, Turn::Waits(ticket)) = clock.reserve(SLOW, 1 << 40, micros(0), None) else {
        panic!("too early")
    };
    assert!(!clock.passes(ticket, micros(1), "old"));
    assert_eq!(clock.restart(), ["old"]);
    // Behind the old one, which passes first.
    let (due, turn) = clock.reserve(SLOW, 10, micros(2), None);
    assert_eq!(due, micros(12));
    assert!(matches!(turn, Turn::Waits(_)));
    assert!(clock.passes(ticket, micros(2), "old"));
    assert_eq!(clock.reserve(SLOW, 10, micros(2), None), (micros(22), Turn::Waits(Ticket(2))));
}
