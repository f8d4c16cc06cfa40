//! How a sandbox is to be, as the words of the command line say it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Global;
use super::error::CliError;
use super::inside::Inside;
use crate::daemon::{
    CacheUse, CreateSandbox, IntoView, LoadOptions, MountInto, StartWhen, WhenEnded,
};
use crate::mount::PathText;
use crate::sandbox::{
    FirstProcess, Limits, Network, RootAccess, SandboxOptions, Secret, SecretName,
};

/// How long making a sandbox may take, most of it for the index of its root.
pub(super) const CREATE_LIMIT: Duration = Duration::from_mins(5);

/// What a sandbox reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Reach {
    /// Nothing but itself
    #[default]
    None,
    /// All that this host reaches, and this host
    Host,
}

/// How a sandbox is to be.
#[derive(Debug, Args)]
pub(super) struct OptionArgs {
    /// What to call it [default: its id]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Set a variable; NAME alone takes it from here. Can be repeated
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// As whom programs run: by name or number [default: what the image says]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Where programs start [default: what the image says]
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,
    /// Instead of the image's entrypoint; '' for none
    #[arg(long, value_name = "PROGRAM")]
    pub(super) entrypoint: Option<String>,
    /// Its host name [default: its id]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// What it reaches
    #[arg(long, value_enum, default_value_t, env = "INLAY_NETWORK", value_name = "WHAT")]
    network: Reach,
    /// Its root can't be changed
    #[arg(long)]
    read_only: bool,
    /// Mount a snapshot at a path before its first program starts. Can be repeated
    #[arg(long, short = 'v', value_name = "SNAPSHOT:/PATH[:ro]")]
    mount: Vec<String>,
    /// Show a file as /run/secrets/NAME, which is on no disk and in no snapshot. Can be repeated
    #[arg(long, value_name = "NAME=FILE")]
    secret: Vec<String>,
    /// A remark. Can be repeated
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// The OCI runtime, by name or path [default: the first of runc and crun that is installed]
    #[arg(long, env = "INLAY_RUNTIME", value_name = "RUNTIME")]
    runtime: Option<String>,
    /// How much memory it may use
    #[arg(long, short, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    memory: Option<u64>,
    /// How many processors, such as 1.5
    #[arg(long, value_name = "N", help_heading = "Limits")]
    cpus: Option<f64>,
    /// How many processes and threads
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pids: Option<u32>,
    /// How much its root's changes may take on disk
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Limits")]
    disk: Option<u64>,
    /// Keep nothing of its root on this host's disk but the index
    #[arg(long)]
    no_cache: bool,
}

impl OptionArgs {
    /// The image's program, or what is given instead.
    pub(super) fn first(&self, command: &[String]) -> FirstProcess {
        let entrypoint = self
            .entrypoint
            .as_ref()
            .map(|program| if program.is_empty() { Vec::new() } else { vec![program.clone()] });
        FirstProcess::Image { entrypoint, command: command.to_vec() }
    }
}

/// The request for such a sandbox. It starts at once and stays.
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
                pids: args.pids,
                disk: args.disk,
            },
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

/// `NAME=VALUE` as it is; `NAME` with the value that it has here, if it has one.
pub(super) fn variables(given: &[String]) -> Vec<String> {
    let value = |name: &String| {
        if name.contains('=') { Some(name.clone()) } else { crate::config::variable(name) }
    };
    given.iter().filter_map(value).collect()
}

/// `KEY=VALUE`, or `KEY` with nothing.
pub(super) fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

fn secret(text: &str) -> Result<Secret, CliError> {
    let wrong = |why: String| CliError::Usage(format!("--secret {text}: {why}"));
    let (name, file) =
        text.split_once('=').ok_or_else(|| wrong("it must be NAME=FILE".to_owned()))?;
    let name: SecretName =
        name.parse().map_err(|error: crate::sandbox::SandboxError| wrong(error.to_string()))?;
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

/// `512`, `64K`, `512M`, `2G`: bytes, or units of 1024.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size such as 64K, 512M or 2G");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit: u64 = match unit.trim_end_matches(['i', 'B', 'b']).to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_the_units_that_people_type() {
        for (text, bytes) in
            [("512", 512), ("64K", 64 << 10), ("512M", 512 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1.5G", "-1", "99999999999T", "1X"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(pair("a=b=c"), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(pair("a"), ("a".to_owned(), String::new()));
    }
}
