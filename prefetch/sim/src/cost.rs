//! Measures the scheduler's cost per event while many snapshots are loading.

use std::time::{Duration, Instant};

use inlay_prefetch::scheduler::{
    Action, Extent, Kept, Known, Moment, Plan, Probed, Request, Room, Scheduler, Touched, Urgency,
    WorkId,
};
use inlay_prefetch::{FetchLimits, GroupRef};
use inlay_store::format::{BlobIdx, Group};
use inlay_store::ids::{BlobId, Digest, GroupDigest};

const GROUPS: u32 = 20_000;
const LEN: u32 = 100_000;
const EVENTS: u64 = 200_000;

/// Prints time and snapshot visits per event, with 1 to 1,000 loading snapshots.
pub fn print() {
    println!("\nWhat an event costs the scheduler, while so many snapshots are loading.\n");
    println!("{:>9} {:>12} {:>16}", "snapshots", "ns an event", "probed at");
    for works in [1, 10, 100, 1000] {
        let (time, visits) = cost(works);
        println!("{works:>9} {time:>12.0} {visits:>16.2}");
    }
}

fn group(work: u64, number: u32) -> GroupRef {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&work.to_le_bytes());
    let blob = BlobId(Digest::from_bytes(bytes));
    bytes[8..12].copy_from_slice(&number.to_le_bytes());
    let group = Group {
        digest: GroupDigest(Digest::from_bytes(bytes)),
        blob: BlobIdx(0),
        ordinal: number,
        offset: u64::from(number) * u64::from(LEN),
        stored_len: LEN,
        raw_len: LEN,
        owner: None,
    };
    GroupRef { blob, group, home: None }
}

/// Returns nanoseconds and snapshot visits per event. Readers touch and demand groups of one
/// snapshot after the other, all snapshots are prefetched, and every request completes at once.
fn cost(works: u64) -> (f64, f64) {
    let mut scheduler = Scheduler::new(FetchLimits::default());
    let (mut now, mut requests) = (Moment::default(), Vec::<Request>::new());
    for id in 0..works {
        scheduler.attach(now, WorkId(id), Urgency::Image);
        let first = (0..GROUPS / 2).collect();
        let (known, extent) = (Known::Recorded, Extent::All);
        scheduler.plan(WorkId(id), Plan { groups: GROUPS, first, known, extent });
    }
    let (began, before, mut events, mut number) = (Instant::now(), scheduler.visits(), 0, 0);
    while events < EVENTS {
        now = now.after(Duration::from_micros(100));
        while let Some(action) = scheduler.next(now) {
            events += 1;
            match action {
                Action::Fetch(request) => requests.push(request),
                Action::Probe { work, groups, .. } => {
                    let missing = groups.into_iter().map(|number| (number, group(work.0, number)));
                    let probed = Probed { missing: missing.collect(), room: Room::There };
                    scheduler.probed(now, work, probed);
                    events += 1;
                }
                Action::Cancel(_) => {}
            }
        }
        let reader = events % works;
        number = (number + 1) % GROUPS;
        let touch = Touched { group: number, stored_len: LEN, file: 0..0 };
        scheduler.touched(now, WorkId(reader), &touch);
        let (_, ticket) = scheduler.demand(&group(reader, number));
        scheduler.leave(&ticket);
        events += 3;
        for request in requests.drain(..) {
            scheduler.ended(now, request.id);
            for want in &request.wants {
                scheduler.landed(&want.key());
                scheduler.forget(now, &want.key(), Kept::Cached);
                events += 2;
            }
            scheduler.release(request.class, request.buffer_bytes);
            events += 2;
        }
    }
    // Far below 2^52: exact.
    #[allow(clippy::cast_precision_loss)]
    let [events, visits] = [events, scheduler.visits() - before].map(|count| count as f64);
    (began.elapsed().as_secs_f64() * 1e9 / events, visits / events)
}
