//! The image's run configuration and how the options override it, with docker's semantics.

use serde::Deserialize;

use super::error::SandboxError;
use super::options::{FirstProcess, SandboxOptions};
use super::signals::{SIGTERM, signal_number};

/// The maximum size of a configuration, in bytes. Registries limit it to 4 MiB.
const CONFIG_LEN_MAX: usize = 4 << 20;
/// The maximum number of arguments in an image's command, and of its environment variables.
const WORDS_MAX: usize = 4096;
/// The maximum length of an argument or environment variable, in bytes: the kernel's MAX_ARG_STRLEN
/// without the terminating NUL.
const WORD_LEN_MAX: usize = (128 << 10) - 1;
/// The maximum total size of the command, and of the environment, in bytes: a quarter of the usual
/// stack limit, which is what the kernel allows for both.
const WORDS_LEN_MAX: usize = 2 << 20;
/// The cost of an argument beyond its bytes: the terminating NUL and a pointer.
const WORD_OVERHEAD: usize = 9;

/// The default search path, as in docker.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The parts of an image configuration that a sandbox honours. Volumes and exposed ports are
/// ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageConfig {
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) user: String,
    pub(super) workdir: String,
    pub(super) stop_signal: i32,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            entrypoint: Vec::new(),
            command: Vec::new(),
            env: Vec::new(),
            user: String::new(),
            workdir: String::new(),
            stop_signal: SIGTERM,
        }
    }
}

#[derive(Deserialize)]
struct Outer {
    config: Option<Inner>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inner {
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// Old builders wrote a bare string for a single argument.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::Many(words) => words,
            Self::One(word) => vec![word],
        }
    }
}

impl ImageConfig {
    /// Parses an image configuration: JSON per the OCI image specification. Empty input yields the
    /// default.
    pub(super) fn parse(json: &[u8]) -> Result<Self, SandboxError> {
        let damaged = SandboxError::ImageConfig;
        if json.len() > CONFIG_LEN_MAX {
            return Err(damaged(format!("longer than {CONFIG_LEN_MAX} bytes")));
        }
        if json.is_empty() {
            return Ok(Self::default());
        }
        let outer: Outer = serde_json::from_slice(json).map_err(|e| damaged(e.to_string()))?;
        let inner = outer.config.unwrap_or_default();
        let words = |words: Option<Words>| words.map(Words::into_vec).unwrap_or_default();
        let stop_signal = match inner.stop_signal.as_deref().filter(|text| !text.is_empty()) {
            None => SIGTERM,
            Some(text) => signal_number(text)
                .ok_or_else(|| damaged(format!("{text:?} is no signal (StopSignal)")))?,
        };
        let mut env = inner.env.unwrap_or_default();
        // Docker reads a name without a value from the builder's environment; there is none here.
        env.retain(|entry| is_variable(entry));
        let config = Self {
            entrypoint: words(inner.entrypoint),
            command: words(inner.cmd),
            env,
            user: inner.user.unwrap_or_default(),
            workdir: inner.working_dir.unwrap_or_default(),
            stop_signal,
        };
        for (what, list) in
            [("Entrypoint", &config.entrypoint), ("Cmd", &config.command), ("Env", &config.env)]
        {
            if list.len() > WORDS_MAX {
                return Err(damaged(format!("{what} has more than {WORDS_MAX} entries")));
            }
            if list.iter().any(|word| word.contains('\0')) {
                return Err(damaged(format!("{what} has a zero byte")));
            }
        }
        if config.user.contains('\0') || config.workdir.contains('\0') {
            return Err(damaged("User or WorkingDir has a zero byte".to_owned()));
        }
        Ok(config)
    }

    /// Returns the first program and its arguments; `waiting` is the command for
    /// [`FirstProcess::Wait`].
    pub(super) fn args(
        &self,
        process: &FirstProcess,
        waiting: &[&str],
    ) -> Result<Vec<String>, SandboxError> {
        let (entrypoint, command) = match process {
            FirstProcess::Wait => {
                return Ok(waiting.iter().map(|word| (*word).to_owned()).collect());
            }
            FirstProcess::Image { entrypoint: Some(entrypoint), command } => (entrypoint, command),
            FirstProcess::Image { entrypoint: None, command } if command.is_empty() => {
                (&self.entrypoint, &self.command)
            }
            FirstProcess::Image { entrypoint: None, command } => (&self.entrypoint, command),
        };
        // `--entrypoint ""` clears the entrypoint, as in docker.
        let entrypoint: &[String] = match entrypoint.as_slice() {
            [empty] if empty.is_empty() => &[],
            words => words,
        };
        let args: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
        match args.first() {
            Some(program) if !program.is_empty() => Ok(args),
            _ => Err(SandboxError::NoCommand),
        }
    }

