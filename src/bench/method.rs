//! The ways in which a start's files come to it, and the states that a host is in before a start.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A way of getting files to a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// A directory of the local disk: the limit.
    Native,
    /// inlay that fetches only what is read.
    NoPrefetch,
    /// inlay as it is at an image's first start anywhere.
    NoProfile,
    /// inlay with what an earlier start has taught.
    Profile,
    /// inlay on a host that has fetched everything before.
    Prefetched,
    /// Another way, by an adapter; its place in the list of them.
    Adapter {
        /// In the list of adapters.
        place: usize,
        /// What it calls itself.
        name: String,
    },
}

/// What a host has before a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Nothing: neither the image nor pages of it.
    Cold,
    /// All that the method keeps on disk; the kernel's caches are empty.
    Warm,
    /// All of it, and what a start a moment ago has left in the kernel's caches.
    Hot,
}

impl HostState {
    /// All, in the order in which a visit has them.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Warm, Self::Hot];
}

impl Method {
    /// Those of this program and the local directory, the limit first.
    pub const OWN: [Self; 5] =
        [Self::Native, Self::Profile, Self::NoProfile, Self::NoPrefetch, Self::Prefetched];

    /// As it is called on the command line and in reports.
    pub fn name(&self) -> &str {
        match self {
            Self::Native => "native",
            Self::NoPrefetch => "no-prefetch",
            Self::NoProfile => "no-profile",
            Self::Profile => "profile",
            Self::Prefetched => "prefetched",
            Self::Adapter { name, .. } => name,
        }
    }

    /// What it is, for people.
    pub fn about(&self) -> &str {
        match self {
            Self::Native => "the directory on the local disk: the limit",
            Self::NoPrefetch => "inlay, nothing loaded ahead of readers",
            Self::NoProfile => "inlay, the image's first start anywhere",
            Self::Profile => "inlay, with the profile of an earlier start",
            Self::Prefetched => "inlay, everything fetched before the start",
            Self::Adapter { .. } => "by an adapter",
        }
    }

    /// Those of `asked` in which it is measured. With cold starts, hot native ones always are: the ideal
    /// is made of them.
    pub(super) fn measured_in(&self, asked: &[HostState]) -> Vec<HostState> {
        let ideal = *self == Self::Native && asked.contains(&HostState::Cold);
        let is_measured =
            |state: &HostState| asked.contains(state) || (ideal && *state == HostState::Hot);
        self.states().iter().copied().filter(is_measured).collect()
    }

    /// The states in which it is measured: what has nothing to fetch has no cold host.
    pub fn states(&self) -> &'static [HostState] {
        match self {
            Self::Native | Self::Prefetched => &[HostState::Warm, HostState::Hot],
            Self::NoPrefetch | Self::NoProfile | Self::Profile | Self::Adapter { .. } => {
                &HostState::ALL
            }
        }
    }

    /// Whether it is this program's.
    pub fn is_inlay(&self) -> bool {
        !matches!(self, Self::Native | Self::Adapter { .. })
    }
}

impl fmt::Display for HostState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Hot => "hot",
        })
    }
}
