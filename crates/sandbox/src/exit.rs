//! Records how a sandbox's first process ended.

use inlay_base::record::Record;
use inlay_base::time::unix_millis;
use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::files;
use super::layout::Layout;

/// The exit code when the real one is unknown: SIGKILL's.
const CODE_LOST: i32 = 137;

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Exit {
    /// The exit code by shell convention: 128 plus the signal number for a process killed by a
    /// signal.
    pub code: i32,
    /// The cause.
    pub cause: ExitCause,
    /// Whether the OOM killer killed a process of the sandbox.
    #[serde(default)]
    pub oom_killed: bool,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCause {
    /// Its first process exited.
    Ended,
    /// Its monitor was killed, and the remaining processes were killed.
    MonitorLost,
    /// The host was rebooted.
    HostRestarted,
}

impl Record for Exit {
    const VERSION: u32 = 1;
}

impl Exit {
    /// An exit at the current time.
    pub(super) fn now(code: i32, cause: ExitCause, oom_killed: bool) -> Self {
        Self { code, cause, oom_killed, at_ms: unix_millis() }
    }

    /// An exit that was not observed.
    pub(super) fn lost(cause: ExitCause) -> Self {
        Self::now(CODE_LOST, cause, false)
    }

    /// Reads the recorded exit; `None` if there is none yet.
    pub fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        files::read_record(&layout.exit())
    }

    /// Records the exit durably.
    pub(super) fn write(&self, layout: &Layout) -> Result<(), SandboxError> {
        files::write_record(&layout.exit(), self)
    }
}
