//! Detects whether the host rebooted since a daemon last served a state directory.
//!
//! Mount records are not synced: mounts end with the boot, so their records mean nothing
//! afterwards, and a live mount need not wait for the disk. A power cut may tear them. Records of
//! an earlier boot are set aside; a damaged record of the current boot stays where it is.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::durable::Volatile;
use crate::record::{self, Record};
use serde::{Deserialize, Serialize};

const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Reason not to sync the record of an object that ends with the boot.
pub const ENDS_WITH_HOST: Volatile = Volatile(
    "its contents are valid for this boot only, and the next one sets a torn record aside",
);

/// The boot in which a daemon last served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastServed {
    /// The current boot, or unknown.
    ThisBoot,
    /// An earlier boot.
    EarlierBoot,
}

#[derive(Debug, Serialize, Deserialize)]
struct BootRecord {
    boot: String,
}

impl Record for BootRecord {
    const VERSION: u32 = 1;
    const LEN_MAX: u64 = 4096;
}

/// Returns when a daemon last served, according to the record at `path`. Errs towards the current
/// boot, in which nothing is set aside.
pub fn last_served(path: &Path) -> LastServed {
    let known = match record::read::<BootRecord>(path) {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(%error, "can't tell whether the host was restarted");
            None
        }
    };
    match (known, boot_id()) {
        (Some(known), Ok(now)) if known.boot != now => LastServed::EarlierBoot,
        _ => LastServed::ThisBoot,
    }
}

/// Records that a daemon serves in this boot. Replaces a damaged record: its loss only makes the
/// next daemon more careful than necessary.
pub fn note(path: &Path) -> io::Result<()> {
    let now = boot_id()?;
    match record::read::<BootRecord>(path) {
        Ok(Some(known)) if known.boot == now => Ok(()),
        _ => record::write(path, &BootRecord { boot: now.to_owned() }),
    }
}

/// Returns the kernel's boot id, read once per process.
pub fn boot_id() -> io::Result<&'static str> {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let text = fs::read_to_string(BOOT)?;
    Ok(ID.get_or_init(|| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_boot_that_was_noted_is_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.json");
        assert_eq!(last_served(&path), LastServed::ThisBoot);
        note(&path).unwrap();
        note(&path).unwrap();
        assert_eq!(last_served(&path), LastServed::ThisBoot);
        record::write(&path, &BootRecord { boot: "another".into() }).unwrap();
        assert_eq!(last_served(&path), LastServed::EarlierBoot);
        for damage in ["", "{", "{\"version\":2,\"boot\":\"another\"}", "\0\0\0"] {
            fs::write(&path, damage).unwrap();
            assert_eq!(last_served(&path), LastServed::ThisBoot, "{damage}");
            note(&path).unwrap();
            assert_eq!(
                record::read::<BootRecord>(&path).unwrap().unwrap().boot,
                boot_id().unwrap()
            );
        }
    }
}