    /// Returns the working directory, always absolute.
    pub(super) fn workdir(&self, options: &SandboxOptions) -> Result<String, SandboxError> {
        match &options.workdir {
            Some(dir) => absolute(dir).map(str::to_owned),
            None if self.workdir.is_empty() => Ok("/".to_owned()),
            None if self.workdir.starts_with('/') => Ok(self.workdir.clone()),
            None => Ok(format!("/{}", self.workdir)),
        }
    }

    /// Returns the user of the first process as text; empty means root.
    pub(super) fn user<'a>(&'a self, options: &'a SandboxOptions) -> &'a str {
        options.user.as_deref().unwrap_or(&self.user)
    }

    /// Returns the environment without `HOME`. Precedence, lowest first: the default `PATH`,
    /// `always`, the image, the options.
    pub(super) fn env(
        &self,
        options: &SandboxOptions,
        always: &[String],
    ) -> Result<Vec<String>, SandboxError> {
        check_env(&options.env)?;
        let mut env = vec![PATH.to_owned()];
        for entry in always.iter().chain(&self.env).chain(&options.env) {
            set_variable(&mut env, entry);
        }
        Ok(env)
    }
}

/// Reports whether `entry` has the form `NAME=VALUE`.
fn is_variable(entry: &str) -> bool {
    entry.find('=').is_some_and(|place| place > 0)
}

/// Rejects malformed variables. A bare name removes the variable, as in docker.
pub(super) fn check_env(env: &[String]) -> Result<(), SandboxError> {
    check_len("--env", env)?;
    match env
        .iter()
        .find(|entry| entry.is_empty() || entry.starts_with('=') || entry.contains('\0'))
    {
        // Leave the value out of the message; it may be a secret.
        Some(entry) => {
            let name = entry.split('=').next().unwrap_or_default();
            Err(SandboxError::option("--env", format!("{name:?} must be NAME=VALUE or NAME")))
        }
        None => Ok(()),
    }
}

/// Rejects arguments that exceed the limits of execve(2).
fn check_len(what: &'static str, words: &[String]) -> Result<(), SandboxError> {
    if let Some(long) = words.iter().find(|word| word.len() > WORD_LEN_MAX) {
        let why = format!("a word has {} bytes; the kernel takes {WORD_LEN_MAX}", long.len());
        return Err(SandboxError::option(what, why));
    }
    let len: usize = words.iter().map(|word| word.len() + WORD_OVERHEAD).sum();
    if len > WORDS_LEN_MAX {
        let why = format!(
            "its words take {len} bytes; the kernel takes {WORDS_LEN_MAX}, variables included"
        );
        return Err(SandboxError::option(what, why));
    }
    Ok(())
}

/// Rejects a command that can't be executed.
pub(super) fn check_command(command: &[String]) -> Result<(), SandboxError> {
    check_len("the command", command)?;
    if command.iter().any(|word| word.contains('\0')) {
        return Err(SandboxError::option("the command", "a word has a zero byte"));
    }
    Ok(())
}

/// Validates a requested working directory.
pub(super) fn absolute(dir: &str) -> Result<&str, SandboxError> {
    if dir.starts_with('/') && !dir.contains('\0') {
        Ok(dir)
    } else {
        Err(SandboxError::option("--workdir", format!("{dir:?} must be an absolute path")))
    }
}

/// Sets a variable, replacing an earlier one of the same name; a bare name removes it.
pub(super) fn set_variable(env: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().map(str::to_owned);
    if !entry.contains('=') {
        env.retain(|known| name(known).as_deref() != Some(entry));
        return;
    }
    match env.iter_mut().find(|known| name(known) == name(entry)) {
        Some(known) => entry.clone_into(known),
        None => env.push(entry.to_owned()),
    }
}

