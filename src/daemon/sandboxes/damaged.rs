//! Sandboxes with damaged records. They are left in place, listed with the reason, and removed only
//! by id and with force.

use std::sync::Arc;

use inlay_sandbox::{
    Layout, MonitorStatus, SandboxId, SandboxOptions, SandboxRecord, give_up, name_in_record,
};

use super::{Sandbox, Sandboxes};
use crate::daemon::error::DaemonError;

/// A damaged sandbox.
#[derive(Debug, Clone)]
pub(super) struct DamagedSandbox {
    pub(super) layout: Layout,
    /// Its name, if readable. It stays reserved.
    pub(super) name: Option<String>,
    /// Which record is damaged, and how.
    pub(super) why: String,
}

impl DamagedSandbox {
    pub(super) fn new(layout: Layout, why: String) -> Self {
        let name = name_in_record(&layout);
        Self { layout, name, why }
    }

    pub(super) fn id(&self) -> &SandboxId {
        self.layout.id()
    }

    /// Returns the error for operations on it: why nothing can be done, and the remedy.
    pub(super) fn error(&self) -> DaemonError {
        DaemonError::DamagedSandbox { id: self.id().clone(), why: self.why.clone() }
    }

    /// Returns the status of its processes from its monitor; `None` if no monitor answers.
    pub(super) fn monitor_status(&self) -> Option<MonitorStatus> {
        let monitor = inlay_sandbox::Monitor::of(&self.layout);
        monitor.status().ok()
    }

    /// Whether its processes run, according to its monitor.
    pub(super) fn runs(&self) -> bool {
        self.monitor_status().is_some_and(|status| status.exit.is_none())
    }

    /// Marks it as being removed, durably: the next daemon resumes the removal after a crash.
    pub(super) fn given_up(&self) -> Result<Arc<Sandbox>, DaemonError> {
        let record = unknown(self.id());
        give_up(&self.layout, &record)?;
        Ok(Sandbox::new(self.layout.clone(), record))
    }
}

impl Sandboxes {
    pub(super) fn add_damaged(&self, damaged: DamagedSandbox) {
        tracing::error!(
            sandbox = %damaged.id(), why = damaged.why,
            "a sandbox is damaged; leaving it unchanged"
        );
        self.damaged.lock().insert(damaged.id().clone(), damaged);
    }

    /// Lists damaged sandboxes, ordered by id.
    pub(super) fn damaged(&self) -> Vec<DamagedSandbox> {
        self.damaged.lock().values().cloned().collect()
    }

    /// Returns the damaged sandbox with exactly this id.
    pub(super) fn damaged_with_id(&self, id: &str) -> Option<DamagedSandbox> {
        self.damaged.lock().values().find(|damaged| damaged.id().as_str() == id).cloned()
    }

    /// Returns a damaged sandbox that matches `reference`: its id, a prefix of it, or its name.
    pub(super) fn damaged_meant(&self, reference: &str) -> Option<DamagedSandbox> {
        let damaged = self.damaged.lock();
        let fits = |damaged: &&DamagedSandbox| {
            damaged.name.as_deref() == Some(reference)
                || reference.len() >= super::ID_PREFIX_MIN
                    && damaged.id().as_str().starts_with(reference)
        };
        damaged.values().find(fits).cloned()
    }

    pub(super) fn forget_damaged(&self, id: &SandboxId) {
        self.damaged.lock().remove(id);
    }
}

/// Returns a placeholder for a missing or unreadable record.
pub(super) fn unknown(id: &SandboxId) -> SandboxRecord {
    let nothing = inlay_snapshots::empty_id();
    let options = SandboxOptions::default();
    SandboxRecord::new(id.clone(), id.to_string(), nothing, serde_json::Value::Null, options)
}
