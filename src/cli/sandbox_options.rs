//! Options of `inlay run` and `sandbox create`, and their conversion to a request.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use inlay_mounts::PathText;
use inlay_sandbox::{
    FirstProcess, HostEntry, Limits, Network, Privileges, RootAccess, SandboxError, SandboxOptions,
    Seccomp, Secret, SecretName, Security,
};

use super::Global;
use super::error::CliError;
use super::sandbox_path::Inside;
use crate::daemon::{
    CacheUse, CreateSandbox, IntoView, LoadOptions, MountInto, StartWhen, WhenEnded,
};

/// Timeout of creating a sandbox, most of it for fetching the index of its root.
pub(super) const CREATE_LIMIT: Duration = Duration::from_mins(5);

/// Network of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Reach {
    /// Loopback only
    #[default]
    None,
    /// Network of this host
    Host,
}

/// Options of a sandbox.
#[derive(Debug, Args)]
pub(super) struct OptionArgs {
    /// Assign a name [default: the id]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Set an environment variable; KEY alone passes the current value, or unsets the image's variable.
    /// Can be repeated
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Username or UID [default: from the image]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory inside the sandbox [default: from the image]
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,
    /// Override the image's entrypoint; '' for none
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Hostname [default: the id]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Network mode
    #[arg(long, value_enum, default_value_t, env = "INLAY_NETWORK", value_name = "MODE")]
    network: Reach,
    /// Add an entry to /etc/hosts. Can be repeated
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    add_host: Vec<HostEntry>,
    /// Set a DNS server [default: from this host]. Can be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Set a DNS search domain [default: from this host]. Can be repeated
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Mount the root filesystem read-only
    #[arg(long)]
    read_only: bool,
    /// Mount a snapshot at a path before the start. Can be repeated
    #[arg(long, short = 'v', value_name = "SNAPSHOT:/PATH[:ro]")]
    mount: Vec<String>,
    /// Expose a file as /run/secrets/NAME; never stored on disk or in snapshots. Can be repeated
    #[arg(long, value_name = "NAME=FILE")]
    secret: Vec<String>,
    /// Set a label (KEY=VALUE). Can be repeated
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Name or path of the OCI runtime [default: runc, or crun]
    #[arg(long, env = "INLAY_RUNTIME", value_name = "RUNTIME")]
    runtime: Option<String>,
    /// Memory limit
    #[arg(long, short, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    memory: Option<u64>,
    /// Number of CPUs, e.g. 1.5
    #[arg(long, value_name = "N", help_heading = "Limits")]
    cpus: Option<f64>,
    /// Limit on processes and threads; 0 or -1 for unlimited [default: 2048]
    #[arg(
        long,
        visible_alias = "pids",
        value_name = "N",
        value_parser = pids,
        allow_negative_numbers = true,
        help_heading = "Limits"
    )]
    pids_limit: Option<u32>,
    /// Disk limit for changes of the root and of live mounts
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    disk: Option<u64>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    shm_size: Option<u64>,
    /// Add a Linux capability, or ALL. Can be repeated
    #[arg(long, value_name = "CAPABILITY", help_heading = "Security")]
    cap_add: Vec<String>,
    /// Drop a Linux capability, or ALL. Can be repeated
    #[arg(long, value_name = "CAPABILITY", help_heading = "Security")]
    cap_drop: Vec<String>,
    /// Security options: no-new-privileges, seccomp=unconfined, apparmor=PROFILE or
    /// apparmor=unconfined. Can be repeated
    #[arg(long, value_name = "OPTION", help_heading = "Security")]
    security_opt: Vec<String>,
    /// Cache only the index of the root on this host's disk
    #[arg(long)]
    no_cache: bool,
}

impl OptionArgs {
    /// Returns the first process: the image's, with the given entrypoint and command.
    pub(super) fn first(&self, command: &[String]) -> FirstProcess {
        let entrypoint = self
            .entrypoint
            .as_ref()
            .map(|program| if program.is_empty() { Vec::new() } else { vec![program.clone()] });
        FirstProcess::Image { entrypoint, command: command.to_vec() }
    }
}

/// Builds the request to create a sandbox that starts at once and is kept. Callers may change both.
pub(super) fn create_request(
    global: &Global,
    snapshot: &str,
    args: &OptionArgs,
    process: FirstProcess,
) -> Result<CreateSandbox, CliError> {
    let deadline_ms = u64::try_from(CREATE_LIMIT.as_millis()).unwrap_or(u64::MAX);
    let secrets = args.secret.iter().map(|text| secret(text)).collect::<Result<Vec<_>, _>>()?;
    let labels = args.label.iter().map(|label| pair(label)).collect();
    let mounts = args.mount.iter().map(|text| mount(global, text, deadline_ms));
    Ok(CreateSandbox {
        snapshot: snapshot.to_owned(),
        store: global.store_ref()?,
        cache: if args.no_cache { CacheUse::None } else { CacheUse::Kept },
        load: LoadOptions::default(),
        name: args.name.clone(),
        options: SandboxOptions {
            process,
            env: variables(&args.env),
            user: args.user.clone(),
            workdir: args.workdir.clone(),
            hostname: args.hostname.clone(),
            network: match args.network {
                Reach::None => Network::None,
                Reach::Host => Network::Host,
            },
            limits: Limits {
                memory: args.memory,
                cpus: args.cpus,
                pids: args.pids_limit,
                disk: args.disk,
                shm: args.shm_size,
            },
            hosts: args.add_host.clone(),
            dns: args.dns.clone(),
            dns_search: args.dns_search.clone(),
            security: security(args)?,
            root: if args.read_only { RootAccess::ReadOnly } else { RootAccess::Writable },
            labels,
            runtime: args.runtime.clone(),
            ..SandboxOptions::default()
        },
        secrets,
        start: StartWhen::Now,
        when_ended: WhenEnded::Keep,
        mounts: mounts.collect::<Result<_, _>>()?,
        deadline_ms,
    })
}

