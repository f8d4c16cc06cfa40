//! What is remembered of a sandbox.

use inlay_store::ids::SnapshotId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bundle::Bundle;
use super::error::SandboxError;
use super::exit::{Exit, now_ms};
use super::files;
use super::id::SandboxId;
use super::layout::Layout;
use super::options::SandboxOptions;

/// The form of the records that this program writes and reads.
const VERSION: u32 = 1;

/// A sandbox, as the daemon records it. Written before what it says is done, so that whatever a
/// crash leaves is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The form of this record.
    pub version: u32,
    /// Its id.
    pub id: SandboxId,
    /// What people call it; unique among the sandboxes of a state.
    pub name: String,
    /// What its root was when it was created.
    pub snapshot: SnapshotId,
    /// Where that snapshot comes from, as the daemon means it.
    pub store: Value,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// How it is to be.
    pub options: SandboxOptions,
    /// What runs, once that is known.
    pub bundle: Option<Bundle>,
    /// How far it is.
    pub phase: Phase,
    /// The key with which it was asked for.
    pub idempotency_key: Option<String>,
}

/// How far a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Phase {
    /// It is being made. After a restart of the daemon: half made.
    Creating,
    /// Its first process was started, or is about to be.
    Running,
    /// Its first process has ended.
    Stopped {
        /// How.
        exit: Exit,
    },
    /// It is being removed, and nobody can use it any more.
    Removing,
}

impl SandboxRecord {
    /// That of a sandbox that is about to be made.
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
            created_ms: now_ms(),
            options,
            bundle: None,
            phase: Phase::Creating,
            idempotency_key: None,
        }
    }

    /// The record in `layout`; `None` if there is none.
    pub fn read(layout: &Layout) -> Result<Option<Self>, SandboxError> {
        let path = layout.record();
        let Some(record) = files::read_json::<Self>(&path)? else { return Ok(None) };
        if record.version != VERSION {
            let why = format!("written in form {} by another version", record.version);
            return Err(SandboxError::Record { path, why });
        }
        Ok(Some(record))
    }

    /// Writes it, durably. The sandbox's directory is made if there is none.
    pub fn write(&self, layout: &Layout) -> Result<(), SandboxError> {
        files::make_private_dirs(layout.root())?;
        files::write_json(&layout.record(), self)
    }
}
