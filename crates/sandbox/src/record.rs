//! The persistent record of a sandbox.

use inlay_base::record::{Record, Unknown};
use inlay_base::time::unix_millis;
use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bundle::Bundle;
use super::error::SandboxError;
use super::exit::Exit;
use super::files::{self, COMMAND_LEN_MAX};
use super::id::SandboxId;
use super::layout::Layout;
use super::options::SandboxOptions;

/// The version of the record format.
const VERSION: u32 = 1;

/// A sandbox as the daemon records it. Written ahead of each step it describes, so that recovery
/// knows everything a crash may leave behind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The version of the record format.
    pub version: u32,
    /// Its id.
    pub id: SandboxId,
    /// Its human-readable name; unique among the sandboxes of a state directory.
    pub name: String,
    /// The snapshot of its root at creation.
    pub snapshot: SnapshotId,
    /// The snapshot's store, in a form that only the daemon interprets.
    pub store: Value,
    /// Its creation time, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Its options.
    pub options: SandboxOptions,
    /// The resolved configuration, once known.
    pub bundle: Option<Bundle>,
    /// Its lifecycle phase.
    pub phase: Phase,
    /// The idempotency key of the request that created it.
    pub idempotency_key: Option<String>,
    /// Fields that a newer version has written and this one does not know.
    #[serde(skip)]
    pub unknown: Unknown,
}

impl Record for SandboxRecord {
    const VERSION: u32 = VERSION;
    const LEN_MAX: u64 = COMMAND_LEN_MAX;

    fn unknown(&self) -> Option<&Unknown> {
        Some(&self.unknown)
    }

    fn keep_unknown(&mut self, unknown: Unknown) {
        self.unknown = unknown;
    }
}

/// A phase in a sandbox's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Phase {
    /// It is being created. After a daemon restart: incomplete.
    Creating,
    /// Its first process was started, or is about to be.
    Running,
    /// Its first process has ended.
    Stopped {
        /// How it ended.
        exit: Exit,
    },
    /// It is being removed and can't be used any more.
    Removing,
}

/// Returns the sandbox's name from a damaged record, if that is still JSON with a name.
pub fn name_in_record(layout: &Layout) -> Option<String> {
    let bytes = files::read(&layout.record(), SandboxRecord::LEN_MAX).ok()??;
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    value.get("name")?.as_str().map(str::to_owned)
}

impl SandboxRecord {
    /// Creates the record of a new sandbox, in [`Phase::Creating`].
    pub fn new(
        id: SandboxId,
        name: String,
        snapshot: SnapshotId,
        store: Value,
        options: SandboxOptions,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            name,
            snapshot,
            store,
            created_ms: unix_millis(),
            options,
            bundle: None,
            phase: Phase::Creating,
            idempotency_key: None,
            unknown: Unknown::default(),
        }
    }

    /// Reads the record in `layout`; `None` if it does not exist. A record with another id counts
    /// as damaged.
    pub fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        let path = layout.record();
        let record = files::read_record::<Self>(&path)?;
        if let Some(other) = record.as_ref().filter(|record| record.id != *layout.id()) {
            return Err(SandboxError::damaged(path, format!("it is the record of {}", other.id)));
        }
        Ok(record)
    }

    /// Writes the record durably. Creates the sandbox's directory if it does not exist.
    pub fn write(&self, layout: &Layout) -> Result<(), SandboxError> {
        files::make_private_dirs(layout.root())?;
        files::write_record(&layout.record(), self)
    }
}