/// Expands `KEY` to `KEY=VALUE` from the environment. If unset here, `KEY` alone unsets the image's
/// variable.
pub(super) fn variables(given: &[String]) -> Vec<String> {
    let value = |name: &String| {
        let here = if name.contains('=') { None } else { crate::config::variable(name) };
        here.unwrap_or_else(|| name.clone())
    };
    given.iter().map(value).collect()
}

/// Splits `KEY=VALUE`; `KEY` alone has an empty value.
pub(super) fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

fn secret(text: &str) -> Result<Secret, CliError> {
    let wrong = |why: String| CliError::Usage(format!("--secret {text}: {why}"));
    let (name, file) =
        text.split_once('=').ok_or_else(|| wrong("it must be NAME=FILE".to_owned()))?;
    let name: SecretName = name.parse().map_err(|error: SandboxError| wrong(error.to_string()))?;
    let bytes = fs::read(PathBuf::from(file)).map_err(|error| wrong(error.to_string()))?;
    Ok(Secret { name, bytes })
}

fn mount(global: &Global, text: &str, deadline_ms: u64) -> Result<MountInto, CliError> {
    let (place, view) = match text.strip_suffix(":ro") {
        Some(place) => (place, IntoView::ReadOnly),
        None => (text, IntoView::Writable),
    };
    let Inside { sandbox: snapshot, path } = Inside::parse(place.as_ref())?;
    Ok(MountInto {
        snapshot,
        store: global.store_ref()?,
        cache: CacheUse::Kept,
        path: PathText::from(&*path),
        view,
        owner: None,
        load: LoadOptions::default(),
        deadline_ms,
    })
}

fn host(text: &str) -> Result<HostEntry, String> {
    text.parse().map_err(|error: SandboxError| error.to_string())
}

/// Converts `--cap-add`, `--cap-drop` and `--security-opt`, as in docker and podman.
fn security(args: &OptionArgs) -> Result<Security, CliError> {
    let mut security = Security {
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        ..Security::default()
    };
    for option in &args.security_opt {
        let (key, value) = match option.split_once(['=', ':']) {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => security.privileges = Privileges::Fixed,
            ("no-new-privileges", Some("false")) => security.privileges = Privileges::Gained,
            ("seccomp", Some("unconfined")) => security.seccomp = Seccomp::Unconfined,
            ("apparmor", Some(profile)) => security.apparmor = Some(profile.to_owned()),
            _ => {
                return Err(CliError::Usage(format!(
                    "--security-opt {option}: it must be no-new-privileges, seccomp=unconfined or \
                     apparmor=PROFILE"
                )));
            }
        }
    }
    Ok(security)
}

/// Parses a limit of processes; 0 and -1 mean unlimited and return 0.
fn pids(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(0),
        Ok(number) => u32::try_from(number).map_err(|_| "must be a number, 0 or -1".to_owned()),
        Err(_) => Err("must be a number, 0 or -1".to_owned()),
    }
}

/// Parses a size in bytes or units of 1024, as docker does, e.g. `512`, `64K`, `512m`, `1.5g`.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size such as 64K, 512M or 2G");
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let digits = u32::try_from(part.len()).ok().filter(|digits| (1..=6).contains(digits));
    let scale = 10u64.pow(digits.ok_or_else(wrong)?);
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part: u64 = part.parse().map_err(|_| wrong())?;
    // No overflow: below 10^6 × 2^40.
    let part = part * unit / scale;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_the_units_that_people_type() {
        for (text, bytes) in [
            ("512", 512),
            ("512b", 512),
            ("64K", 64 << 10),
            ("64m", 64 << 20),
            ("512M", 512 << 20),
            ("2GiB", 2 << 30),
            ("1.5g", 3 << 29),
            ("0.25k", 256),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "M", ".", "1.", ".5g", "1.2.3m", "-1", "99999999999T", "1X", "1mib2", "1.5x"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_of_processes_can_be_none() {
        assert_eq!((pids("0"), pids("-1"), pids("100")), (Ok(0), Ok(0), Ok(100)));
        for text in ["", "-2", "x", "5000000000"] {
            assert!(pids(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(pair("a=b=c"), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(pair("a"), ("a".to_owned(), String::new()));
    }
}
