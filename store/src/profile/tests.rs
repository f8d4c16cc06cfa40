//! Tests of merging, encoding and decoding profiles.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::format::GroupIdx;
use crate::ids::{Digest, IndexDigest, Kind, SnapshotId};

fn snapshot() -> SnapshotId {
    SnapshotId { kind: Kind::Directory, index: IndexDigest(Digest::of(b"snapshot")) }
}

fn empty() -> Profile {
    Profile::new(snapshot(), ProfileLabel::default())
}

/// Creates a run from touches: groups, and milliseconds since the snapshot was attached.
fn run(touches: &[(u32, u64)]) -> Run {
    let touch = |&(group, at)| Touch {
        group: GroupIdx(group),
        units: UnitSet::from_bits(1),
        at: Duration::from_millis(at),
    };
    touches.iter().map(touch).collect()
}

fn order(profile: &Profile) -> Vec<u32> {
    profile.groups().map(|group| group.0).collect()
}

fn entry(profile: &Profile, group: u32) -> Entry {
    *profile.entries().iter().find(|entry| entry.group.0 == group).unwrap()
}

#[test]
fn the_first_run_is_the_order() {
    let mut profile = empty();
    profile.merge(&run(&[(7, 900), (3, 900), (5, 910), (3, 920), (1, 950)]));
    assert_eq!(order(&profile), [7, 3, 5, 1]);
    assert_eq!(profile.runs(), 1);
    let times: Vec<_> = profile.entries().iter().map(|entry| entry.at_ms).collect();
    assert_eq!(times, [0, 0, 10, 50], "times count from the first touch");
}

#[test]
fn touches_reported_late_are_placed_after_earlier_ones() {
    let run = run(&[(1, 100), (2, 40), (3, 120)]);
    let at: Vec<_> = run.touches().iter().map(|touch| touch.at.as_millis()).collect();
    assert_eq!(at, [100, 100, 120]);
}

#[test]
fn long_pauses_count_as_a_second() {
    let mut profile = empty();
    profile.merge(&run(&[(1, 0), (2, 500), (3, 3_600_000), (4, 3_600_001)]));
    let times: Vec<_> = profile.entries().iter().map(|entry| entry.at_ms).collect();
    assert_eq!(times, [0, 500, 1500, 1501]);
}

#[test]
fn groups_of_most_runs_come_before_groups_of_one_run_at_that_time() {
    let mut profile = empty();
    profile.merge(&run(&[(1, 0), (9, 100), (2, 101), (3, 5000)]));
    profile.merge(&run(&[(1, 0), (2, 101), (3, 5000)]));
    profile.merge(&run(&[(1, 0), (2, 101), (3, 5000)]));
    assert_eq!(order(&profile), [1, 2, 9, 3], "but not behind what is needed much later");
    assert_eq!(entry(&profile, 9).seen.count(), 1);
    assert_eq!(entry(&profile, 2).seen.count(), 3);
}

#[test]
fn likelihood_matters_at_the_very_start_too() {
    let mut profile = empty();
    profile.merge(&run(&[(9, 0), (1, 0), (2, 10)]));
    profile.merge(&run(&[(1, 0), (2, 10)]));
    assert_eq!(order(&profile), [1, 2, 9]);
}

#[test]
fn a_slow_run_and_a_fast_one_agree_on_the_order() {
    // The same program from a distant store and from a warm cache, each time with one additional
    // group.
    let mut profile = empty();
    profile.merge(&run(&[(1, 0), (2, 400), (4, 450), (3, 800)]));
    profile.merge(&run(&[(1, 0), (2, 40), (5, 45), (3, 80)]));
    let (four, five) = (entry(&profile, 4).at_ms, entry(&profile, 5).at_ms);
    assert!(four.abs_diff(five) <= 10, "{four} and {five} were touched at the same place");
    let (two, three) = (entry(&profile, 2).at_ms, entry(&profile, 3).at_ms);
    assert!(two < five && four < three, "{two} {five} {four} {three}");
}

