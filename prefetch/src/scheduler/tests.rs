//! Tests the scheduler without a driver, one rule per test. Invariants are tested by simulation in
//! `prefetch/sim`.

use std::time::Duration;

use inlay_store::format::{BlobIdx, Group};
use inlay_store::ids::{BlobId, Digest, GroupDigest};

use super::*;
use crate::limits::FetchLimits;
use crate::want::{Class, GroupRef};

const NOW: Moment = Moment(Duration::ZERO);
const LEN: u32 = 100_000;

/// Returns a group of the snapshot with the blob `blob`, by its number.
fn group(blob: u8, number: u32) -> GroupRef {
    let mut digest = [blob; 32];
    digest[..4].copy_from_slice(&number.to_le_bytes());
    GroupRef {
        blob: BlobId(Digest::from_bytes([blob; 32])),
        group: Group {
            digest: GroupDigest(Digest::from_bytes(digest)),
            blob: BlobIdx(0),
            ordinal: number,
            offset: u64::from(number) * u64::from(LEN),
            stored_len: LEN,
            raw_len: LEN,
            owner: None,
        },
        home: None,
    }
}

fn plan(groups: u32, first: &[u32]) -> Plan {
    Plan { groups, first: first.to_vec(), known: Known::Recorded, extent: Extent::All }
}

/// Creates a scheduler whose requests hold one group each.
fn scheduler() -> Scheduler {
    Scheduler::new(FetchLimits { request_bytes: u64::from(LEN), ..FetchLimits::default() })
}

fn attach(scheduler: &mut Scheduler, id: u64, urgency: Urgency, plan: Plan) {
    scheduler.attach(NOW, WorkId(id), urgency);
    scheduler.plan(WorkId(id), plan);
}

/// Executes all actions due at `now`, with an empty cache. Returns the requests.
fn pump(scheduler: &mut Scheduler, now: Moment) -> Vec<Request> {
    let mut requests = Vec::new();
    while let Some(action) = scheduler.next(now) {
        match action {
            Action::Fetch(request) => requests.push(request),
            Action::Probe { work, groups, .. } => {
                let blob = u8::try_from(work.0).unwrap();
                let missing = groups.into_iter().map(|number| (number, group(blob, number)));
                let probed = Probed { missing: missing.collect(), room: Room::There };
                scheduler.probed(now, work, probed);
            }
            Action::Cancel(_) => {}
        }
    }
    requests
}

/// Completes a request and caches its groups.
fn came(scheduler: &mut Scheduler, request: &Request) {
    scheduler.ended(NOW, request.id);
    for want in &request.wants {
        scheduler.landed(&want.key());
        scheduler.forget(NOW, &want.key(), Kept::Cached);
    }
    scheduler.release(request.class, request.buffer_bytes);
}

/// Returns all fetches in order, as (blob, number), if nothing fails.
fn order(scheduler: &mut Scheduler, now: Moment) -> Vec<(u8, u32)> {
    let mut order = Vec::new();
    loop {
        let requests = pump(scheduler, now);
        if requests.is_empty() {
            return order;
        }
        for request in requests {
            let wants = request.wants.iter();
            order.extend(wants.map(|want| (want.blob.0.as_bytes()[0], want.group.ordinal)));
            came(scheduler, &request);
        }
    }
}

fn later() -> Moment {
    NOW.after(Duration::from_mins(1))
}

#[test]
fn planned_groups_come_first_and_the_rest_after_the_start() {
    let mut scheduler = scheduler();
    attach(&mut scheduler, 1, Urgency::Image, plan(5, &[3, 1, 3, 99]));
    assert_eq!(order(&mut scheduler, NOW), [(1, 3), (1, 1)]);
    assert!(scheduler.wakes_at().is_some());
    assert_eq!(order(&mut scheduler, later()), [(1, 0), (1, 2), (1, 4)]);
    assert_eq!(scheduler.work(later(), WorkId(1)).unwrap().phase, Phase::Done);
}

#[test]
fn directories_come_before_images_and_the_newest_first() {
    let mut scheduler = scheduler();
    attach(&mut scheduler, 1, Urgency::Image, plan(2, &[0]));
    attach(&mut scheduler, 2, Urgency::Directory, plan(2, &[]));
    attach(&mut scheduler, 3, Urgency::Directory, plan(2, &[1]));
    assert_eq!(order(&mut scheduler, NOW), [(3, 1), (3, 0), (2, 0), (2, 1), (1, 0)]);
}

