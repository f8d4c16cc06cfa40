//! How a sandbox's first process ended.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::files;
use super::layout::Layout;

/// The exit code of a process that was killed without anybody seeing how: that of SIGKILL.
const CODE_LOST: i32 = 137;

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Exit {
    /// The exit code as shells have it: 128 and the signal's number for a process that was killed.
    pub code: i32,
    /// Why.
    pub cause: ExitCause,
    /// Whether some process of the sandbox was killed because memory was used up.
    #[serde(default)]
    pub oom_killed: bool,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCause {
    /// Its first process ended.
    Ended,
    /// Its monitor was killed, and what was left of it was ended.
    MonitorLost,
    /// The host was started anew.
    HostRestarted,
}

impl Exit {
    /// An end just now.
    pub(super) fn now(code: i32, cause: ExitCause, oom_killed: bool) -> Self {
        Self { code, cause, oom_killed, at_ms: now_ms() }
    }

    /// An end that nobody saw.
    pub(super) fn lost(cause: ExitCause) -> Self {
        Self::now(CODE_LOST, cause, false)
    }

    /// What is recorded, if anything is.
    pub fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        files::read_json(&layout.exit())
    }

    /// Records it, durably.
    pub(super) fn write(&self, layout: &Layout) -> Result<(), SandboxError> {
        files::write_json(&layout.exit(), self)
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
