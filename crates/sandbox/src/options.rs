//! The options of a sandbox as its creator specifies them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use inlay_base::record::Unknown;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::cgroup::can_limit;
use super::error::SandboxError;
use super::image::check_command;
use super::security::Security;

/// The maximum number of secrets per sandbox.
pub(super) const SECRETS_MAX: usize = 64;
/// The maximum size of a secret, in bytes.
pub(super) const SECRET_LEN_MAX: usize = 512 << 10;

/// The options of a sandbox. They hold no secret's bytes and can therefore be recorded and shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, rename_all = "snake_case")]
pub struct SandboxOptions {
    /// The first process.
    pub process: FirstProcess,
    /// Environment variables, `NAME=VALUE`, which override the image's; a bare `NAME` removes one.
    pub env: Vec<String>,
    /// `NAME|UID[:GROUP|GID]`, overriding the image's user.
    pub user: Option<String>,
    /// The working directory, an absolute path, overriding the image's.
    pub workdir: Option<String>,
    /// The host name; defaults to the id.
    pub hostname: Option<String>,
    /// Whether the first process has a terminal.
    pub terminal: Terminal,
    /// The stdin of the first process.
    pub stdin: Stdin,
    /// The networks it can reach.
    pub network: Network,
    /// Additional entries of its /etc/hosts.
    pub hosts: Vec<HostEntry>,
    /// The name servers in its /etc/resolv.conf, replacing the host's.
    #[schema(value_type = Vec<String>)]
    pub dns: Vec<IpAddr>,
    /// The search domains in its /etc/resolv.conf, replacing the host's.
    pub dns_search: Vec<String>,
    /// Capabilities, seccomp, AppArmor.
    pub security: Security,
    /// Resource limits.
    pub limits: Limits,
    /// Whether its root is writable.
    pub root: RootAccess,
    /// The names of its secrets.
    #[schema(value_type = Vec<String>)]
    pub secrets: Vec<SecretName>,
    /// Arbitrary key-value pairs for the user's own bookkeeping.
    pub labels: BTreeMap<String, String>,
    /// The OCI runtime, by name or path; defaults to the first installed of runc and crun.
    pub runtime: Option<String>,
}

/// Deserializes the options of a request and rejects unknown fields, which are misspelt or from a
/// newer version. Records, in contrast, keep unknown fields.
pub fn only_known<'de, D: Deserializer<'de>>(from: D) -> Result<SandboxOptions, D::Error> {
    let text = Value::deserialize(from)?;
    let options: SandboxOptions = serde_json::from_value(text.clone()).map_err(D::Error::custom)?;
    let known = serde_json::to_value(&options).map_err(D::Error::custom)?;
    match Unknown::between(&text, &known).names().first() {
        Some(field) => Err(D::Error::custom(format!("unknown field `{field}`"))),
        None => Ok(options),
    }
}

/// The first process of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum FirstProcess {
    /// A tiny init program that reaps orphans and exits on SIGTERM.
    #[default]
    Wait,
    /// The image's entrypoint and command, or the overrides below, as in docker: overriding the
    /// entrypoint discards the image's command.
    Image {
        /// Overrides the image's entrypoint; an empty list clears it.
        #[serde(default)]
        entrypoint: Option<Vec<String>>,
        /// Overrides the image's command unless empty.
        #[serde(default)]
        command: Vec<String>,
    },
}

/// Whether a process has a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Terminal {
    /// Pipes.
    #[default]
    None,
    /// A pseudo-terminal: a single stream for all output.
    Pty,
}

/// The stdin of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// Immediate end of file.
    #[default]
    Empty,
    /// The input sent by the attached client.
    Open,
}

/// The networks a sandbox can reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Only its own loopback interface.
    #[default]
    None,
    /// The host's network namespace, including the host itself.
    Host,
}

/// Whether a sandbox's root is writable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RootAccess {
    /// It is writable.
    #[default]
    Writable,
    /// It is mounted read-only.
    ReadOnly,
}

