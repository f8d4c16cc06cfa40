//! Resolves the confinement of a sandbox beyond namespaces: capabilities, seccomp, AppArmor.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::SandboxError;

/// Tells whether AppArmor is enabled.
const APPARMOR_ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Lists the loaded AppArmor profiles.
const APPARMOR_PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Prefixes of container profiles that other programs load.
const APPARMOR_KNOWN: [&str; 2] = ["docker-default", "containers-default-"];
/// The maximum length of a profile name, in bytes.
const PROFILE_LEN_MAX: usize = 255;
/// The profile name that turns AppArmor off.
const UNCONFINED: &str = "unconfined";
/// The name that stands for every capability.
const ALL: &str = "ALL";

/// The kernel's capabilities, indexed by bit number (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Docker's default capabilities.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The requested confinement beyond namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Security {
    /// Capabilities to add to the default ones, with or without `CAP_`; `ALL`: every one of the
    /// daemon.
    pub cap_add: Vec<String>,
    /// Capabilities to drop; `ALL`: every one but those in `cap_add`.
    pub cap_drop: Vec<String>,
    /// Whether programs can gain privileges by execve(2).
    pub privileges: Privileges,
    /// The allowed syscalls.
    pub seccomp: Seccomp,
    /// The AppArmor profile, or `unconfined` [default: docker's or podman's, if the host has loaded
    /// one].
    pub apparmor: Option<String>,
}

/// Whether a process can gain privileges that its parent does not have, by setuid bits or file
/// capabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Privileges {
    /// It can, as in docker: sudo works.
    #[default]
    Gained,
    /// It can't (`no_new_privs`).
    Fixed,
}

/// The syscalls that a sandbox may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    /// Those allowed by docker's default profile.
    #[default]
    Default,
    /// All.
    Unconfined,
}

/// The effective confinement of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Confinement {
    /// The capabilities of its root user.
    pub capabilities: Vec<String>,
    /// The allowed syscalls.
    pub seccomp: Seccomp,
    /// Its AppArmor profile.
    pub apparmor: Option<String>,
    /// Confinement that this host does not support, as sentences.
    pub notes: Vec<String>,
}

impl Security {
    /// Rejects options that are invalid on any host.
    pub(super) fn check(&self) -> Result<(), SandboxError> {
        for (option, names) in [("--cap-add", &self.cap_add), ("--cap-drop", &self.cap_drop)] {
            for name in names {
                full_name(option, name)?;
            }
        }
        if let Some(profile) = &self.apparmor {
            let is_fit = |byte: u8| byte.is_ascii_graphic();
            if profile.is_empty() || profile.len() > PROFILE_LEN_MAX || !profile.bytes().all(is_fit)
            {
                let why = format!("apparmor={profile:?} can't be the name of a profile");
                return Err(SandboxError::option("--security-opt", why));
            }
        }
        Ok(())
    }

    /// Resolves the options on this host.
    pub(super) fn confinement(&self) -> Result<Confinement, SandboxError> {
        self.check()?;
        let path = Path::new("/proc/self/status");
        let status = fs::read_to_string(path).map_err(SandboxError::io("read", path))?;
        let loaded = loaded_profiles(APPARMOR_ENABLED.as_ref(), APPARMOR_PROFILES.as_ref());
        let (apparmor, note) = self.profile(loaded.as_deref())?;
        Ok(Confinement {
            capabilities: self.capabilities(own_capabilities(&status))?,
            seccomp: self.seccomp,
            apparmor,
            notes: note.into_iter().collect(),
        })
    }

