//! How a sandbox is to be, as whoever creates it says.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::SandboxError;
use super::image::check_command;

/// The most secrets of a sandbox.
pub(super) const SECRETS_MAX: usize = 64;
/// The longest secret, in bytes.
pub(super) const SECRET_LEN_MAX: usize = 512 << 10;

/// How a sandbox is to be. Holds no secret's bytes, so that it can be recorded and shown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct SandboxOptions {
    /// What runs in it first.
    pub process: FirstProcess,
    /// Variables, `NAME=VALUE`, which win over the image's.
    pub env: Vec<String>,
    /// `NAME|UID[:GROUP|GID]` instead of the image's.
    pub user: Option<String>,
    /// The working directory instead of the image's: an absolute path.
    pub workdir: Option<String>,
    /// The host name; otherwise the id.
    pub hostname: Option<String>,
    /// Whether the first process has a terminal.
    pub terminal: Terminal,
    /// Whether the first process can be written to.
    pub stdin: Stdin,
    /// What it reaches.
    pub network: Network,
    /// Bounds.
    pub limits: Limits,
    /// Whether its root can be changed.
    pub root: RootAccess,
    /// The secrets that it was given, by their names.
    #[schema(value_type = Vec<String>)]
    pub secrets: Vec<SecretName>,
    /// Whatever whoever uses the sandbox wants to remember of it.
    pub labels: BTreeMap<String, String>,
    /// The OCI runtime, by name or path; otherwise the first of runc and crun that is installed.
    pub runtime: Option<String>,
}

/// What runs in a sandbox first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum FirstProcess {
    /// A tiny program that waits for SIGTERM and reaps what others leave.
    #[default]
    Wait,
    /// The image's entrypoint and command, or what is given instead, as docker does it: an entrypoint
    /// that is given drops the image's command.
    Image {
        /// Instead of the image's; empty: none.
        #[serde(default)]
        entrypoint: Option<Vec<String>>,
        /// Instead of the image's, unless empty.
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
    /// A pseudo-terminal: one stream for all output.
    Pty,
}

/// What a process reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// Nothing: the end of input at once.
    #[default]
    Empty,
    /// What whoever is attached sends.
    Open,
}

/// What a sandbox reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Itself, by the loopback interface.
    #[default]
    None,
    /// All that the host reaches, and the host.
    Host,
}

/// Whether a sandbox's root can be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RootAccess {
    /// It can.
    #[default]
    Writable,
    /// It is mounted read-only.
    ReadOnly,
}

/// Bounds of a sandbox. `None` means no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory in bytes, at least 6 MiB; no swap is added to it.
    pub memory: Option<u64>,
    /// Processors, at least 0.01.
    pub cpus: Option<f64>,
    /// Processes and threads, at least 1.
    pub pids: Option<u32>,
    /// What the root's changes take on disk, in bytes, at least 16 MiB: the size of a filesystem, so
    /// what that needs for itself is part of it.
    pub disk: Option<u64>,
}

/// The name of a secret: that of its file in /run/secrets.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// As text.
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

/// A secret on its way into a sandbox. Its bytes are never shown, recorded or logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Secret {
    /// Its name.
    #[schema(value_type = String)]
    pub name: SecretName,
    /// What nobody else is to know; in JSON, base64.
    #[serde(with = "super::base64_bytes")]
    #[schema(value_type = String)]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, {} bytes)", self.name.as_str(), self.bytes.len())
    }
}

/// The least memory with which a runtime can start something, in bytes: docker's bound, too.
const MEMORY_MIN: u64 = 6 << 20;
/// The least of a processor, and the most.
const CPUS: std::ops::RangeInclusive<f64> = 0.01..=4096.0;
/// The least disk: a filesystem with a journal and room for something, in bytes.
const DISK_MIN: u64 = 16 << 20;
const HOSTNAME_LEN_MAX: usize = 63;

impl SandboxOptions {
    /// Refuses what can't be.
    pub fn check(&self) -> Result<(), SandboxError> {
        let limits = &self.limits;
        let refuse = |option, why: &str| Err(SandboxError::option(option, why));
        if limits.memory.is_some_and(|bytes| !(MEMORY_MIN..=1 << 60).contains(&bytes)) {
            return refuse("--memory", "at least 6M is needed to start anything");
        }
        if limits.cpus.is_some_and(|cpus| !CPUS.contains(&cpus)) {
            return refuse("--cpus", "must be between 0.01 and 4096");
        }
        if limits.pids == Some(0) {
            return refuse("--pids", "at least one process is needed");
        }
        if limits.disk.is_some_and(|bytes| !(DISK_MIN..=1 << 50).contains(&bytes)) {
            return refuse("--disk", "must be at least 16M and at most 1P");
        }
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        if let Some(name) = &self.hostname
            && (name.is_empty() || name.len() > HOSTNAME_LEN_MAX || !name.bytes().all(is_fit))
        {
            return refuse("--hostname", "must be letters, digits, '-' and '.', at most 63");
        }
        if self.secrets.len() > SECRETS_MAX {
            return refuse("--secret", "a sandbox can have at most 64");
        }
        if let FirstProcess::Image { entrypoint, command } = &self.process {
            check_command(command)?;
            check_command(entrypoint.as_deref().unwrap_or_default())?;
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
            (limits(Limits { pids: Some(0), ..none() }), "--pids"),
            (limits(Limits { disk: Some(1), ..none() }), "--disk"),
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
        assert!(serde_json::from_str::<SandboxOptions>(r#"{"netwrk": "host"}"#).is_err());
    }
}
