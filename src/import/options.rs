//! What an import may use, and what it takes from a source.

use std::fmt;
use std::path::PathBuf;

use inlay_store::tree::TreeLimits;

use super::RegistryOptions;

/// What is done where another file system is mounted inside an imported directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mounts {
    /// A directory is taken without what is mounted in it, anything else is left out.
    #[default]
    Skip,
    /// What is mounted belongs to the tree.
    Follow,
}

/// Which of a multi-platform image's variants is wanted, in the words of the OCI image index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, …; any, if none is given.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// Linux on the architecture that this program was built for.
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

/// Limits and choices of an import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// How large the tree may grow.
    pub tree: TreeLimits,
    /// How many bytes all layers together may decompress to: a bound for archives made to fill a
    /// machine. Holes of sparse files do not count.
    pub decoded_bytes_max: u64,
    /// Which variant of a multi-platform image is taken.
    pub platform: Platform,
    /// What is done at mount points of an imported directory.
    pub mounts: Mounts,
    /// Directories of which only the directory itself is taken: inlay's own state, for one, which
    /// changes while it is read.
    pub left_empty: Vec<PathBuf>,
    /// How registries are reached.
    pub registry: RegistryOptions,
    /// Where temporary files may be made.
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