#[test]
fn demanded_groups_leave_the_queue_and_are_fetched_at_once() {
    let mut scheduler = scheduler();
    attach(&mut scheduler, 1, Urgency::Image, plan(60, &(0..60).collect::<Vec<_>>()));
    let before = pump(&mut scheduler, NOW).len();
    assert!(before < 50);
    let (joined, ticket) = scheduler.demand(&group(1, 55));
    assert_eq!(joined, Joined::Promoted(Class::Profile));
    let requests = pump(&mut scheduler, NOW);
    assert_eq!(requests[0].class, Class::Demand);
    assert_eq!(requests[0].wants, [group(1, 55)]);
    came(&mut scheduler, &requests[0]);
    scheduler.leave(&ticket);
    assert!(matches!(scheduler.demand(&group(1, 0)).0, Joined::Flying(Class::Profile)));
}

#[test]
fn groups_in_flight_during_the_cache_lookup_are_not_fetched_again() {
    let mut scheduler = scheduler();
    let (_, ticket) = scheduler.demand(&group(1, 0));
    let demand = pump(&mut scheduler, NOW).remove(0);
    attach(&mut scheduler, 1, Urgency::Directory, plan(2, &[]));
    let ahead = pump(&mut scheduler, NOW);
    assert_eq!(ahead.len(), 1);
    came(&mut scheduler, &demand);
    scheduler.leave(&ticket);
    assert_eq!(order(&mut scheduler, NOW), []);
}

#[test]
fn groups_of_cancelled_demand_reads_are_still_prefetched() {
    let mut scheduler = scheduler();
    attach(&mut scheduler, 1, Urgency::Directory, plan(1, &[]));
    let (_, ticket) = scheduler.demand(&group(1, 0));
    let demand = pump(&mut scheduler, NOW).remove(0);
    scheduler.leave(&ticket);
    assert_eq!(scheduler.next(NOW), Some(Action::Cancel(demand.id)));
    scheduler.release(demand.class, demand.buffer_bytes);
    scheduler.failed(NOW, demand.id, Failed::Cancelled);
    assert_eq!(order(&mut scheduler, NOW), [(1, 0)]);
}

#[test]
fn failed_groups_are_retried_once_after_a_pause() {
    let mut scheduler = scheduler();
    attach(&mut scheduler, 1, Urgency::Directory, plan(1, &[]));
    for now in [NOW, later()] {
        let request = pump(&mut scheduler, now).remove(0);
        scheduler.release(request.class, request.buffer_bytes);
        scheduler.failed(now, request.id, Failed::Store);
        assert_eq!(pump(&mut scheduler, now).len(), 0);
    }
    let stats = scheduler.work(later(), WorkId(1)).unwrap();
    assert_eq!(stats.given_up, 1);
    assert_eq!(order(&mut scheduler, later().after(Duration::from_mins(1))), []);
}

#[test]
fn reads_from_before_a_plan_count() {
    let mut scheduler = scheduler();
    scheduler.attach(NOW, WorkId(1), Urgency::Image);
    let touch = Touched { group: 10, stored_len: LEN, file: 0..0 };
    scheduler.touched(NOW, WorkId(1), &touch);
    scheduler.plan(WorkId(1), Plan { known: Known::Guessed, ..plan(100, &[]) });
    let found = order(&mut scheduler, NOW);
    assert!(found.contains(&(1, 11)) && found.contains(&(1, 9)), "{found:?}");
    assert!(!found.contains(&(1, 90)), "{found:?}");
}

#[test]
fn a_new_plan_moves_a_deferred_group_to_the_front() {
    let mut scheduler = scheduler();
    attach(&mut scheduler, 1, Urgency::Image, plan(60, &(0..60).collect::<Vec<_>>()));
    let begun = pump(&mut scheduler, NOW);
    let (joined, ticket) = scheduler.demand(&group(1, 55));
    assert_eq!(joined, Joined::Promoted(Class::Profile));
    // Its retry comes last.
    scheduler.leave(&ticket);
    scheduler.plan(WorkId(1), plan(60, &[55]));
    for request in begun {
        came(&mut scheduler, &request);
    }
    assert_eq!(order(&mut scheduler, NOW), [(1, 55)]);
}

