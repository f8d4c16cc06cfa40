//! Tests that at most one process serves, for all orders of events.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    grace: Duration::from_secs(5),
    deadline: Duration::from_mins(1),
    respawns: 3,
    pause: Duration::from_millis(100),
};
const A: PeerId = PeerId(1);
const B: PeerId = PeerId(2);
const C: PeerId = PeerId(3);

fn turns() -> (Turns, Instant) {
    let now = Instant::now();
    (Turns::new(LIMITS, now), now)
}

#[test]
fn the_next_has_its_turn_when_the_process_before_it_has_ended() {
    let (mut turns, now) = turns();
    assert_eq!(turns.claim(A, Claim::WhenFree, now), [Action::Grant(A)]);
    turns.serving(A);
    assert_eq!(turns.claim(B, Claim::WhenFree, now), []);
    // A closed socket does not mean that the process has exited.
    turns.closed(A, now);
    assert_eq!(turns.tick(now), []);
    assert_eq!(turns.dead(A, now), [Action::Grant(B)]);
    assert_eq!(turns.deaths(), 1);
}

#[test]
fn a_takeover_goes_first_and_a_server_that_does_not_leave_is_killed() {
    let (mut turns, now) = turns();
    turns.claim(A, Claim::WhenFree, now);
    turns.claim(B, Claim::WhenFree, now);
    assert_eq!(turns.claim(C, Claim::TakeOver, now), [Action::AskToLeave(A)]);
    turns.goodbye(A, now);
    assert_eq!(turns.next_tick(), Some(now + LIMITS.grace));
    assert_eq!(turns.tick(now + LIMITS.grace / 2), []);
    assert_eq!(turns.tick(now + LIMITS.grace), [Action::Kill(A)]);
    assert_eq!(turns.tick(now + LIMITS.grace * 2), []);
    assert_eq!(turns.dead(A, now + LIMITS.grace), [Action::Grant(C)]);
    assert_eq!((turns.deaths(), turns.waiting()), (0, 1));
}

#[test]
fn requests_are_refused_from_the_deadline_until_a_server_comes() {
    let (mut turns, now) = turns();
    // Before the first server, the kernel's INIT is unanswered and cannot be refused.
    assert_eq!(turns.tick(now + LIMITS.deadline * 2), []);
    turns.claim(A, Claim::WhenFree, now);
    turns.serving(A);
    turns.goodbye(A, now);
    assert_eq!(turns.dead(A, now), []);
    assert_eq!(turns.next_tick(), Some(now + LIMITS.deadline));
    assert_eq!(turns.tick(now + LIMITS.deadline), [Action::BeginRefusing]);
    assert_eq!(turns.tick(now + LIMITS.deadline * 2), []);
    let late = now + LIMITS.deadline * 3;
    assert_eq!(turns.claim(B, Claim::WhenFree, late), [Action::EndRefusing, Action::Grant(B)]);
}

#[test]
fn a_server_is_started_again_a_few_times_with_longer_and_longer_pauses() {
    let (mut turns, mut now) = turns();
    turns.claim(A, Claim::WhenFree, now);
    turns.closed(A, now);
    turns.dead(A, now);
    assert_eq!(turns.tick(now), [Action::Respawn]);
    for pause in [2, 4] {
        turns.respawn_failed(now);
        assert_eq!(turns.tick(now), []);
        now += LIMITS.pause * pause;
        assert_eq!(turns.tick(now), [Action::Respawn]);
    }
    turns.respawn_failed(now);
    assert_eq!(turns.tick(now + LIMITS.pause * 100), []);
    // A successful server resets the respawn limit.
    turns.claim(B, Claim::WhenFree, now);
    turns.serving(B);
    turns.dead(B, now);
    assert_eq!(turns.tick(now), [Action::Respawn]);
}

#[test]
fn a_server_that_said_goodbye_is_not_restarted() {
    let (mut turns, now) = turns();
    turns.claim(A, Claim::WhenFree, now);
    turns.goodbye(A, now);
    turns.closed(A, now);
    turns.dead(A, now);
    assert_eq!(turns.tick(now + LIMITS.deadline / 2), []);
    assert_eq!(turns.deaths(), 0);
}

