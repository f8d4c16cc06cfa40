//! Detects the optional features that a kernel offers in its FUSE INIT request.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_string, fsopen};

use crate::keeper::first_request;

/// Length of `struct fuse_in_header`.
const IN_HEADER_LEN: usize = 40;
/// `FUSE_INIT_EXT` of `include/uapi/linux/fuse.h`: the request has a second word of flags.
const INIT_EXT: u64 = 1 << 30;

/// An optional FUSE feature of the kernel, as its INIT flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum FuseFeature {
    /// The kernel reads large files directly from their cache file: Linux 6.9.
    Passthrough = 1 << 37,
    /// The kernel resends requests that a killed server has not answered: Linux 6.9.
    Resend = 1 << 39,
    /// Mounts may map owners: Linux 6.12.
    IdmappedMounts = 1 << 40,
}

/// The flags of an INIT request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuseFeatures(u64);

impl FuseFeatures {
    /// Parses the INIT request `init`, header included. A request without flags offers nothing.
    pub fn of(init: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = init.get(IN_HEADER_LEN + at..)?.first_chunk()?;
            Some(u64::from(u32::from_ne_bytes(*bytes)))
        };
        let flags = word(12).unwrap_or(0);
        let more = if flags & INIT_EXT != 0 { word(16).unwrap_or(0) } else { 0 };
        Self(flags | more << 32)
    }

    /// Returns these features without `features`.
    #[must_use]
    pub fn without(self, features: &[FuseFeature]) -> Self {
        Self(features.iter().fold(self.0, |all, feature| all & !(*feature as u64)))
    }

    /// Returns whether the kernel offers `feature`.
    pub fn has(self, feature: FuseFeature) -> bool {
        self.0 & feature as u64 != 0
    }
}

/// Probes the kernel's features with a connection that is never mounted and ends at once.
///
/// # Errors
///
/// Fails if `/dev/fuse` does not exist or the caller may not mount.
pub fn probe() -> io::Result<FuseFeatures> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".into()),
        ("user_id", "0".into()),
        ("group_id", "0".into()),
    ] {
        fsconfig_set_string(&fs, key, value)?;
    }
    fsconfig_create(&fs)?;
    Ok(FuseFeatures::of(&first_request(&device)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(flags: u32, more: u32) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER_LEN + 12];
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(more.to_ne_bytes());
        bytes
    }

    #[test]
    fn the_second_word_counts_only_if_the_first_one_says_so() {
        let ext = 1 << 30;
        assert!(FuseFeatures::of(&init(ext, 1 << 7)).has(FuseFeature::Resend));
        assert!(!FuseFeatures::of(&init(0, 1 << 7)).has(FuseFeature::Resend));
        assert!(!FuseFeatures::of(&init(ext, 1 << 7)).has(FuseFeature::Passthrough));
        let both = FuseFeatures::of(&init(ext, 1 << 8 | 1 << 7));
        assert!(both.has(FuseFeature::IdmappedMounts) && both.has(FuseFeature::Resend));
        let one = both.without(&[FuseFeature::Resend]);
        assert!(one.has(FuseFeature::IdmappedMounts) && !one.has(FuseFeature::Resend));
    }

    #[test]
    fn a_short_request_offers_nothing() {
        assert_eq!(FuseFeatures::of(&[1; 44]), FuseFeatures(0));
        assert!(!FuseFeatures::of(&init(1 << 30, 0)[..56]).has(FuseFeature::Resend));
    }
}