    /// Returns the capabilities, sorted; `own` is the bit set of those that this process can grant.
    fn capabilities(&self, own: u64) -> Result<Vec<String>, SandboxError> {
        let (add, drop) =
            (full_names("--cap-add", &self.cap_add)?, full_names("--cap-drop", &self.cap_drop)?);
        let owned =
            || CAPABILITIES.into_iter().enumerate().filter(|(bit, _)| own & (1 << bit) != 0);
        let is_owned = |name: &str| owned().any(|(_, known)| known == name);
        if let Some(missing) = add.iter().find(|name| **name != ALL && !is_owned(name)) {
            let why = format!("the daemon does not have {missing} itself and can't give it");
            return Err(SandboxError::option("--cap-add", why));
        }
        let base: Vec<&str> = if add.contains(&ALL) {
            owned().map(|(_, name)| name).filter(|name| !drop.contains(name)).collect()
        } else if drop.contains(&ALL) {
            Vec::new()
        } else {
            let kept = |name: &&str| is_owned(name) && !drop.contains(name);
            DEFAULT.into_iter().filter(kept).collect()
        };
        let added = add.into_iter().filter(|name| *name != ALL);
        let mut all: Vec<String> = base.into_iter().chain(added).map(str::to_owned).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Returns the AppArmor profile and a note about it; `loaded`: the host's profiles, or `None`
    /// if it does not use AppArmor.
    fn profile(
        &self,
        loaded: Option<&[String]>,
    ) -> Result<(Option<String>, Option<String>), SandboxError> {
        let wanted = self.apparmor.as_deref();
        if wanted == Some(UNCONFINED) {
            return Ok((None, None));
        }
        match (wanted, loaded) {
            (None, None) => Ok((None, Some("This host does not use AppArmor.".to_owned()))),
            (None, Some(loaded)) => {
                let known = |name: &&String| APPARMOR_KNOWN.iter().any(|of| name.starts_with(of));
                let found = loaded.iter().find(known).cloned();
                let note = found.is_none().then(|| {
                    "This host uses AppArmor, but has loaded no profile for containers (docker-default)."
                        .to_owned()
                });
                Ok((found, note))
            }
            (Some(name), Some(loaded)) if loaded.iter().any(|known| known == name) => {
                Ok((Some(name.to_owned()), None))
            }
            (Some(name), loaded) => {
                let why = match loaded {
                    None => "the host does not use AppArmor",
                    Some(_) => "the host has not loaded it (apparmor_parser(8))",
                };
                Err(SandboxError::option("--security-opt", format!("apparmor={name}: {why}")))
            }
        }
    }
}

/// Returns the canonical name of a capability as the kernel documents it, or [`ALL`].
fn full_name(option: &'static str, name: &str) -> Result<&'static str, SandboxError> {
    let upper = name.to_ascii_uppercase();
    if upper == ALL {
        return Ok(ALL);
    }
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let known = CAPABILITIES.into_iter().find(|known| known.strip_prefix("CAP_") == Some(bare));
    known.ok_or_else(|| {
        SandboxError::option(
            option,
            format!("{name:?} is no capability (capabilities(7)) and not ALL"),
        )
    })
}

fn full_names(option: &'static str, names: &[String]) -> Result<Vec<&'static str>, SandboxError> {
    names.iter().map(|name| full_name(option, name)).collect()
}

/// Returns the capabilities that this process can grant: proc(5)'s `CapPrm` and `CapBnd`
/// intersected.
fn own_capabilities(status: &str) -> u64 {
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
    };
    of("CapPrm:") & of("CapBnd:")
}

/// Returns the host's AppArmor profiles; `None` if it does not use AppArmor.
fn loaded_profiles(enabled: &Path, profiles: &Path) -> Option<Vec<String>> {
    let enabled = fs::read_to_string(enabled).ok()?;
    if !enabled.starts_with('Y') {
        return None;
    }
    let text = fs::read_to_string(profiles).unwrap_or_default();
    // `NAME (MODE)`; a name may contain blanks.
    let names = text.lines().filter_map(|line| line.rsplit_once(" (").map(|(name, _)| name));
    Some(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: u64 = (1 << 41) - 1;

    fn security(add: &[&str], drop: &[&str]) -> Security {
        let words = |of: &[&str]| of.iter().map(|word| (*word).to_owned()).collect();
        Security { cap_add: words(add), cap_drop: words(drop), ..Security::default() }
    }

    fn made(add: &[&str], drop: &[&str]) -> Vec<String> {
        security(add, drop).capabilities(EVERY).unwrap()
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does_it() {
        assert_eq!(made(&[], &[]), DEFAULT);
        assert_eq!(made(&[], &["all"]), Vec::<String>::new());
        assert_eq!(made(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(made(&["ALL"], &[]).len(), CAPABILITIES.len());
        assert!(!made(&["ALL"], &["CAP_SYS_ADMIN"]).contains(&"CAP_SYS_ADMIN".to_owned()));
        let fewer = made(&["CAP_SYS_PTRACE"], &["mknod", "CAP_NET_RAW"]);
        assert!(fewer.contains(&"CAP_SYS_PTRACE".to_owned()));
        assert!(!fewer.contains(&"CAP_MKNOD".to_owned()) && fewer.len() == DEFAULT.len() - 1);
    }

    #[test]
    fn capabilities_the_daemon_lacks_cannot_be_granted() {
        // All but CAP_SYS_RESOURCE, bit 24, and CAP_MKNOD, bit 27.
        let own = own_capabilities("CapPrm:\t000001fff6ffffff\nCapBnd:\t000001ffffffffff\n");
        let error = security(&["SYS_RESOURCE"], &[]).capabilities(own).unwrap_err().to_string();
        assert!(error.contains("CAP_SYS_RESOURCE"), "{error}");
        assert_eq!(security(&["ALL"], &[]).capabilities(own).unwrap().len(), 39);
        assert_eq!(security(&[], &[]).capabilities(own).unwrap().len(), DEFAULT.len() - 1);
    }

    #[test]
    fn unknown_capabilities_are_refused() {
        for (add, drop, option) in
            [(&["CAP_FLY"][..], &[][..], "--cap-add"), (&[], &["CAP_CAP_CHOWN"], "--cap-drop")]
        {
            assert!(security(add, drop).check().unwrap_err().to_string().starts_with(option));
        }
    }

    #[test]
    fn the_profile_of_a_container_engine_is_taken_if_the_host_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let (enabled, profiles) = (dir.path().join("enabled"), dir.path().join("profiles"));
        let default = Security::default();
        assert_eq!(loaded_profiles(&enabled, &profiles), None);
        assert!(default.profile(None).unwrap().1.unwrap().contains("does not use"));
        fs::write(&enabled, "Y\n").unwrap();
        fs::write(&profiles, "a b (enforce)\n/usr/bin/man (enforce)\n").unwrap();
        let loaded = loaded_profiles(&enabled, &profiles).unwrap();
        assert_eq!(loaded, ["a b", "/usr/bin/man"]);
        let (found, note) = default.profile(Some(&loaded)).unwrap();
        assert!(found.is_none() && note.unwrap().contains("docker-default"));
        let more = [loaded, vec!["docker-default".to_owned()]].concat();
        assert_eq!(default.profile(Some(&more)).unwrap(), (Some("docker-default".into()), None));
        let named =
            |name: &str| Security { apparmor: Some(name.to_owned()), ..Security::default() };
        assert_eq!(named(UNCONFINED).profile(Some(&more)).unwrap(), (None, None));
        assert_eq!(named("/usr/bin/man").profile(Some(&more)).unwrap().0.unwrap(), "/usr/bin/man");
        assert!(
            named("other").profile(Some(&more)).is_err() && named("other").profile(None).is_err()
        );
        fs::write(&enabled, "N\n").unwrap();
        assert_eq!(loaded_profiles(&enabled, &profiles), None);
    }
}