#[test]
fn one_odd_run_does_little_and_a_change_shows() {
    let usual = run(&[(1, 0), (2, 100), (3, 200), (4, 300)]);
    let changed = run(&[(1, 0), (4, 100), (3, 200), (2, 300)]);
    let mut profile = empty();
    (0..6).for_each(|_| profile.merge(&usual));
    profile.merge(&changed);
    assert_eq!(order(&profile), [1, 2, 3, 4]);
    (0..3).for_each(|_| profile.merge(&changed));
    assert_eq!(order(&profile), [1, 4, 3, 2]);
}

#[test]
fn groups_no_longer_touched_are_forgotten_and_new_ones_are_kept_for_a_while() {
    let mut profile = empty();
    (0..20).for_each(|_| profile.merge(&run(&[(1, 0), (2, 10)])));
    assert_eq!(profile.runs(), RUNS_MAX);
    profile.merge(&run(&[(1, 0), (2, 10), (8, 20)]));
    (0..7).for_each(|_| profile.merge(&run(&[(1, 0), (3, 10)])));
    assert!(order(&profile).contains(&8), "seen once in the last eight runs");
    profile.merge(&run(&[(1, 0), (3, 10)]));
    assert!(!order(&profile).contains(&8));
    assert!(order(&profile).contains(&2), "half of the remembered runs touched it");
    (0..8).for_each(|_| profile.merge(&run(&[(1, 0), (3, 10)])));
    assert_eq!(order(&profile), [1, 3]);
}

#[test]
fn a_run_without_touches_says_nothing() {
    let mut profile = empty();
    profile.merge(&run(&[(1, 0)]));
    let before = profile.clone();
    profile.merge(&Run::new());
    assert_eq!(profile, before);
}

#[test]
fn a_profile_is_bounded_and_its_bytes_are() {
    let most = u32::try_from(ENTRIES_MAX).unwrap();
    let mut profile = empty();
    // Numbers without a pattern, so that they do not compress.
    let scattered = |n: u32| GroupIdx(n.wrapping_mul(2_654_435_761));
    profile.merge(&Run::in_order((0..most + 10).map(scattered)));
    assert_eq!(profile.entries().len(), ENTRIES_MAX);
    profile.merge(&Run::in_order((most..3 * most).map(scattered)));
    assert_eq!(profile.entries().len(), ENTRIES_MAX);
    let bytes = profile.encode();
    assert!(bytes.len() as u64 <= ENCODED_LEN_MAX, "{}", bytes.len());
    assert_eq!(Profile::decode(&bytes).unwrap(), profile);
}

#[test]
fn groups_that_an_index_does_not_have_are_dropped() {
    let mut profile = empty();
    profile.merge(&run(&[(5, 0), (9, 1), (10, 2), (u32::MAX, 3), (0, 4)]));
    assert_eq!(profile.retain_groups(10), 2);
    assert_eq!(order(&profile), [5, 9, 0]);
}

/// Replaces the digest at the end of `bytes` with the correct one.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 32;
    let digest = Digest::of(&bytes[..end]);
    bytes[end..].copy_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn other_versions_are_refused_by_number() {
    let mut bytes = empty().encode();
    bytes[8] = 3;
    assert_eq!(Profile::decode(&bytes), Err(ProfileError::Version { found: 3 }));
    bytes.truncate(12);
    assert_eq!(Profile::decode(&bytes), Err(ProfileError::Version { found: 3 }));
}

#[test]
fn an_entry_of_the_first_version_stands_for_its_whole_group() {
    let mut profile = empty();
    profile.merge(&run(&[(5, 0), (9, 1)]));
    let mut bytes = profile.encode();
    bytes[8] = 1;
    assert!(matches!(Profile::decode(&sealed(bytes.clone())), Err(ProfileError::Damaged(_))));
    bytes[124] = 0;
    for at in [138, 150] {
        assert!(matches!(Profile::decode(&sealed(bytes.clone())), Err(ProfileError::Damaged(_))));
        bytes[at] = 0;
    }
    let decoded = Profile::decode(&sealed(bytes)).unwrap();
    assert_eq!(order(&decoded), [5, 9]);
    assert!(decoded.entries().iter().all(|entry| entry.units == UnitSet::ALL));
}

