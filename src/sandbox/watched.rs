//! What a monitor looks after, for those who come when it is gone.

use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::files;
use super::layout::Layout;
use crate::mount::ProcessId;

const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The record of a monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MonitorRecord {
    /// Since when the numbers of processes count.
    pub(super) boot: String,
    /// The monitor itself.
    pub(super) monitor: ProcessId,
    /// The first process, once there is one.
    pub(super) init: Option<ProcessId>,
}

impl MonitorRecord {
    pub(super) fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        files::read_json(&layout.monitor_record())
    }

    pub(super) fn write(&self, layout: &Layout) -> Result<(), SandboxError> {
        files::write_json(&layout.monitor_record(), self)
    }

    /// Kills the monitor, if it is still the one that was recorded.
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

/// This life of the host.
pub(super) fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| std::fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned())
}