/// An entry of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostEntry {
    /// The name.
    pub name: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
}

impl FromStr for HostEntry {
    type Err = SandboxError;

    /// Parses `NAME:ADDRESS` or `NAME=ADDRESS`, an IPv6 address with or without brackets, as in
    /// docker.
    fn from_str(text: &str) -> Result<Self, SandboxError> {
        let wrong = || SandboxError::option("--add-host", format!("{text:?} must be NAME:ADDRESS"));
        let (name, address) = text.split_once(['=', ':']).ok_or_else(wrong)?;
        let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
        let address = bare.unwrap_or(address).parse().map_err(|_| wrong())?;
        Ok(Self { name: name.to_owned(), address })
    }
}

/// Resource limits of a sandbox. `None` means unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Limits {
    /// Memory in bytes, at least 6 MiB; no swap is added to it.
    pub memory: Option<u64>,
    /// CPUs, at least 0.01.
    pub cpus: Option<f64>,
    /// Processes and threads; 0 means unlimited. If unset, a new sandbox gets 2048, provided that
    /// the host has the pids controller.
    pub pids: Option<u32>,
    /// Disk space for changes to the root and to live mounts together, in bytes, at least 16 MiB:
    /// the size of a filesystem, whose own metadata counts, too.
    pub disk: Option<u64>,
    /// The size of /dev/shm in bytes [default: 64 MiB]. It counts as memory of the sandbox.
    pub shm: Option<u64>,
}

