//! Parses scenarios: TOML files that describe a start and its condition for readiness.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use inlay_base::duration;
use regex::Regex;
use serde::Deserialize;

use super::error::BenchError;

/// Maximum size of a scenario file, in bytes; far more than any needs.
const FILE_MAX: u64 = 1 << 20;
const LIMIT_DEFAULT: Duration = Duration::from_mins(5);
/// Maximum directory snapshots that a scenario mounts.
const MOUNTS_MAX: usize = 16;

/// One start to measure.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Up to 40 lower-case letters, digits and dashes.
    pub name: String,
    /// Description for reports.
    pub about: String,
    /// Source of the root filesystem.
    pub image: Source,
    /// Arguments of the first process.
    pub command: Vec<String>,
    /// Absolute path of its working directory.
    pub workdir: String,
    /// Environment as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Condition for readiness.
    pub ready: Ready,
    /// Deadline for readiness.
    pub limit: Duration,
    /// Directory snapshots mounted on the root before the command starts.
    pub mounts: Vec<MountPart>,
}

/// Source of a snapshot: an argument of `inlay import`, or a snapshot in the user's own store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `dir:` with a directory.
    Directory(PathBuf),
    /// Any other source to import; relative paths have been made absolute.
    Import(String),
    /// `snapshot:` with a name or an id in the store.
    Snapshot(String),
}

/// A directory snapshot mounted on the root.
#[derive(Debug, Clone)]
pub struct MountPart {
    /// Absolute path without `..`.
    pub path: PathBuf,
    /// Source of the snapshot.
    pub source: Source,
}

