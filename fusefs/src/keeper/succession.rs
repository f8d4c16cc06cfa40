//! Decides which process serves and which is next, as a pure state machine without a clock or
//! syscalls.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::wire::Claim;

#[cfg(test)]
mod tests;

/// A client of the keeper. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerId(pub(super) u64);

/// An action for the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Grant the session to this client.
    Grant(PeerId),
    /// Ask this server to exit.
    AskToLeave(PeerId),
    /// Kill this server's process.
    Kill(PeerId),
    /// Start a server.
    Respawn,
    /// Answer every request with an error from now on.
    BeginRefusing,
    /// Stop doing so, before any other action.
    EndRefusing,
}

/// Timing limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time for a server to exit after a goodbye or a request to leave.
    pub(super) grace: Duration,
    /// How long requests wait for a server.
    pub(super) deadline: Duration,
    /// Maximum number of failed respawns.
    pub(super) respawns: u32,
    /// Base of the exponential backoff between respawns: after the n-th failed one, the pause is
    /// `pause * 2^n`.
    pub(super) pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TurnState {
    Free { since: Instant, refusing: bool },
    Serving { peer: PeerId },
    Ending { peer: PeerId, since: Instant, kill_at: Option<Instant> },
}

/// Whether a server announced its exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    Clean,
    Unexpected,
}

/// The current server and the clients waiting for the session.
#[derive(Debug)]
pub(super) struct Turns {
    limits: Limits,
    state: TurnState,
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
            state: TurnState::Free { since: now, refusing: false },
            waiting: VecDeque::new(),
            parting: Parting::Clean,
            has_served: false,
            deaths: 0,
            respawned: 0,
            respawn_at: None,
        }
    }

    /// Resumes a session of an earlier keeper. `was_served` says whether it ever had a server;
    /// `server` is the one that still serves.
    pub(super) fn resume(&mut self, was_served: bool, server: Option<PeerId>) {
        self.has_served = was_served || server.is_some();
        if let Some(peer) = server {
            self.state = TurnState::Serving { peer };
            self.parting = Parting::Unexpected;
        }
    }

    /// Returns the server, including one that is exiting.
    pub(super) fn server(&self) -> Option<PeerId> {
        match self.state {
            TurnState::Free { .. } => None,
            TurnState::Serving { peer } | TurnState::Ending { peer, .. } => Some(peer),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn deaths(&self) -> u64 {
        self.deaths
    }

    pub(super) fn is_refusing(&self) -> bool {
        matches!(self.state, TurnState::Free { refusing: true, .. })
    }

    /// Returns whether the session is free: every process that served has exited.
    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, TurnState::Free { .. })
    }

    /// Handles a client's claim.
    pub(super) fn claim(&mut self, peer: PeerId, how: Claim, now: Instant) -> Vec<Action> {
        if self.server() == Some(peer) || self.waiting.contains(&peer) {
            return Vec::new();
        }
        match how {
            Claim::WhenFree => self.waiting.push_back(peer),
            Claim::TakeOver => self.waiting.push_front(peer),
        }
        match self.state {
            TurnState::Free { .. } => self.grant_next(),
            TurnState::Serving { peer: server } if how == Claim::TakeOver => {
                self.parting = Parting::Clean;
                self.ending(server, now);
                vec![Action::AskToLeave(server)]
            }
            TurnState::Serving { .. } | TurnState::Ending { .. } => Vec::new(),
        }
    }

    /// Handles the server's report that it answers the kernel.
    pub(super) fn serving(&mut self, peer: PeerId) {
        if self.server() == Some(peer) {
            self.has_served = true;
            self.respawned = 0;
        }
    }

    /// Handles the server's goodbye.
    pub(super) fn goodbye(&mut self, peer: PeerId, now: Instant) {
        if self.server() == Some(peer) {
            self.parting = Parting::Clean;
            self.ending(peer, now);
        }
    }

    /// Handles the end of a client's connection; its process may live on.
    pub(super) fn closed(&mut self, peer: PeerId, now: Instant) {
        self.waiting.retain(|waiting| *waiting != peer);
        if self.state == (TurnState::Serving { peer }) {
            self.parting = Parting::Unexpected;
            self.ending(peer, now);
        }
    }

    /// Handles the exit of the server's process.
    pub(super) fn dead(&mut self, peer: PeerId, now: Instant) -> Vec<Action> {
        let since = match self.state {
            TurnState::Serving { peer: server } if server == peer => {
                self.parting = Parting::Unexpected;
                now
            }
            TurnState::Ending { peer: server, since, .. } if server == peer => since,
            _ => return Vec::new(),
        };
        self.state = TurnState::Free { since, refusing: false };
        if self.parting == Parting::Unexpected {
            self.deaths += 1;
            self.respawn_at = Some(now);
        }
        self.grant_next()
    }

    /// Handles a respawned server that exited before it claimed the session.
    pub(super) fn respawn_failed(&mut self, now: Instant) {
        if self.is_free() && self.respawned > 0 {
            let pause = self.limits.pause.saturating_mul(1 << self.respawned.min(10));
            self.respawn_at = now.checked_add(pause);
        }
    }

    /// Handles timeouts due at `now`.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Action> {
        match &mut self.state {
            TurnState::Serving { .. } => Vec::new(),
            TurnState::Ending { peer, kill_at, .. } => match kill_at {
                Some(at) if *at <= now => {
                    *kill_at = None;
                    vec![Action::Kill(*peer)]
                }
                _ => Vec::new(),
            },
            TurnState::Free { since, refusing } => {
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

    /// Returns when [`Turns::tick`] is due next.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        match self.state {
            TurnState::Serving { .. } => None,
            TurnState::Ending { kill_at, .. } => kill_at,
            TurnState::Free { since, refusing } => {
                let late = (!refusing && self.has_served)
                    .then(|| since.checked_add(self.limits.deadline))
                    .flatten();
                [late, self.respawn_at].into_iter().flatten().min()
            }
        }
    }

    fn ending(&mut self, peer: PeerId, now: Instant) {
        if let TurnState::Serving { .. } = self.state {
            let kill_at = now.checked_add(self.limits.grace);
            self.state = TurnState::Ending { peer, since: now, kill_at };
        }
    }

    fn grant_next(&mut self) -> Vec<Action> {
        let Some(peer) = self.waiting.pop_front() else { return Vec::new() };
        let mut actions = Vec::new();
        if self.is_refusing() {
            actions.push(Action::EndRefusing);
        }
        self.state = TurnState::Serving { peer };
        self.parting = Parting::Unexpected;
        self.respawn_at = None;
        actions.push(Action::Grant(peer));
        actions
    }
}
