//! Optional kernel features and their fallbacks.
//!
//! A disabled feature makes a process behave as on an older kernel.

use std::sync::OnceLock;

use inlay_fusefs::FuseFeature;

/// Lists the features: purpose, name, first Linux version, and fallback.
macro_rules! features {
    ($($(#[doc = $doc:literal])+ $feature:ident $name:literal $since:literal $instead:literal,)+) => {
        /// An optional kernel feature.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum KernelFeature {
            $($(#[doc = $doc])+ $feature,)+
        }

        impl KernelFeature {
            /// All features.
            pub const ALL: &[Self] = &[$(Self::$feature),+];

            /// Returns its name in `INLAY_WITHOUT` and in the output of `inlay doctor`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$feature => $name),+ }
            }

            /// Returns the first Linux version that has it.
            pub const fn since(self) -> &'static str {
                match self { $(Self::$feature => $since),+ }
            }

            /// Returns a description of the fallback.
            pub const fn instead(self) -> &'static str {
                match self { $(Self::$feature => $instead),+ }
            }
        }
    };
}

features! {
    /// The kernel reads large files directly from the cache file.
    FusePassthrough "fuse-passthrough" "6.9"
        "the daemon answers reads of large files, and the kernel keeps their pages",
    /// The kernel resends the requests that a killed daemon has not answered.
    FuseResend "fuse-resend" "6.9"
        "requests are read into memory that outlives the daemon, and the next one answers them",
    /// FUSE mounts may be idmapped.
    FuseIdmap "fuse-idmap" "6.12"
        "nothing: no mount into a container with a user namespace of its own",
    /// Mounts can be queried one by one, by ids that are never reused.
    Statmount "statmount" "6.8"
        "/proc/PID/mountinfo and the numbers of statx",
    /// Overlays take their layers as directory descriptors.
    OverlayDescriptors "overlay-descriptors" "6.13"
        "layers are passed by their paths",
}

impl KernelFeature {
    /// Reports whether [`disable`] has disabled it.
    pub fn is_disabled(self) -> bool {
        DISABLED.get().is_some_and(|disabled| disabled.contains(&self))
    }
}

static DISABLED: OnceLock<Vec<KernelFeature>> = OnceLock::new();

/// Disables the features in a comma-separated list of names for the lifetime of this process. Only
/// the first call has an effect.
///
/// # Errors
///
/// A message that names the first unknown feature; none is disabled then.
pub fn disable(list: &str) -> Result<(), String> {
    let (disabled, unknown) = parse(list);
    if let Some(unknown) = unknown.first() {
        let names: Vec<_> = KernelFeature::ALL.iter().map(|feature| feature.name()).collect();
        return Err(format!("no kernel feature {unknown:?}; there are {}", names.join(", ")));
    }
    DISABLED.get_or_init(|| disabled);
    Ok(())
}

/// Returns the disabled FUSE features.
pub fn disabled_fuse_features() -> Vec<FuseFeature> {
    let fuse = [
        (KernelFeature::FusePassthrough, FuseFeature::Passthrough),
        (KernelFeature::FuseResend, FuseFeature::Resend),
        (KernelFeature::FuseIdmap, FuseFeature::IdmappedMounts),
    ];
    let disabled = fuse.into_iter().filter(|(feature, _)| feature.is_disabled());
    disabled.map(|(_, feature)| feature).collect()
}

fn parse(list: &str) -> (Vec<KernelFeature>, Vec<String>) {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut found = (Vec::new(), Vec::new());
    for name in names {
        match KernelFeature::ALL.iter().find(|feature| feature.name() == name) {
            Some(feature) => found.0.push(*feature),
            None => found.1.push(name.to_owned()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_features() {
        let (found, unknown) = parse("statmount, fuse-resend,,fuse");
        assert_eq!(found, [KernelFeature::Statmount, KernelFeature::FuseResend]);
        assert_eq!(unknown, ["fuse"]);
    }
}