#[derive(Clone, Debug)]
enum Event {
    Claim(u64, bool),
    Serving(u64),
    Goodbye(u64),
    Closed(u64),
    Dead(u64),
    Failed,
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let peer = 0..5u64;
    prop_oneof![
        (peer.clone(), any::<bool>()).prop_map(|(peer, over)| Event::Claim(peer, over)),
        peer.clone().prop_map(Event::Serving),
        peer.clone().prop_map(Event::Goodbye),
        peer.clone().prop_map(Event::Closed),
        peer.prop_map(Event::Dead),
        Just(Event::Failed),
        (0..90_000u64).prop_map(Event::Wait),
    ]
}

proptest! {
    #[test]
    fn never_do_two_serve(events in prop::collection::vec(event(), 1..120)) {
        let (mut turns, mut now) = turns();
        let (mut alive, mut refusing): (BTreeSet<PeerId>, bool) = (BTreeSet::new(), false);
        for event in events {
            let actions = match event {
                Event::Claim(peer, over) => {
                    let how = if over { Claim::TakeOver } else { Claim::WhenFree };
                    turns.claim(PeerId(peer), how, now)
                }
                Event::Serving(peer) => {
                    turns.serving(PeerId(peer));
                    Vec::new()
                }
                Event::Goodbye(peer) => {
                    turns.goodbye(PeerId(peer), now);
                    Vec::new()
                }
                Event::Closed(peer) => {
                    turns.closed(PeerId(peer), now);
                    Vec::new()
                }
                Event::Dead(peer) => {
                    alive.remove(&PeerId(peer));
                    turns.dead(PeerId(peer), now)
                }
                Event::Failed => {
                    turns.respawn_failed(now);
                    Vec::new()
                }
                Event::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    turns.tick(now)
                }
            };
            for action in actions {
                match action {
                    Action::Grant(peer) => {
                        // A process that was granted the session and has not exited.
                        prop_assert!(alive.is_empty(), "{alive:?}");
                        prop_assert!(!refusing);
                        alive.insert(peer);
                    }
                    Action::AskToLeave(peer) | Action::Kill(peer) => {
                        prop_assert!(alive.contains(&peer));
                    }
                    Action::Respawn => prop_assert!(alive.is_empty()),
                    Action::BeginRefusing => {
                        prop_assert!(alive.is_empty() && !refusing);
                        refusing = true;
                    }
                    Action::EndRefusing => {
                        prop_assert!(refusing);
                        refusing = false;
                    }
                }
            }
            prop_assert_eq!(turns.server().is_some(), !alive.is_empty());
            prop_assert_eq!(turns.is_refusing(), refusing);
        }
    }
}

#[test]
fn a_server_that_another_keeper_had_is_followed_when_its_process_has_ended() {
    let (mut turns, now) = turns();
    turns.resume(true, Some(A));
    assert_eq!(turns.claim(B, Claim::WhenFree, now), []);
    // It cannot be asked any more, so it is killed after the grace period.
    assert_eq!(turns.claim(C, Claim::TakeOver, now), [Action::AskToLeave(A)]);
    assert_eq!(turns.tick(now + LIMITS.grace), [Action::Kill(A)]);
    assert_eq!(turns.dead(A, now + LIMITS.grace), [Action::Grant(C)]);
}

#[test]
fn requests_to_a_session_that_goes_on_are_refused_from_the_deadline() {
    for was_served in [false, true] {
        let (mut turns, now) = turns();
        turns.resume(was_served, None);
        let actions = turns.tick(now + LIMITS.deadline);
        assert_eq!(actions, if was_served { vec![Action::BeginRefusing] } else { vec![] });
        assert_eq!(
            turns.claim(A, Claim::WhenFree, now + LIMITS.deadline).last(),
            Some(&Action::Grant(A))
        );
    }
}
