//! Records the processes of a monitor, for recovery after it is gone.

use std::path::Path;

use inlay_base::boot;
use inlay_base::record::Record;
use inlay_mounts::ProcessId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::files;
use super::layout::Layout;

/// The record of a monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MonitorRecord {
    /// The boot during which the pids are valid.
    pub(super) boot: String,
    /// The monitor itself.
    pub(super) monitor: ProcessId,
    /// The first process, once it exists.
    pub(super) init: Option<ProcessId>,
}

impl Record for MonitorRecord {
    const VERSION: u32 = 1;
}

impl MonitorRecord {
    pub(super) fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        files::read_record(&layout.monitor_record())
    }

    pub(super) fn write(&self, layout: &Layout) -> Result<(), SandboxError> {
        files::write_record(&layout.monitor_record(), self)
    }

    /// Kills the monitor if it is still the recorded process. No-op otherwise.
    pub(super) fn kill_monitor(&self) -> Result<(), SandboxError> {
        let pid = i32::try_from(self.monitor.pid).ok().and_then(Pid::from_raw);
        let Some(handle) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return Ok(());
        };
        if !self.monitor.is_alive() {
            return Ok(());
        }
        pidfd_send_signal(handle, Signal::KILL)
            .map_err(SandboxError::io("kill", Path::new("the monitor")))
    }
}

/// Returns the kernel's id of this boot; empty if it is unreadable.
pub(super) fn boot_id() -> &'static str {
    boot::boot_id().unwrap_or_default()
}
