//! Who serves, and who is next: the keeper's decisions, without a clock and without a system call.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::wire::Claim;

#[cfg(test)]
mod tests;

/// One who is connected to the keeper. Numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerId(pub(super) u64);

/// What the keeper is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Hand everything on to this one.
    Grant(PeerId),
    /// Ask this one to end.
    AskToLeave(PeerId),
    /// Kill this one's process.
    Kill(PeerId),
    /// Start a server.
    Respawn,
    /// Answer every request with an error from now on.
    BeginRefusing,
    /// Stop that, before anything else is done.
    EndRefusing,
}

/// The times that matter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long one who was asked to leave, or has said goodbye, may go on.
    pub(super) grace: Duration,
    /// How long requests wait for a server.
    pub(super) deadline: Duration,
    /// How often a server is started in vain.
    pub(super) respawns: u32,
    /// The first pause before one is started again; each further one is twice as long.
    pub(super) pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free { since: Instant, refusing: bool },
    Serving { peer: PeerId },
    Ending { peer: PeerId, since: Instant, kill_at: Option<Instant> },
}

/// Whether a server said that it was going to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    Clean,
    Unexpected,
}

/// Who serves, and who waits for it.
#[derive(Debug)]
pub(super) struct Turns {
    limits: Limits,
    state: State,
    waiting: VecDeque<PeerId>,
    parting: Parting,
    has_served: bool,
    deaths: u64,
    respawned: u32,
    respawn_at: Option<Instant>,
}

impl Turns {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            state: State::Free { since: now, refusing: false },
            waiting: VecDeque::new(),
            parting: Parting::Clean,
            has_served: false,
            deaths: 0,
            respawned: 0,
            respawn_at: None,
        }
    }

    /// The session is not new: whether somebody has served it, and who does still, having been granted
    /// its turn by another keeper.
    pub(super) fn resume(&mut self, was_served: bool, server: Option<PeerId>) {
        self.has_served = was_served || server.is_some();
        if let Some(peer) = server {
            self.state = State::Serving { peer };
            self.parting = Parting::Unexpected;
        }
    }

    /// Who serves, or has not yet ended.
    pub(super) fn server(&self) -> Option<PeerId> {
        match self.state {
            State::Free { .. } => None,
            State::Serving { peer } | State::Ending { peer, .. } => Some(peer),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn deaths(&self) -> u64 {
        self.deaths
    }

    pub(super) fn is_refusing(&self) -> bool {
        matches!(self.state, State::Free { refusing: true, .. })
    }

    /// Whether nobody serves and nobody can be about to: every process that served has ended.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free { .. })
    }

    /// Somebody wants to serve.
    pub(super) fn claim(&mut self, peer: PeerId, how: Claim, now: Instant) -> Vec<Action> {
        if self.server() == Some(peer) || self.waiting.contains(&peer) {
            return Vec::new();
        }
        match how {
            Claim::WhenFree => self.waiting.push_back(peer),
            Claim::TakeOver => self.waiting.push_front(peer),
        }
        match self.state {
            State::Free { .. } => self.grant_next(),
            State::Serving { peer: server } if how == Claim::TakeOver => {
                self.parting = Parting::Clean;
                self.ending(server, now);
                vec![Action::AskToLeave(server)]
            }
            State::Serving { .. } | State::Ending { .. } => Vec::new(),
        }
    }

    /// The server answers the kernel.
    pub(super) fn serving(&mut self, peer: PeerId) {
        if self.server() == Some(peer) {
            self.has_served = true;
            self.respawned = 0;
        }
    }

    /// The server is about to end.
    pub(super) fn goodbye(&mut self, peer: PeerId, now: Instant) {
        if self.server() == Some(peer) {
            self.parting = Parting::Clean;
            self.ending(peer, now);
        }
    }

    /// A connection to the keeper has ended; the process may live on.
    pub(super) fn closed(&mut self, peer: PeerId, now: Instant) {
        self.waiting.retain(|waiting| *waiting != peer);
        if self.state == (State::Serving { peer }) {
            self.parting = Parting::Unexpected;
            self.ending(peer, now);
        }
    }

    /// The server's process has ended.
    pub(super) fn dead(&mut self, peer: PeerId, now: Instant) -> Vec<Action> {
        let since = match self.state {
            State::Serving { peer: server } if server == peer => {
                self.parting = Parting::Unexpected;
                now
            }
            State::Ending { peer: server, since, .. } if server == peer => since,
            _ => return Vec::new(),
        };
        self.state = State::Free { since, refusing: false };
        if self.parting == Parting::Unexpected {
            self.deaths += 1;
            self.respawn_at = Some(now);
        }
        self.grant_next()
    }

    /// A server that was started ended before it claimed.
    pub(super) fn respawn_failed(&mut self, now: Instant) {
        if self.is_free() && self.respawned > 0 {
            let pause = self.limits.pause.saturating_mul(1 << self.respawned.min(10));
            self.respawn_at = now.checked_add(pause);
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Action> {
        match &mut self.state {
            State::Serving { .. } => Vec::new(),
            State::Ending { peer, kill_at, .. } => match kill_at {
                Some(at) if *at <= now => {
                    *kill_at = None;
                    vec![Action::Kill(*peer)]
                }
                _ => Vec::new(),
            },
            State::Free { since, refusing } => {
                let mut actions = Vec::new();
                let late = now.saturating_duration_since(*since) >= self.limits.deadline;
                if late && !*refusing && self.has_served {
                    *refusing = true;
                    actions.push(Action::BeginRefusing);
                }
                if self.respawn_at.is_some_and(|at| at <= now) {
                    self.respawn_at = None;
                    if self.respawned < self.limits.respawns {
                        self.respawned += 1;
                        actions.push(Action::Respawn);
                    }
                }
                actions
            }
        }
    }

    /// When [`Turns::tick`] has something to do.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        match self.state {
            State::Serving { .. } => None,
            State::Ending { kill_at, .. } => kill_at,
            State::Free { since, refusing } => {
                let late = (!refusing && self.has_served)
                    .then(|| since.checked_add(self.limits.deadline))
                    .flatten();
                [late, self.respawn_at].into_iter().flatten().min()
            }
        }
    }

    fn ending(&mut self, peer: PeerId, now: Instant) {
        if let State::Serving { .. } = self.state {
            let kill_at = now.checked_add(self.limits.grace);
            self.state = State::Ending { peer, since: now, kill_at };
        }
    }

    fn grant_next(&mut self) -> Vec<Action> {
        let Some(peer) = self.waiting.pop_front() else { return Vec::new() };
        let mut actions = Vec::new();
        if self.is_refusing() {
            actions.push(Action::EndRefusing);
        }
        self.state = State::Serving { peer };
        self.parting = Parting::Unexpected;
        self.respawn_at = None;
        actions.push(Action::Grant(peer));
        actions
    }
}
