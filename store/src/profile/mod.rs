//! Profiles: the order in which earlier runs first touched a snapshot's groups, which is the order
//! in which the next run should fetch them.
//!
//! A profile only orders fetching. Every group is verified against its own digest when it arrives,
//! so a wrong, stale or hostile profile costs only time.
//!
//! # The order
//!
//! There are two kinds of mistakes, with different costs. A group that is fetched but not needed
//! delays all later ones by its transfer. A group that is needed but was not fetched costs one
//! round trip, because a reader's demand overtakes all prefetching. Let `p` be the share of the
//! remembered runs that touched a group. Fetching the group at its position saves a round trip in
//! `p` of the runs and wastes a transfer in the others; which is larger depends on the link, and
//! both are small. So a group that few runs touched is not left out: it comes later, behind the
//! groups that most runs need soon, and before those that they need much later.
//!
//! Groups are therefore sorted by `(t + 50 ms) / p`, where `t` is the mean time of first touch. A
//! group that every run touches keeps its time; a group that one run in four touches is sorted as
//! if its time were four times as late. This is a factor rather than a delay, so that the order
//! does not depend on how fast the runs were. Without the 50 ms, about one round trip, likelihood
//! would have no effect at the very start.
//!
//! # Time
//!
//! Only the relation between the times of different groups matters, so three effects are evened
//! out.
//!
//! - Times count from the run's first touch, because minutes may pass between attaching a snapshot
//!   and using it. A pause of more than a second counts as one second, because no reader waits
//!   during it.
//! - The same run can take many times as long from a distant store as from a warm cache. Before a
//!   run's times are averaged with the profile's, the two clocks are compared by the median ratio
//!   of the groups that both have. Groups that the run did not touch move along, and groups that
//!   only the run touched are placed between the same neighbours as in the run.
//! - The mean is exponentially weighted, with a quarter for the newest run, so that one unusual run
//!   has little effect and a change in the program shows after a few.
//!
//! # Memory
//!
//! For each group, sixteen bits record which of the last sixteen runs touched it. A group is
//! forgotten when fewer than one in eight runs touched it, and none of the last eight: a new group
//! has eight runs to prove itself, and a profile of an older use is replaced within sixteen.
//!
//! For each group, sixteen more bits record which of its units were touched. A unit that a run
//! touches is added; every eighth run, those that it does not touch are
//! forgotten.

mod codec;
mod error;
mod label;
mod merge;
mod model;
mod run;

pub use codec::{ENCODED_LEN_MAX, VERSION};
pub use error::ProfileError;
pub use label::{LabelError, ProfileLabel};
pub use model::{ENTRIES_MAX, Entry, Profile, RUNS_MAX, Seen, UnitSet};
pub use run::{Run, Touch};

#[cfg(test)]
mod tests;
