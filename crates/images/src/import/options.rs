//! Defines the options and limits of an import.

use std::fmt;
use std::path::PathBuf;

use inlay_store::tree::TreeLimits;

use super::RegistryOptions;

/// Treatment of other filesystems mounted inside an imported directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mounts {
    /// Import a mount point that is a directory as an empty directory, and skip any other.
    #[default]
    Skip,
    /// Import the mounted filesystem as part of the tree.
    Follow,
}

/// Platform of a multi-platform image, in the terms of the OCI image index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, `v8`, …; older variants are accepted, too. `None` stands for the baseline that docker
    /// and containerd assume: `v1` of `amd64`, `v7` of `arm`, `v8` of `arm64`; of other
    /// architectures, for any variant.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// Returns Linux on the architecture that this program was built for.
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// Options and limits of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Limits on the size of the tree.
    pub tree: TreeLimits,
    /// Maximum decompressed bytes of all layers together: protects against archive bombs. Holes of
    /// sparse files do not count.
    pub decoded_bytes_max: u64,
    /// Platform to select from a multi-platform image.
    pub platform: Platform,
    /// Treatment of mount points in an imported directory.
    pub mounts: Mounts,
    /// Directories imported without their contents: e.g., inlay's own state, which changes while it
    /// is read.
    pub left_empty: Vec<PathBuf>,
    /// Access to registries.
    pub registry: RegistryOptions,
    /// Directory for temporary files.
    pub scratch: PathBuf,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            tree: TreeLimits::default(),
            decoded_bytes_max: 1 << 40,
            platform: Platform::default(),
            mounts: Mounts::default(),
            left_empty: Vec::new(),
            registry: RegistryOptions::default(),
            scratch: std::env::temp_dir(),
        }
    }
}
