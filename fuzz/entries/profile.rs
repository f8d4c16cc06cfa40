//! The decoder of profiles. A store may give any bytes for one.

use inlay_store::ids::Digest;
use inlay_store::profile::{ENTRIES_MAX, Profile, RUNS_MAX, Run};

/// Takes the bytes as a profile, once as they are and once with the digest that they should have.
pub(crate) fn run(bytes: &[u8]) {
    check(bytes);
    let sealed = [bytes, Digest::of(bytes).as_bytes()].concat();
    check(&sealed);
}

fn check(bytes: &[u8]) {
    let Ok(mut profile) = Profile::decode(bytes) else { return };
    assert!(profile.entries().len() <= ENTRIES_MAX, "no profile has more entries than the limit");
    assert!(profile.runs() <= RUNS_MAX, "no profile remembers more runs than the limit");
    assert_eq!(Profile::decode(&profile.encode()).as_ref(), Ok(&profile), "it comes back");
    // Whatever it is, runs can be added, and then it is as good as any.
    let run = Run::in_order(profile.groups().take(10));
    profile.merge(&run);
    assert_eq!(Profile::decode(&profile.encode()), Ok(profile), "it comes back after a run");
}