/// Reports whether a variable is set.
pub(super) fn has_variable(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| entry.split('=').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(of: &[&str]) -> Vec<String> {
        of.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> ImageConfig {
        let json = br#"{"architecture": "amd64", "config": {"Entrypoint": ["/entry", "-x"],
            "Cmd": ["serve"], "Env": ["A=image", "B=image", "NOVALUE", "=x"], "User": "app:staff",
            "WorkingDir": "srv", "StopSignal": "SIGQUIT", "Volumes": {"/data": {}},
            "ExposedPorts": {"80/tcp": {}}, "Labels": null}}"#;
        ImageConfig::parse(json).unwrap()
    }

    fn run(entrypoint: Option<&[&str]>, command: &[&str]) -> FirstProcess {
        FirstProcess::Image { entrypoint: entrypoint.map(words), command: words(command) }
    }

    #[test]
    fn commands_are_overridden_as_docker_does_it() {
        for (entrypoint, command, wanted) in [
            (None, &[][..], &["/entry", "-x", "serve"][..]),
            (None, &["a", "b"], &["/entry", "-x", "a", "b"]),
            (Some(&["sh"][..]), &[], &["sh"]),
            (Some(&["sh"]), &["-c", "x"], &["sh", "-c", "x"]),
            (Some(&[""]), &["id"], &["id"]),
            (Some(&[]), &["id"], &["id"]),
        ] {
            assert_eq!(image().args(&run(entrypoint, command), &[]).unwrap(), words(wanted));
        }
        for nothing in [run(Some(&[""]), &[]), run(Some(&[]), &[]), run(Some(&[]), &[""])] {
            assert!(matches!(image().args(&nothing, &[]), Err(SandboxError::NoCommand)));
        }
        assert_eq!(image().args(&FirstProcess::Wait, &["w", "1"]).unwrap(), ["w", "1"]);
    }

    #[test]
    fn variables_of_the_options_win_and_keep_their_place() {
        let options = SandboxOptions { env: words(&["B=mine=x", "C="]), ..Default::default() };
        let env = image().env(&options, &words(&["HOSTNAME=h"])).unwrap();
        assert_eq!(env, [PATH, "HOSTNAME=h", "A=image", "B=mine=x", "C="]);
        let options = SandboxOptions { env: words(&["A", "NONE", "PATH"]), ..Default::default() };
        assert_eq!(image().env(&options, &[]).unwrap(), ["B=image"]);
        for wrong in ["", "=VALUE", "A=\0"] {
            let options = SandboxOptions { env: words(&[wrong]), ..Default::default() };
            assert!(image().env(&options, &[]).is_err(), "{wrong:?}");
        }
        let options = SandboxOptions { env: words(&["=secret"]), ..Default::default() };
        assert!(!image().env(&options, &[]).unwrap_err().to_string().contains("secret"));
    }

    #[test]
    fn no_configuration_is_one_too() {
        for nothing in [&b""[..], b"{}", br#"{"config": null}"#, br#"{"config": {"Cmd": null}}"#] {
            let config = ImageConfig::parse(nothing).unwrap();
            assert_eq!(config, ImageConfig::default());
            assert!(config.args(&run(None, &[]), &[]).is_err());
            assert_eq!(config.args(&run(None, &["id"]), &[]).unwrap(), ["id"]);
            assert_eq!(config.workdir(&SandboxOptions::default()).unwrap(), "/");
            assert_eq!(config.env(&SandboxOptions::default(), &[]).unwrap(), [PATH]);
        }
        assert_eq!(image().workdir(&SandboxOptions::default()).unwrap(), "/srv");
        assert_eq!(image().stop_signal, 3);
        let one = ImageConfig::parse(br#"{"config": {"Cmd": "id"}}"#).unwrap();
        assert_eq!(one.command, ["id"]);
    }

    #[test]
    fn malformed_image_configs_are_refused() {
        for damaged in [
            &b"{"[..],
            b"[]",
            br#"{"config": {"Cmd": [1]}}"#,
            br#"{"config": {"Cmd": ["a\u0000"]}}"#,
            br#"{"config": {"User": "a\u0000"}}"#,
            br#"{"config": {"StopSignal": "SIGNONE"}}"#,
            br#"{"config": "x"}"#,
        ] {
            assert!(ImageConfig::parse(damaged).is_err(), "{}", String::from_utf8_lossy(damaged));
        }
        let many = serde_json::json!({"config": {"Cmd": vec!["a"; WORDS_MAX + 1]}}).to_string();
        assert!(ImageConfig::parse(many.as_bytes()).is_err());
        assert!(ImageConfig::parse(&vec![b' '; CONFIG_LEN_MAX + 1]).is_err());
        let deep = "[".repeat(100_000);
        assert!(ImageConfig::parse(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_image_configs_are_read_or_refused(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ImageConfig::parse(&json);
        }
    }
}
