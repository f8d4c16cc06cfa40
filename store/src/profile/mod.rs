//! Profiles: in which order earlier runs first touched a snapshot's groups, and so in which order
//! the next run had better fetch them.
//!
//! A profile only orders fetching. Every group is verified by its own digest when it comes, so a
//! profile that is wrong, old or hostile costs time at most.
//!
//! # The order
//!
//! Two mistakes are possible, and they cost unlike amounts. A group that is fetched and not needed
//! delays all that follow by its transfer. A group that is needed and was not fetched costs one
//! round trip, because a reader's demand overtakes all prefetching. With `p` the share of the
//! remembered runs that touched a group, fetching it in its place saves a round trip in `p` of the
//! runs and wastes a transfer in the others; which is more depends on the link, and both are small.
//! So a group that few runs touched is not left out: it is put later, behind what most runs need
//! soon, and before what they need much later.
//!
//! Groups are therefore sorted by `(t + 50 ms) / p`, where `t` is the mean time of first touch. What
//! every run touches keeps its time; what one run of four touched is put where four times its time
//! would be. A factor rather than a delay, so that the order does not depend on how fast the runs
//! were. Without the 50 ms, about one round trip, no likelihood would matter right at the start.
//!
//! # Time
//!
//! Only how the times of different groups compare is of use, so three things are evened out.
//!
//! - Times count from the run's first touch, because minutes may lie between attaching a snapshot
//!   and using it; and a pause of more than a second counts as one, because nobody waits in it.
//! - The same run can take many times as long from a distant store as from a warm cache. Before a
//!   run's times are averaged with the profile's, the two clocks are compared by the median ratio
//!   of the groups that both have. What the run did not touch moves along, and what only it touched
//!   is put between the same neighbours as in the run.
//! - The mean is exponentially weighted, with a quarter for the newest run, so that one odd run does
//!   little and a change in the program shows after a few.
//!
//! # Memory
//!
//! For each group, sixteen bits say which of the last sixteen runs touched it. It is forgotten when
//! fewer than one in eight did, and none of the last eight: a new group has eight runs to prove
//! itself, and a profile that was made for an older use is replaced within sixteen.

mod codec;
mod error;
mod label;
mod merge;
mod model;
mod run;

pub use codec::ENCODED_LEN_MAX;
pub use error::ProfileError;
pub use label::{LabelError, ProfileLabel};
pub use model::{ENTRIES_MAX, Entry, Profile, RUNS_MAX, Seen};
pub use run::{Run, Touch};

#[cfg(test)]
mod tests;
