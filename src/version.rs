//! Describes this build: version, commit, supported formats and enabled kernel features.

use std::fmt::Write;
use std::sync::OnceLock;

use inlay_base::record::Record;
use inlay_fusefs::{LEDGER_VERSION, keeper};
use inlay_store::format::{layout, packed};
use inlay_store::remote::RECORD_VERSION;
use inlay_store::{cache, pack, profile};
use serde::Serialize;

use inlay_mounts::MountRecord;
use inlay_mounts::features::KernelFeature;
use inlay_sandbox::SandboxRecord;

/// Package version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit of the build, or `unknown`.
pub const COMMIT: &str = env!("INLAY_BUILD_COMMIT");

/// A versioned format: persistent on disk or in a store, or spoken between processes of different
/// builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FormatVersion {
    /// Name of the format.
    pub name: &'static str,
    /// Version written by this build.
    pub writes: u32,
    /// Oldest readable version.
    pub reads_from: u32,
    /// Newest readable version.
    pub reads_to: u32,
}

/// An optional kernel feature that this build can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Name of the feature, as in `INLAY_WITHOUT`.
    pub name: &'static str,
    /// First Linux version with the feature.
    pub since: &'static str,
    /// False if `INLAY_WITHOUT` disables it.
    pub enabled: bool,
}

/// Description of this build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionInfo {
    /// Package version.
    pub version: &'static str,
    /// Commit of the build, or `unknown`.
    pub commit: &'static str,
    /// Supported formats.
    pub formats: Vec<FormatVersion>,
    /// Optional kernel features.
    pub features: Vec<Feature>,
}

impl VersionInfo {
    /// Describes this build, with the features in `INLAY_WITHOUT` disabled.
    pub fn this() -> Self {
        let features = KernelFeature::ALL.iter().map(|feature| Feature {
            name: feature.name(),
            since: feature.since(),
            enabled: !feature.is_disabled(),
        });
        Self {
            version: VERSION,
            commit: COMMIT,
            formats: formats().to_vec(),
            features: features.collect(),
        }
    }

    /// Formats everything but the version as lines of text.
    pub fn lines(&self) -> String {
        let mut text = format!("commit    {}\n", self.commit);
        for (number, format) in self.formats.iter().enumerate() {
            let head = if number == 0 { "formats" } else { "" };
            let FormatVersion { name, writes, reads_from, reads_to } = *format;
            let reads = if reads_from == reads_to {
                format!("{reads_to}")
            } else {
                format!("{reads_from} to {reads_to}")
            };
            // Writing to a string never fails.
            let _ = writeln!(text, "{head:<9} {name:<17} writes {writes}, reads {reads}");
        }
        for (number, feature) in self.features.iter().enumerate() {
            let head = if number == 0 { "features" } else { "" };
            let Feature { name, since, enabled } = *feature;
            let used = if enabled { "enabled" } else { "disabled" };
            let _ = writeln!(text, "{head:<9} {name:<19} {used}, from Linux {since} on");
        }
        text
    }
}

/// Text that `inlay --version` prints after the name.
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("{VERSION}\n{}", VersionInfo::this().lines().trim_end()))
}

/// Returns the format versions. Records on disk are readable from version 1 on; every other format
/// only in the version that this build writes.
const fn formats() -> [FormatVersion; 10] {
    const fn same(name: &'static str, version: u32) -> FormatVersion {
        FormatVersion { name, writes: version, reads_from: version, reads_to: version }
    }
    const fn from_first(name: &'static str, version: u32) -> FormatVersion {
        FormatVersion { name, writes: version, reads_from: 1, reads_to: version }
    }
    [
        same("snapshot index", layout::INDEX_VERSION),
        same("packed index", packed::PACKED_VERSION),
        from_first("blob table", pack::TOC_VERSION),
        same("store records", RECORD_VERSION),
        from_first("profiles", profile::VERSION),
        same("cache", cache::VERSION),
        from_first("sandbox records", SandboxRecord::VERSION),
        from_first("mount records", MountRecord::VERSION),
        same("ledger", LEDGER_VERSION),
        same("keeper protocol", keeper::VERSION),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_read_include_the_one_that_is_written() {
        for format in formats() {
            let FormatVersion { writes, reads_from, reads_to, .. } = format;
            assert!(reads_from >= 1 && (reads_from..=reads_to).contains(&writes), "{format:?}");
        }
    }

    #[test]
    fn features_that_are_disabled_are_said_to_be() {
        let feature = Feature { name: "statmount", since: "6.8", enabled: false };
        let about = VersionInfo { features: vec![feature], ..VersionInfo::this() };
        assert!(about.lines().contains("statmount           disabled, from Linux 6.8"));
        assert!(about.lines().starts_with(&format!("commit    {COMMIT}\n")));
    }
}
