//! Lists the methods that supply files to a start, and the states of a host before it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A way to supply files to a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// A directory on the local disk: the limit.
    Native,
    /// inlay without prefetch.
    NoPrefetch,
    /// inlay without a profile, as at the first start of an image anywhere.
    NoProfile,
    /// inlay with the profile of an earlier start.
    Profile,
    /// inlay on a host that has prefetched everything.
    Prefetched,
    /// Another method, through an adapter.
    Adapter {
        /// Position in the list of adapters.
        place: usize,
        /// The adapter's name.
        name: String,
    },
}

/// State of a host before a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Neither the image nor its pages in the page cache.
    Cold,
    /// Everything the method keeps on disk; the kernel's caches are empty.
    Warm,
    /// As warm, plus the kernel caches left by the preceding start.
    Hot,
}

impl HostState {
    /// All states in the order of a visit.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Warm, Self::Hot];
}

impl Method {
    /// The local directory (the limit) first, then the methods of inlay.
    pub const OWN: [Self; 5] =
        [Self::Native, Self::Profile, Self::NoProfile, Self::NoPrefetch, Self::Prefetched];

    /// Name on the command line and in reports.
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

    /// Description for reports.
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

    /// Returns the requested states in which the method is measured. Cold starts imply the hot
    /// native start, which is part of the ideal.
    pub(super) fn measured_in(&self, asked: &[HostState]) -> Vec<HostState> {
        let ideal = *self == Self::Native && asked.contains(&HostState::Cold);
        let is_measured =
            |state: &HostState| asked.contains(state) || (ideal && *state == HostState::Hot);
        self.states().iter().copied().filter(is_measured).collect()
    }

    /// States in which the method can be measured: one that fetches nothing has no cold state.
    pub fn states(&self) -> &'static [HostState] {
        match self {
            Self::Native | Self::Prefetched => &[HostState::Warm, HostState::Hot],
            Self::NoPrefetch | Self::NoProfile | Self::Profile | Self::Adapter { .. } => {
                &HostState::ALL
            }
        }
    }

    /// Whether this is a method of inlay.
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