/// Condition for readiness.
#[derive(Debug, Clone)]
pub enum Ready {
    /// One or more lines of standard output or error match.
    Output(Regex),
    /// The command has exited with this status.
    Exit(i32),
    /// A TCP port of this host accepts connections.
    Port(u16),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    about: String,
    image: String,
    command: Command,
    #[serde(default)]
    workdir: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    ready: ReadyText,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    mount: Vec<MountText>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Command {
    Shell(String),
    Words(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum ReadyText {
    Output(String),
    Exit(i32),
    Port(u16),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MountText {
    path: PathBuf,
    source: String,
}

impl Scenario {
    /// Reads and parses a scenario file.
    pub fn read(file: &Path) -> Result<Self, BenchError> {
        let size = fs::metadata(file).map_err(BenchError::path("read", file))?.len();
        if size > FILE_MAX {
            return Err(wrong(file, "it is larger than 1 MiB"));
        }
        let text = fs::read_to_string(file).map_err(BenchError::path("read", file))?;
        let base = file.parent().unwrap_or(Path::new("."));
        Self::parse(&text, base).map_err(|why| wrong(file, &why))
    }

    /// Parses a scenario. Relative paths are resolved against `base`.
    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if file.name.is_empty() || file.name.len() > 40 || !file.name.chars().all(plain) {
            let name = file.name;
            return Err(format!("the name {name:?} is not 1 to 40 of a-z, 0-9 and -"));
        }
        let command = match file.command {
            Command::Shell(script) => vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
            Command::Words(words) => words,
        };
        if command.first().is_none_or(String::is_empty) || command.iter().any(|w| w.contains('\0'))
        {
            return Err("its command is empty".to_owned());
        }
        let workdir = file.workdir.unwrap_or_else(|| "/".to_owned());
        if !workdir.starts_with('/') {
            return Err(format!("workdir {workdir:?} is not an absolute path"));
        }
        if file.mount.len() > MOUNTS_MAX {
            return Err(format!("it has more than {MOUNTS_MAX} mounts"));
        }
        let limit = match file.timeout {
            Some(text) => duration::parse(&text)?,
            None => LIMIT_DEFAULT,
        };
        Ok(Self {
            name: file.name,
            about: file.about,
            image: Source::parse(&file.image, base)?,
            command,
            workdir,
            env: environment(file.env)?,
            ready: Ready::parse(file.ready)?,
            limit,
            mounts: file
                .mount
                .into_iter()
                .map(|mount| MountPart::parse(mount, base))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Returns the sources of the root and of the mounts, in this order.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        std::iter::once(&self.image).chain(self.mounts.iter().map(|mount| &mount.source))
    }
}

impl Source {
    fn parse(text: &str, base: &Path) -> Result<Self, String> {
        let Some((kind, rest)) = text.split_once(':') else {
            return Err(format!(
                "{text:?} is no dir:, oci:, tar:, docker-archive:, docker: or snapshot:"
            ));
        };
        if rest.is_empty() {
            return Err(format!("{text:?} names nothing"));
        }
        match kind {
            "dir" => Ok(Self::Directory(base.join(rest))),
            "oci" | "tar" | "docker-archive" => {
                Ok(Self::Import(format!("{kind}:{}", base.join(rest).display())))
            }
            "docker" => Ok(Self::Import(text.to_owned())),
            "snapshot" => Ok(Self::Snapshot(rest.to_owned())),
            _ => Err(format!(
                "{kind}: is no kind of source; there are dir:, oci:, tar:, docker-archive:, docker: and snapshot:"
            )),
        }
    }
}

impl Ready {
    fn parse(text: ReadyText) -> Result<Self, String> {
        match text {
            ReadyText::Output(pattern) => regex::RegexBuilder::new(&pattern)
                .multi_line(true)
                .size_limit(1 << 20)
                .build()
                .map(Self::Output)
                .map_err(|error| format!("ready: {error}")),
            ReadyText::Exit(status) => Ok(Self::Exit(status)),
            ReadyText::Port(0) => Err("ready: port 0 never answers".to_owned()),
            ReadyText::Port(port) => Ok(Self::Port(port)),
        }
    }
}

impl std::fmt::Display for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Output(pattern) => write!(f, "it says /{pattern}/"),
            Self::Exit(status) => write!(f, "it ends with {status}"),
            Self::Port(port) => write!(f, "port {port} answers"),
        }
    }
}

impl MountPart {
    fn parse(mount: MountText, base: &Path) -> Result<Self, String> {
        let path = mount.path;
        let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if !path.is_absolute() || path == Path::new("/") || !plain {
            return Err(format!(
                "the mount's path {} is not an absolute path below /",
                path.display()
            ));
        }
        Ok(Self { path, source: Source::parse(&mount.source, base)? })
    }
}

/// Formats the variables sorted by name. `PATH` gets a default.
fn environment(mut given: BTreeMap<String, String>) -> Result<Vec<String>, String> {
    given.entry("PATH".to_owned()).or_insert_with(|| {
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()
    });
    if let Some(name) = given.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        return Err(format!("{name:?} is no name of a variable"));
    }
    Ok(given.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn wrong(file: &Path, why: &str) -> BenchError {
    BenchError::Scenario { file: file.to_owned(), why: why.trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "page"
        image = "dir:../root"
        command = "exec server"
        env = { B = "2", A = "1" }
        ready = { output = "^ready" }
        timeout = "9s"
        [[mount]]
        path = "/srv/project"
        source = "tar:project.tar"
    "#;

    fn parsed(text: &str) -> Result<Scenario, String> {
        Scenario::parse(text, Path::new("/scenarios"))
    }

    #[test]
    fn a_scenario_is_read() {
        let scenario = parsed(GOOD).unwrap();
        assert_eq!(scenario.command, ["/bin/sh", "-c", "exec server"]);
        assert_eq!(scenario.image, Source::Directory("/scenarios/../root".into()));
        assert_eq!(scenario.env[..2], ["A=1", "B=2"]);
        assert!(scenario.env[2].starts_with("PATH=/"));
        assert_eq!((scenario.workdir.as_str(), scenario.limit), ("/", Duration::from_secs(9)));
        assert_eq!(scenario.mounts[0].path, Path::new("/srv/project"));
        assert_eq!(scenario.mounts[0].source, Source::Import("tar:/scenarios/project.tar".into()));
        assert!(matches!(&scenario.ready, Ready::Output(at) if at.is_match("so\nready\n")));
    }

    #[test]
    fn invalid_scenarios_are_refused() {
        for (from, to) in [
            ("\"page\"", "\"Page!\""),
            ("\"page\"", "\"\""),
            ("dir:../root", "root"),
            ("dir:../root", "floppy:a"),
            ("dir:../root", "dir:"),
            ("\"exec server\"", "[]"),
            ("\"exec server\"", "7"),
            ("output = \"^ready\"", "output = \"(\""),
            ("output = \"^ready\"", "port = 0"),
            ("output = \"^ready\"", "port = 70000"),
            ("output = \"^ready\"", "file = \"x\""),
            ("{ output = \"^ready\" }", "{ output = \"^ready\", exit = 0 }"),
            ("\"9s\"", "\"soon\""),
            ("/srv/project", "srv/project"),
            ("/srv/project", "/srv/../project"),
            ("/srv/project", "/"),
            ("timeout", "time"),
            ("{ B =", "{ \"B=C\" ="),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD);
            assert!(parsed(&text).is_err(), "{to} is taken");
        }
    }
}
