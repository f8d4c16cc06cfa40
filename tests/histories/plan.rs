//! A history as data: what clients do and what goes wrong, generated from a seed.

use std::fmt;

use fastrand::Rng;

/// Clients that act at the same time. Each has a sandbox of its own.
pub(crate) const CLIENTS: usize = 2;
/// Rounds of a generated history.
const ROUNDS: usize = 7;
/// Mount points of each sandbox.
const SLOTS: u8 = 2;
/// Files of each directory.
const FILES: u8 = 3;

/// A directory of a client's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// `/w`, in the sandbox's root.
    Work,
    /// A mount point, below a directory that is renamed.
    Slot(u8),
    /// The directory above all mount points.
    Above,
}

/// How long a snapshot is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    Sealed,
    Durable,
}

/// What happens to the changes of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changes {
    Keep,
    Discard,
}

/// Whether a write is synced before it counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    No,
    Yes,
}

/// What one client does in one round. An operation whose precondition does not hold is skipped, so
/// that every part of a history is a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Create,
    Write(Place, u8, Flush),
    Delete(Place, u8),
    CopyIn(Place),
    CopyOut(Place),
    /// Both clients copy into one directory of the first client's sandbox.
    CopyShared,
    Mount(u8, u8),
    Umount(u8, Changes),
    RenameAbove,
    Snapshot(Place, Wait, u8),
    Sync,
    Stop,
    Remove,
    Check,
}

/// What goes wrong in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    KillDaemon,
    KillKeeperAndDaemon,
    KillMonitor(usize),
    KillClients,
    PowerCut,
    StoreDown,
    DiskFull,
    CacheLost,
    /// A takeover by the next daemon.
    Upgrade,
    /// The same, after each record has got a field of a later version.
    Downgrade,
}

/// One round: the clients act at the same time, and a fault happens some milliseconds later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) ops: Vec<Option<Op>>,
    pub(crate) fault: Option<(Fault, u64)>,
}

/// A seed, and the rounds of it that are played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    pub(crate) seed: u64,
    pub(crate) rounds: Vec<Round>,
}

impl History {
    /// The history of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut rounds = vec![Round { ops: vec![Some(Op::Create); CLIENTS], fault: None }];
        for _ in 1..ROUNDS {
            let ops = (0..CLIENTS).map(|_| Some(op(&mut rng))).collect();
            let fault = (rng.u8(..100) < 45).then(|| (fault(&mut rng), rng.u64(..250)));
            rounds.push(Round { ops, fault });
        }
        Self { seed, rounds }
    }

    /// All histories with one thing less, the largest cuts first.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut out = Vec::new();
        let mut with = |rounds: Vec<Round>| out.push(Self { seed: self.seed, rounds });
        for at in (0..self.rounds.len()).rev() {
            let mut rounds = self.rounds.clone();
            rounds.remove(at);
            with(rounds);
        }
        for (at, round) in self.rounds.iter().enumerate() {
            if round.fault.is_some() {
                let mut rounds = self.rounds.clone();
                rounds[at].fault = None;
                with(rounds);
            }
            for client in 0..CLIENTS {
                if round.ops[client].is_some() {
                    let mut rounds = self.rounds.clone();
                    rounds[at].ops[client] = None;
                    with(rounds);
                }
            }
        }
        out
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "history {}", self.seed)?;
        for round in &self.rounds {
            for (client, op) in round.ops.iter().enumerate() {
                if let Some(op) = op {
                    write!(f, "  client {client}: {op:?};")?;
                }
            }
            match round.fault {
                Some((fault, after)) => writeln!(f, "  after {after} ms: {fault:?}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

fn place(rng: &mut Rng) -> Place {
    match rng.u8(..10) {
        0..4 => Place::Work,
        4..8 => Place::Slot(rng.u8(..SLOTS)),
        _ => Place::Above,
    }
}

/// A place that takes files.
fn directory(rng: &mut Rng) -> Place {
    if rng.bool() { Place::Work } else { Place::Slot(rng.u8(..SLOTS)) }
}

fn op(rng: &mut Rng) -> Op {
    match rng.u8(..100) {
        0..6 => Op::Create,
        6..22 => {
            let flush = if rng.u8(..4) == 0 { Flush::Yes } else { Flush::No };
            Op::Write(directory(rng), rng.u8(..FILES), flush)
        }
        22..26 => Op::Delete(directory(rng), rng.u8(..FILES)),
        26..32 => Op::CopyIn(directory(rng)),
        32..36 => Op::CopyOut(directory(rng)),
        36..40 => Op::CopyShared,
        40..56 => Op::Mount(rng.u8(..SLOTS), rng.u8(..)),
        56..63 => {
            let changes = if rng.bool() { Changes::Keep } else { Changes::Discard };
            Op::Umount(rng.u8(..SLOTS), changes)
        }
        63..69 => Op::RenameAbove,
        69..86 => {
            let wait = if rng.bool() { Wait::Sealed } else { Wait::Durable };
            Op::Snapshot(place(rng), wait, rng.u8(..2))
        }
        86..89 => Op::Sync,
        89..92 => Op::Stop,
        92..95 => Op::Remove,
        _ => Op::Check,
    }
}

fn fault(rng: &mut Rng) -> Fault {
    match rng.u8(..100) {
        0..25 => Fault::KillDaemon,
        25..30 => Fault::KillKeeperAndDaemon,
        30..38 => Fault::KillMonitor(rng.usize(..CLIENTS)),
        38..46 => Fault::KillClients,
        46..62 => Fault::PowerCut,
        62..72 => Fault::StoreDown,
        72..78 => Fault::DiskFull,
        78..84 => Fault::CacheLost,
        84..92 => Fault::Upgrade,
        _ => Fault::Downgrade,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_history_and_each_cut_is_smaller() {
        let history = History::of(7);
        assert_eq!(history, History::of(7));
        assert_ne!(history, History::of(8));
        let size = |history: &History| {
            let of = |round: &Round| {
                1 + round.ops.iter().flatten().count() + usize::from(round.fault.is_some())
            };
            history.rounds.iter().map(of).sum::<usize>()
        };
        assert!(history.smaller().iter().all(|one| size(one) < size(&history)));
    }
}