#[test]
fn a_set_of_units_is_that_of_a_range() {
    let kib = |n: u32| n << 10;
    let set = |from, to| UnitSet::of(from..to).bits();
    assert_eq!([set(0, 1), set(0, kib(64)), set(kib(64) - 1, kib(64) + 1)], [1, 1, 0b11]);
    assert_eq!([set(kib(128), kib(256)), set(5, 5)], [0b1100, 0]);
    assert_eq!(set(0, u32::MAX), u16::MAX);
    assert_eq!(set(kib(2000), kib(2001)), 1 << 15, "the rest of a large group shares a bit");
    let units = |bits, len| -> Vec<u32> {
        UnitSet::from_bits(bits).units(len).map(|unit| unit.0).collect()
    };
    assert_eq!(units(0b101, kib(512)), [0, 2]);
    assert_eq!(units(u16::MAX, kib(512) + 1), (0..9).collect::<Vec<_>>());
    assert_eq!(units(1 << 15, kib(1152)), [15, 16, 17]);
    let (one, two) = (UnitSet::from_bits(1), UnitSet::from_bits(2));
    assert!(one.with(two).contains(two) && !one.contains(two) && !one.is_empty());
}

#[test]
fn units_of_later_reads_are_added_and_those_of_old_runs_forgotten() {
    let touch = |group, bits, at| Touch {
        group: GroupIdx(group),
        units: UnitSet::from_bits(bits),
        at: Duration::from_millis(at),
    };
    let mut run = Run::new();
    assert!(run.record(touch(1, 0b1, 0)) && run.record(touch(2, 0b1, 5)));
    assert!(run.record(touch(1, 0b100, 9)) && !run.record(touch(3, 0, 9)));
    assert_eq!(run.touches(), [touch(1, 0b101, 0), touch(2, 0b1, 5)]);

    let mut profile = empty();
    profile.merge(&run);
    let other = [touch(1, 0b10, 0)].into_iter().collect();
    let units = |profile: &Profile, group| entry(profile, group).units.bits();
    for _ in 1..7 {
        profile.merge(&other);
    }
    assert_eq!((units(&profile, 1), units(&profile, 2)), (0b111, 0b1));
    profile.merge(&other);
    assert_eq!((units(&profile, 1), units(&profile, 2)), (0b10, 0b1), "the eighth run");
    profile.merge(&run);
    assert_eq!(units(&profile, 1), 0b111);
}