/// The name of a secret, i.e. of its file in /run/secrets.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = SandboxError;

    fn from_str(text: &str) -> Result<Self, SandboxError> {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > 255 || text.starts_with('.') || !text.bytes().all(is_fit)
        {
            let why = format!(
                "{text:?} can't be a secret's name: use letters, digits, '.', '_' and '-', at most \
                 255, and no '.' first"
            );
            return Err(SandboxError::option("--secret", why));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for SecretName {
    type Error = SandboxError;

    fn try_from(text: String) -> Result<Self, SandboxError> {
        text.parse()
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

/// A secret in transit to a sandbox. Its bytes are never printed, recorded or logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Secret {
    /// Its name.
    #[schema(value_type = String)]
    pub name: SecretName,
    /// Its value; base64 in JSON.
    #[serde(with = "super::base64_bytes")]
    #[schema(value_type = String)]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, {} bytes)", self.name.as_str(), self.bytes.len())
    }
}

/// The minimum memory with which a runtime can start a process, in bytes: docker's minimum, too.
const MEMORY_MIN: u64 = 6 << 20;
/// The valid CPU limits, in CPUs.
const CPUS: std::ops::RangeInclusive<f64> = 0.01..=4096.0;
/// The minimum disk size, in bytes: a filesystem with a journal and some free space.
const DISK_MIN: u64 = 16 << 20;
const HOSTNAME_LEN_MAX: usize = 63;
/// The maximum length of a name in /etc/hosts and of a search domain.
const NAME_LEN_MAX: usize = 253;
/// The maximum number of /etc/hosts entries, of name servers, and of search domains.
const NAMES_MAX: usize = 256;
/// The default limit of processes and threads: podman's default.
const PIDS_DEFAULT: u32 = 2048;

/// Reports whether `text` is a valid host or domain name.
fn is_name(text: &str, len_max: usize) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && text.len() <= len_max && text.bytes().all(is_fit)
}

impl SandboxOptions {
    /// Writes the defaults for a new sandbox into the options, so that its record states the
    /// effective values. Records of earlier versions, which had no such defaults, keep their
    /// meaning.
    pub fn settle(&mut self) -> Result<(), SandboxError> {
        self.settle_pids(can_limit("pids")?);
        Ok(())
    }

    /// On a host without the pids controller there is no default; an explicit limit fails later.
    fn settle_pids(&mut self, can_limit: bool) {
        if can_limit {
            self.limits.pids.get_or_insert(PIDS_DEFAULT);
        }
    }

    /// Rejects invalid options.
    pub fn check(&self) -> Result<(), SandboxError> {
        let limits = &self.limits;
        let refuse = |option, why: &str| Err(SandboxError::option(option, why));
        if limits.memory.is_some_and(|bytes| !(MEMORY_MIN..=1 << 60).contains(&bytes)) {
            return refuse("--memory", "at least 6M is needed to start anything");
        }
        if limits.cpus.is_some_and(|cpus| !CPUS.contains(&cpus)) {
            return refuse("--cpus", "must be between 0.01 and 4096");
        }
        if limits.shm.is_some_and(|bytes| !(1..=1 << 50).contains(&bytes)) {
            return refuse("--shm-size", "must be at least 1 byte and at most 1P");
        }
        if limits.disk.is_some_and(|bytes| !(DISK_MIN..=1 << 50).contains(&bytes)) {
            return refuse("--disk", "must be at least 16M and at most 1P");
        }
        if let Some(name) = &self.hostname
            && (!is_name(name, HOSTNAME_LEN_MAX) || name.contains('_'))
        {
            return refuse("--hostname", "must be letters, digits, '-' and '.', at most 63");
        }
        self.check_names()?;
        self.security.check()?;
        if self.secrets.len() > SECRETS_MAX {
            return refuse("--secret", "a sandbox can have at most 64");
        }
        if let FirstProcess::Image { entrypoint, command } = &self.process {
            check_command(command)?;
            check_command(entrypoint.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }

    /// Rejects names that are invalid in /etc/hosts or /etc/resolv.conf.
    fn check_names(&self) -> Result<(), SandboxError> {
        let counts = [
            ("--add-host", self.hosts.len()),
            ("--dns", self.dns.len()),
            ("--dns-search", self.dns_search.len()),
        ];
        for (option, count) in counts {
            if count > NAMES_MAX {
                return Err(SandboxError::option(
                    option,
                    format!("at most {NAMES_MAX} can be given"),
                ));
            }
        }
        let hosts = self.hosts.iter().map(|entry| ("--add-host", entry.name.as_str()));
        // A single dot is valid: in resolv.conf(5) it clears the search list.
        let domains = self.dns_search.iter().map(|name| ("--dns-search", name.as_str()));
        for (option, name) in hosts.chain(domains) {
            if !is_name(name, NAME_LEN_MAX) {
                let why =
                    format!("{name:?} must be letters, digits, '-', '_' and '.', at most 253");
                return Err(SandboxError::option(option, why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_can_not_be_are_refused_by_their_names() {
        let limits = |limits| SandboxOptions { limits, ..Default::default() };
        let none = Limits::default;
        for (options, named) in [
            (limits(Limits { memory: Some(1 << 20), ..none() }), "--memory"),
            (limits(Limits { cpus: Some(0.0), ..none() }), "--cpus"),
            (limits(Limits { cpus: Some(f64::NAN), ..none() }), "--cpus"),
            (limits(Limits { disk: Some(1), ..none() }), "--disk"),
            (limits(Limits { shm: Some(0), ..none() }), "--shm-size"),
            (
                SandboxOptions { dns_search: vec!["a b".into()], ..Default::default() },
                "--dns-search",
            ),
            (SandboxOptions { hostname: Some("a/b".into()), ..Default::default() }, "--hostname"),
        ] {
            assert!(options.check().unwrap_err().to_string().starts_with(named), "{options:?}");
        }
        assert!(SandboxOptions::default().check().is_ok());
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret = Secret { name: "token".parse().unwrap(), bytes: b"hunter2".to_vec() };
        assert_eq!(format!("{secret:?}"), "Secret(token, 7 bytes)");
        let json = serde_json::to_string(&secret).unwrap();
        assert_eq!(serde_json::from_str::<Secret>(&json).unwrap(), secret);
        let wrong = json.replace("aHVu", "!!hunter2");
        assert!(
            !serde_json::from_str::<Secret>(&wrong).unwrap_err().to_string().contains("hunter")
        );
        for wrong in ["", ".", "..", "a/b", "a b", ".x", "\u{e4}"] {
            assert!(wrong.parse::<SecretName>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn options_are_named_in_json_as_the_api_has_them() {
        let json = serde_json::json!({
            "process": {"kind": "image", "command": ["id"]}, "network": "host",
            "limits": {"cpus": 0.5}, "root": "read-only", "terminal": "pty", "stdin": "open",
        });
        let options: SandboxOptions = serde_json::from_value(json).unwrap();
        assert_eq!(options.network, Network::Host);
        assert_eq!(options.limits.cpus, Some(0.5));
        assert!(matches!(options.process, FirstProcess::Image { entrypoint: None, .. }));
    }

    #[test]
    fn requests_have_known_options_only_and_records_any() {
        let read = |json: &str| {
            let strict = only_known(&mut serde_json::Deserializer::from_str(json));
            (
                serde_json::from_str::<SandboxOptions>(json).is_ok(),
                strict.map_err(|e| e.to_string()),
            )
        };
        let (record, request) = read(r#"{"network": "host"}"#);
        assert!(record && request.is_ok_and(|options| options.network == Network::Host));
        for (json, field) in
            [(r#"{"netwrk": "host"}"#, "netwrk"), (r#"{"limits": {"memroy": 1}}"#, "limits.memroy")]
        {
            let (record, request) = read(json);
            assert!(record, "{json}");
            assert!(request.unwrap_err().contains(&format!("unknown field `{field}`")), "{json}");
        }
        let (record, request) = read(r#"{"network": "bridge"}"#);
        assert!(!record && request.is_err());
    }

    #[test]
    fn records_of_other_versions_are_read() {
        // From a newer version, with fields unknown to this one.
        let newer = r#"{"network": "host", "colour": "red", "limits": {"pids": 5, "gpus": 1}}"#;
        let options: SandboxOptions = serde_json::from_str(newer).unwrap();
        assert_eq!((options.network, options.limits.pids), (Network::Host, Some(5)));
        // From an older version, which had no default limit of processes.
        let older: SandboxOptions = serde_json::from_str(r#"{"limits": {"disk": 7}}"#).unwrap();
        assert_eq!(older.limits, Limits { disk: Some(7), ..Limits::default() });
        assert_eq!(older.security, Security::default());
    }

    #[test]
    fn a_new_sandbox_has_a_bound_of_processes_unless_it_is_told() {
        for (given, settled) in [(None, Some(2048)), (Some(0), Some(0)), (Some(7), Some(7))] {
            let limits = Limits { pids: given, ..Limits::default() };
            let mut options = SandboxOptions { limits, ..Default::default() };
            options.settle_pids(true);
            assert_eq!(options.limits.pids, settled);
        }
        let mut options = SandboxOptions::default();
        options.settle_pids(false);
        assert_eq!(options.limits.pids, None);
    }

    #[test]
    fn names_for_hosts_are_read_as_docker_reads_them() {
        for (text, address) in [
            ("db:10.0.0.7", "10.0.0.7"),
            ("db=10.0.0.7", "10.0.0.7"),
            ("db:[::1]", "::1"),
            ("db:fe80::7", "fe80::7"),
            ("db=fe80::7", "fe80::7"),
        ] {
            let entry: HostEntry = text.parse().unwrap();
            assert_eq!((&*entry.name, entry.address), ("db", address.parse().unwrap()), "{text}");
        }
        for text in ["db", "db:", "db:x", "", "db:[::1"] {
            assert!(text.parse::<HostEntry>().is_err(), "{text}");
        }
        let named = |name: &str| {
            let entry = HostEntry { name: name.to_owned(), address: "::1".parse().unwrap() };
            SandboxOptions { hosts: vec![entry], ..Default::default() }.check()
        };
        assert!(named("a_b.c-d").is_ok());
        for name in ["", "a b", "a\nb", "a\tb", "#"] {
            assert!(named(name).is_err(), "{name:?}");
        }
    }
}
