//! Checks the kernel: version, privileges, FUSE, overlayfs and optional features.

use inlay_fusefs::{FuseFeature, FuseFeatures};
use inlay_mounts;
use inlay_mounts::features::KernelFeature;
use rustix::system::uname;

use super::Check;

/// Oldest kernel with all features that have no fallback, such as mount_setattr(2) (5.12).
const OLDEST: (u32, u32) = (5, 15);
const LOAD_FUSE: &str =
    "load the module (modprobe fuse), or give the container the device (--device /dev/fuse)";

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![version(), root()];
    let fuse = inlay_fusefs::probe_features();
    checks.push(match &fuse {
        Ok(_) => Check::ok("fuse", "/dev/fuse can be mounted").required(),
        Err(error) => Check::missing("fuse", format!("/dev/fuse: {error}"), LOAD_FUSE).required(),
    });
    let overlay = inlay_mounts::takes_descriptors();
    checks.push(match overlay {
        Ok(_) => Check::ok("overlay", "overlayfs is there"),
        Err(errno) => Check::missing(
            "overlay",
            format!(
                "overlayfs: {}: no writable mounts and no sandboxes",
                std::io::Error::from(errno)
            ),
            "load the module: modprobe overlay",
        ),
    });
    checks.extend(KernelFeature::ALL.iter().filter_map(|feature| {
        let offered = match feature {
            KernelFeature::FusePassthrough => offers(&fuse, FuseFeature::Passthrough)?,
            KernelFeature::FuseResend => offers(&fuse, FuseFeature::Resend)?,
            KernelFeature::FuseIdmap => offers(&fuse, FuseFeature::IdmappedMounts)?,
            KernelFeature::Statmount => inlay_mounts::has_statmount(),
            KernelFeature::OverlayDescriptors => overlay.ok()?,
        };
        Some(optional(*feature, offered))
    }));
    checks
}

fn offers(fuse: &std::io::Result<FuseFeatures>, feature: FuseFeature) -> Option<bool> {
    fuse.as_ref().ok().map(|offered| offered.has(feature))
}

fn optional(feature: KernelFeature, offered: bool) -> Check {
    let (name, since) = (feature.name(), feature.since());
    if feature.is_disabled() {
        let found = format!("switched off by INLAY_WITHOUT: {}", feature.instead());
        return Check::degraded(name, found, "unset INLAY_WITHOUT");
    }
    if offered {
        return Check::ok(name, "used");
    }
    Check::degraded(name, feature.instead(), format!("Linux {since} or later"))
}

fn version() -> Check {
    let name = uname();
    let release = name.release().to_string_lossy();
    let found = format!("Linux {release}");
    match parse(&release) {
        Some(version) if version >= OLDEST => Check::ok("kernel", found),
        _ => {
            let (major, minor) = OLDEST;
            Check::degraded(
                "kernel",
                found,
                format!("Linux {major}.{minor} or later has all that is needed"),
            )
        }
    }
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn root() -> Check {
    // The capability that mount(2) requires.
    match rustix::thread::capabilities(None) {
        Ok(sets) if sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN) => {
            Check::ok("privileges", "this process may mount").required()
        }
        Ok(_) => Check::missing(
            "privileges",
            "this process may not mount (CAP_SYS_ADMIN)",
            "run it as root, or ask a daemon that root runs (inlay daemon --socket-group)",
        )
        .required(),
        Err(error) => Check::degraded(
            "privileges",
            format!("unknown: {}", std::io::Error::from(error)),
            "run it as root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_two_numbers() {
        assert_eq!(parse("6.1.0-57-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse("5.15-rc1"), Some((5, 15)));
        assert_eq!(parse("next"), None);
    }

    #[test]
    fn a_feature_that_is_missing_is_named_with_its_version() {
        let check = optional(KernelFeature::FuseResend, false);
        assert_eq!(check.health, super::super::Health::Degraded);
        assert_eq!(check.fix.as_deref(), Some("Linux 6.9 or later"));
    }
}