#[test]
fn every_bit_counts() {
    let mut profile = empty();
    profile.merge(&run(&[(5, 0), (9, 1), (10, 2)]));
    let bytes = profile.encode();
    for place in 0..bytes.len() * 8 {
        let mut wrong = bytes.clone();
        wrong[place / 8] ^= 1 << (place % 8);
        assert!(Profile::decode(&wrong).is_err(), "bit {place}");
    }
    for len in 0..bytes.len() {
        assert!(Profile::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let long = vec![0; usize::try_from(ENCODED_LEN_MAX).unwrap() + 1];
    assert!(matches!(Profile::decode(&long), Err(ProfileError::TooLong { .. })));
}

#[test]
fn contradictions_are_refused_though_the_digest_is_right() {
    let mut profile = empty();
    profile.merge(&run(&[(5, 0), (9, 1)]));
    let bytes = profile.encode();
    // Two entries do not compress, so they are stored plain, at offsets 128 and 140.
    assert_eq!(bytes.len(), 128 + 2 * 12 + 32);
    let cases: &[(&str, usize, &[u8])] = &[
        ("kind", 12, &[9]),
        ("an empty label", 48, &[0; 64]),
        ("no label", 48, b"../"),
        ("something after the label", 111, b"x"),
        ("more runs than are remembered", 112, &[17]),
        ("fewer runs than an entry saw", 112, &[0]),
        ("fewer entries", 116, &[1]),
        ("more entries", 116, &[3]),
        ("far more entries", 116, &[0, 0, 0, 0xff]),
        ("compressed", 120, &[1]),
        ("stored in an unknown way", 120, &[2]),
        ("a group twice", 140, &[5]),
        ("seen never", 136, &[0]),
        ("seen before the first run", 136, &[2]),
        ("without a touched unit", 138, &[0, 0]),
    ];
    for (what, at, patch) in cases {
        let mut wrong = bytes.clone();
        wrong[*at..at + patch.len()].copy_from_slice(patch);
        let refused = Profile::decode(&sealed(wrong));
        assert!(matches!(refused, Err(ProfileError::Damaged(_))), "{what}: {refused:?}");
    }
    assert_eq!(Profile::decode(&sealed(bytes)), Ok(profile));
}

#[test]
fn profiles_with_wrong_counts_or_trailing_bytes_are_refused() {
    let mut profile = empty();
    profile.merge(&Run::in_order((0..1000).map(GroupIdx)));
    let bytes = profile.encode();
    assert!(bytes.len() < 12_000, "{} bytes: it is compressed", bytes.len());
    for count in [999u32, 1001, 65_536] {
        let mut wrong = bytes.clone();
        wrong[116..120].copy_from_slice(&count.to_le_bytes());
        assert!(Profile::decode(&sealed(wrong)).is_err(), "{count}");
    }
    let mut behind = bytes.clone();
    behind.push(0);
    assert!(Profile::decode(&sealed(behind)).is_err(), "something stands behind the frame");
}

fn merge_all(profile: &mut Profile, runs: &[Run]) {
    for run in runs {
        profile.merge(run);
    }
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let touch = (0u32..40, 1u16.., 0u64..3000).prop_map(|(group, bits, at)| Touch {
        group: GroupIdx(group),
        units: UnitSet::from_bits(bits),
        at: Duration::from_millis(at),
    });
    let touches = prop::collection::vec(touch, 1..60).prop_map(|mut touches| {
        touches.sort_by_key(|touch| touch.at);
        touches.into_iter().collect()
    });
    prop::collection::vec(touches, 0..40)
}

proptest! {
    #[test]
    fn a_profile_comes_back(runs in runs(), label in "[a-z0-9][a-zA-Z0-9._-]{0,63}") {
        let mut profile = Profile::new(snapshot(), label.parse().unwrap());
        merge_all(&mut profile, &runs);
        prop_assert_eq!(Profile::decode(&profile.encode()), Ok(profile));
    }

    #[test]
    fn a_merged_profile_is_one(runs in runs()) {
        let mut profile = empty();
        for (count, run) in (1u32..).zip(&runs) {
            profile.merge(run);
            let groups: HashSet<_> = profile.groups().collect();
            prop_assert_eq!(groups.len(), profile.entries().len(), "each group once");
            prop_assert!(run.touches().iter().all(|touch| groups.contains(&touch.group)));
            prop_assert_eq!(profile.runs(), count.min(RUNS_MAX));
            let seen = |entry: &Entry| (1..=profile.runs()).contains(&entry.seen.count());
            prop_assert!(profile.entries().iter().all(seen));
        }
    }

    #[test]
    fn seen_counts_the_runs_that_touched(runs in runs()) {
        let mut profile = empty();
        merge_all(&mut profile, &runs);
        let remembered = &runs[runs.len().saturating_sub(16)..];
        for entry in profile.entries() {
            let touched = |run: &&Run| run.touches().iter().any(|touch| touch.group == entry.group);
            let count = remembered.iter().filter(touched).count();
            // The count of a group that was forgotten and came back starts anew.
            let seen = entry.seen.count() as usize;
            prop_assert!(seen == count || seen + 1 == count, "{} of {}", seen, count);
        }
    }

    #[test]
    fn one_run_again_and_again_keeps_its_order(runs in runs(), times in 1usize..40) {
        for run in runs {
            let mut profile = empty();
            (0..times).for_each(|_| profile.merge(&run));
            let expected: Vec<_> = run.touches().iter().map(|touch| touch.group.0).collect();
            prop_assert_eq!(order(&profile), expected);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let marked = [b"INLAYPRF\x02\0\0\0".as_slice(), &bytes, &[0; 32]].concat();
        let _ = Profile::decode(&bytes);
        let _ = Profile::decode(&marked);
        let _ = Profile::decode(&sealed(marked));
    }

    #[test]
    fn a_changed_profile_is_refused_or_is_one(
        runs in runs(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut profile = empty();
        merge_all(&mut profile, &runs);
        let mut bytes = profile.encode();
        for (at, byte) in changes {
            let place = at.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(mut profile) = Profile::decode(&sealed(bytes)) {
            prop_assert_eq!(Profile::decode(&profile.encode()), Ok(profile.clone()));
            merge_all(&mut profile, &runs);
        }
    }
}