/// Like `group`, for more than 256 snapshots.
fn group_of(work: u64, number: u32) -> GroupRef {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&work.to_le_bytes());
    let blob = BlobId(Digest::from_bytes(bytes));
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    let digest = GroupDigest(Digest::from_bytes(bytes));
    let other = group(0, number);
    GroupRef { blob, group: Group { digest, ..other.group }, home: None }
}

/// Loads groups of `works` snapshots while readers read them. Returns the visits per event once all
/// are attached. Every snapshot has much left at the end.
fn visits_per_event(works: u64, urgency: Urgency) -> u64 {
    const EVENTS: u64 = 3000;
    let mut scheduler = scheduler();
    for id in 0..works {
        attach(&mut scheduler, id, urgency, plan(5000, &(0..3000).collect::<Vec<_>>()));
    }
    let (before, mut events, mut now, mut requests) = (scheduler.visits(), 0, NOW, Vec::new());
    while events < EVENTS {
        now = now.after(Duration::from_micros(100));
        while let Some(action) = scheduler.next(now) {
            events += 1;
            match action {
                Action::Fetch(request) => requests.push(request),
                Action::Probe { work, groups, .. } => {
                    let missing =
                        groups.into_iter().map(|number| (number, group_of(work.0, number)));
                    let probed = Probed { missing: missing.collect(), room: Room::There };
                    scheduler.probed(now, work, probed);
                }
                Action::Cancel(_) => {}
            }
        }
        scheduler.wakes_at();
        let reader = events % works;
        let touch = Touched { group: 4000, stored_len: LEN, file: 0..0 };
        scheduler.touched(now, WorkId(reader), &touch);
        let (_, ticket) =
            scheduler.demand(&group_of(reader, 2000 + u32::try_from(events).unwrap()));
        scheduler.leave(&ticket);
        for request in requests.drain(..) {
            came(&mut scheduler, &request);
        }
        events += 4;
    }
    (scheduler.visits() - before) / events
}

#[test]
fn an_event_costs_the_same_however_many_snapshots_are_loading() {
    for urgency in [Urgency::Image, Urgency::Directory] {
        for works in [1, 10, 100, 1000] {
            let visits = visits_per_event(works, urgency);
            assert!(visits <= 3, "{visits} for {works} snapshots, {urgency:?}");
        }
    }
}

#[test]
fn a_group_of_many_snapshots_is_fetched_once_and_leaves_no_trace() {
    let mut scheduler = scheduler();
    let shared = |_: u64, number: u32| group(1, number);
    for id in 0..20 {
        attach(&mut scheduler, id, Urgency::Image, plan(10, &(0..10).collect::<Vec<_>>()));
    }
    let (mut fetched, mut wanted) = (Vec::new(), true);
    while wanted {
        wanted = false;
        while let Some(action) = scheduler.next(NOW) {
            wanted = true;
            match action {
                Action::Fetch(request) => fetched.push(request),
                Action::Probe { work, groups, .. } => {
                    let missing = groups.into_iter().map(|number| (number, shared(work.0, number)));
                    let missing = missing
                        .filter(|(_, want)| {
                            !fetched.iter().any(|request| request.wants.contains(want))
                                || scheduler.has(&want.key())
                        })
                        .collect();
                    scheduler.probed(NOW, work, Probed { missing, room: Room::There });
                }
                Action::Cancel(_) => {}
            }
        }
        // One of them fails: other snapshots still need it.
        if fetched.len() == 3 {
            let request = fetched.remove(0);
            scheduler.release(request.class, request.buffer_bytes);
            scheduler.failed(NOW, request.id, Failed::Store);
        }
        for request in &fetched {
            came(&mut scheduler, request);
        }
    }
    let mut numbers: Vec<u32> =
        fetched.iter().flat_map(|request| &request.wants).map(|want| want.group.ordinal).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), fetched.iter().map(|request| request.wants.len()).sum::<usize>());
    for id in 0..20 {
        scheduler.detach(WorkId(id));
    }
    assert!(scheduler.waiting.is_empty());
    assert_eq!(scheduler.wakes_at(), None);
    assert_eq!(scheduler.gauges(), (0, 0));
}
