//! What an image says of how it is run, and what the options change of it. The semantics are docker's.

use serde::Deserialize;

use super::error::SandboxError;
use super::options::{FirstProcess, SandboxOptions};
use super::signals::{SIGTERM, signal_number};

/// The longest configuration that is read, in bytes. Registries have 4 MiB.
const CONFIG_LEN_MAX: usize = 4 << 20;
/// The most words of a command, and the most variables.
const WORDS_MAX: usize = 4096;

/// Where programs are looked for if nothing says it: as docker has it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The configuration of an image, as far as a sandbox honours it. Volumes and exposed ports are of no
/// account here.
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

/// Old builders wrote one word without the list.
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
    /// Reads what an image brings along: JSON as the OCI image specification has it. Nothing at all
    /// is a configuration, too.
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
        // A name without a value is a request to take the builder's, which there is none of.
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

    /// The first program and its arguments; `waiting` is what runs if nothing is to run but a
    /// program that waits.
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
        // `--entrypoint ""` is how docker is told that there is none.
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

    /// The working directory: always absolute.
    pub(super) fn workdir(&self, options: &SandboxOptions) -> Result<String, SandboxError> {
        match &options.workdir {
            Some(dir) => absolute(dir).map(str::to_owned),
            None if self.workdir.is_empty() => Ok("/".to_owned()),
            None if self.workdir.starts_with('/') => Ok(self.workdir.clone()),
            None => Ok(format!("/{}", self.workdir)),
        }
    }

    /// As whom the first program runs, as text; empty: root.
    pub(super) fn user<'a>(&'a self, options: &'a SandboxOptions) -> &'a str {
        options.user.as_deref().unwrap_or(&self.user)
    }

    /// The variables, `HOME` excepted: those that are always there, the image's, the options'.
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

/// Whether `entry` is `NAME=VALUE`.
fn is_variable(entry: &str) -> bool {
    entry.find('=').is_some_and(|place| place > 0)
}

/// Refuses variables that can't be.
pub(super) fn check_env(env: &[String]) -> Result<(), SandboxError> {
    if env.len() > WORDS_MAX {
        return Err(SandboxError::option("--env", format!("more than {WORDS_MAX} variables")));
    }
    match env.iter().find(|entry| !is_variable(entry) || entry.contains('\0')) {
        // The value may be nobody's business.
        Some(entry) => {
            let name = entry.split('=').next().unwrap_or_default();
            Err(SandboxError::option("--env", format!("{name:?} must be NAME=VALUE")))
        }
        None => Ok(()),
    }
}

/// Refuses a command that can't be.
pub(super) fn check_command(command: &[String]) -> Result<(), SandboxError> {
    if command.len() > WORDS_MAX {
        return Err(SandboxError::option("the command", format!("more than {WORDS_MAX} words")));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(SandboxError::option("the command", "a word has a zero byte"));
    }
    Ok(())
}

/// A working directory that was asked for.
pub(super) fn absolute(dir: &str) -> Result<&str, SandboxError> {
    if dir.starts_with('/') && !dir.contains('\0') {
        Ok(dir)
    } else {
        Err(SandboxError::option("--workdir", format!("{dir:?} must be an absolute path")))
    }
}

/// Sets a variable, in the place of an earlier one of that name.
pub(super) fn set_variable(env: &mut Vec<String>, entry: &str) {
    let name = |entry: &str| entry.split('=').next().map(str::to_owned);
    match env.iter_mut().find(|known| name(known) == name(entry)) {
        Some(known) => entry.clone_into(known),
        None => env.push(entry.to_owned()),
    }
}

/// Whether a variable is set.
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
        for wrong in ["NAME", "=VALUE", "A=\0"] {
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
    fn what_is_damaged_is_refused() {
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
        fn whatever_an_image_brings_is_read_or_refused(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ImageConfig::parse(&json);
        }
    }
}
