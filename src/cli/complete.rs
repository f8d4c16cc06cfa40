//! Shell completion: `inlay completion` prints the script, which calls this program for candidates.
//!
//! Candidates therefore always match the installed version. Names of snapshots and sandboxes come from
//! the store and the state in `--store`, `--state` and the environment. Completion creates no files and
//! starts no daemon. If the store is slow, some names are missing.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, Args, Command, CommandFactory, Parser, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::{Bash, EnvCompleter, Fish, Shells, Zsh};
use futures::StreamExt;
use inlay_sandbox::{Layout, SandboxId, name_in_record};
use inlay_store::remote::{PlainHttp, Remote};
use tokio::runtime::Builder;
use tokio::time::{Instant, timeout_at};

use super::Cli;
use super::error::CliError;
use crate::config;

/// Variable set by the shell's script when it requests candidates.
const ASKED: &str = "INLAY_COMPLETE";
/// Timeout for listing names in a store.
const WITHIN: Duration = Duration::from_millis(500);
/// Upper bound on the names offered.
const NAMES_MAX: usize = 1000;
const SHELLS: Shells<'static> = Shells(&[&Bash, &Zsh, &Fish]);

/// Generate the completion script for a shell.
///
/// Completes commands, options, names of snapshots and sandboxes, and paths. Packages install the
/// scripts.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(inlay completion bash)
  inlay completion zsh > /usr/local/share/zsh/site-functions/_inlay
  inlay completion fish > ~/.config/fish/completions/inlay.fish")]
pub(super) struct CompletionArgs {
    /// Shell to generate the script for
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn completion(args: &CompletionArgs) -> Result<(), CliError> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let mut script = Vec::new();
    shell.write_registration(ASKED, "inlay", "inlay", "inlay", &mut script)?;
    if args.shell == Shell::Zsh {
        // Autoloaded from `fpath`, the file is the function's body: its first call must complete, too.
        script.extend_from_slice(
            b"[ \"$funcstack[1]\" = \"_inlay\" ] && _clap_dynamic_completer_inlay \"$@\"\n",
        );
    }
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(())
}

/// Whether this process was called for completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// Not called for completion.
    Nothing,
    /// Candidates, or the script, were printed; the process should exit.
    Words,
}

/// Prints candidates if a shell's script called this program. Must be called before any other thread
/// starts: it removes `INLAY_COMPLETE` from the environment.
pub fn complete() -> Result<Completed, CliError> {
    let here = std::env::current_dir().ok();
    let answer = CompleteEnv::with_factory(command)
        .var(ASKED)
        .shells(SHELLS)
        .try_complete(std::env::args_os(), here.as_deref());
    match answer {
        Ok(true) => Ok(Completed::Words),
        Ok(false) => Ok(Completed::Nothing),
        Err(error) => Err(CliError::Usage(format!("{ASKED}: {error}"))),
    }
}

/// Kind of an argument's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ArgumentSlot {
    /// Snapshot.
    Snapshot,
    /// `SNAPSHOT:/PATH`.
    InSnapshot,
    /// Sandbox.
    Sandbox,
    /// `SANDBOX:/PATH`.
    InSandbox,
    /// `SANDBOX:/PATH`, or a path on this host.
    InSandboxOrHere,
}

impl ArgumentSlot {
    /// Returns the kind of a command's argument, by their names; `None` for options and other values.
    fn of(command: &str, argument: &Arg) -> Option<Self> {
        if !argument.is_positional() {
            return None;
        }
        match (command, argument.get_id().as_str()) {
            (_, "snapshot") => Some(Self::Snapshot),
            (_, "sandbox") => Some(Self::Sandbox),
            ("ls" | "stat" | "tree", "target") | ("cat", "targets") => Some(Self::InSnapshot),
            ("snapshot", "place") => Some(Self::InSandbox),
            ("mount" | "umount", "dir") | ("cp", "from" | "to") => Some(Self::InSandboxOrHere),
            _ => None,
        }
    }
}

impl ValueCompleter for ArgumentSlot {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(begun) = current.to_str() else { return Vec::new() };
        let Some(asked) = Asked::from(std::env::args_os()) else { return Vec::new() };
        let (names, end) = match self {
            Self::Snapshot => (asked.snapshots(), ""),
            Self::InSnapshot => (asked.snapshots(), ":/"),
            Self::Sandbox => (asked.sandboxes(), ""),
            Self::InSandbox | Self::InSandboxOrHere => (asked.sandboxes(), ":/"),
        };
        let mut words: Vec<_> = matching(names, begun)
            .map(|name| CompletionCandidate::new(format!("{name}{end}")))
            .collect();
        if *self == Self::InSandboxOrHere {
            words.extend(PathCompleter::any().complete(current));
        }
        words
    }
}

fn matching(mut names: Vec<String>, begun: &str) -> impl Iterator<Item = String> {
    names.sort();
    names.dedup();
    names.into_iter().filter(move |name| name.starts_with(begun)).take(NAMES_MAX)
}

/// Returns the command line with a completer for each argument that has a [`ArgumentSlot`].
fn command() -> Command {
    fn with_places(command: Command) -> Command {
        let name = command.get_name().to_owned();
        let command = command.mut_args(|argument| match ArgumentSlot::of(&name, &argument) {
            Some(place) => argument.add(ArgValueCompleter::new(place)),
            None => argument,
        });
        command.mut_subcommands(with_places)
    }
    with_places(Cli::command())
}

/// Store and state of the command line being completed.
#[derive(Debug, Parser)]
struct Asked {
    #[arg(long, env = "INLAY_STORE")]
    store: Option<String>,
    #[arg(long, env = "INLAY_STATE", default_value = config::STATE_DEFAULT)]
    state: PathBuf,
}

impl Asked {
    /// Parses the arguments after the first `--`. The command line is incomplete, so only the two
    /// options are searched for; the environment provides the others.
    fn from(arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut words = arguments.skip_while(|word| word != "--").skip(1);
        let mut found = vec![OsString::from("inlay")];
        while let Some(word) = words.next() {
            let Some(text) = word.to_str() else { continue };
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (text, None),
            };
            if name != "--store" && name != "--state" {
                continue;
            }
            // Bash passes an equals sign as a separate word.
            let value = value.or_else(|| words.next());
            let value =
                value.and_then(|value| if value == "=" { words.next() } else { Some(value) });
            if let Some(value) = value {
                let mut option = OsString::from(format!("{name}="));
                option.push(value);
                found.push(option);
            }
        }
        Self::try_parse_from(found).ok()
    }

    /// Returns the names of snapshots listed within [`WITHIN`]. Errors are ignored: a completion cannot
    /// report them.
    fn snapshots(&self) -> Vec<String> {
        let deadline = Instant::now() + WITHIN;
        let Ok(runtime) = Builder::new_multi_thread().worker_threads(1).enable_all().build() else {
            return Vec::new();
        };
        let mut names = Vec::new();
        runtime.block_on(async {
            if let Some(remote) = self.remote() {
                // On timeout, offer the names listed so far.
                let _ = timeout_at(deadline, collect(&remote, &mut names)).await;
            }
        });
        // Do not wait for a read that hangs.
        runtime.shutdown_background();
        names
    }

    /// Opens the store. Returns `None` for a directory that does not exist: opening would create it.
    fn remote(&self) -> Option<Remote> {
        let state = std::path::absolute(&self.state).unwrap_or_else(|_| self.state.clone());
        let embedded = inlay_snapshots::state::embedded_store(&state);
        let url = self.store.clone().unwrap_or_else(|| embedded.display().to_string());
        let dir = url.strip_prefix("file://").unwrap_or(&url);
        if !dir.contains("://") && !Path::new(dir).is_dir() {
            return None;
        }
        // Same restriction as for commands without --plain-http.
        Remote::open(&config::store_config(&url, PlainHttp::LoopbackOnly)).ok()
    }

    /// Returns the names of sandboxes from their records.
    fn sandboxes(&self) -> Vec<String> {
        let Ok(state) = std::path::absolute(&self.state) else { return Vec::new() };
        let Ok(found) = fs::read_dir(Layout::parent(&state)) else { return Vec::new() };
        found
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse::<SandboxId>().ok())
            .filter_map(|id| name_in_record(&Layout::of(&state, &id)))
            .take(NAMES_MAX)
            .collect()
    }
}

async fn collect(remote: &Remote, names: &mut Vec<String>) {
    let Ok(mut records) = remote.names().await else { return };
    while let Some(record) = records.next().await {
        if let Ok(record) = record {
            names.push(record.name.as_str().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Asked {
        let words = ["inlay", "--", "inlay"].iter().chain(words);
        Asked::from(words.map(OsString::from)).unwrap()
    }

    #[test]
    fn the_words_say_where_to_look() {
        for words in [
            &["--state", "/s", "--store=/t", "mount", "ba"][..],
            &["--state", "=", "/s", "mount", "--store", "/t", "ba"],
            &["ls", "--json", "--state=/s", "--store", "=", "/t", "--unknown"],
        ] {
            let asked = asked(words);
            assert_eq!(asked.state, Path::new("/s"), "{words:?}");
            assert_eq!(asked.store.as_deref(), Some("/t"), "{words:?}");
        }
    }

    #[test]
    fn every_snapshot_and_sandbox_is_completed() {
        fn places(command: &Command, found: &mut Vec<String>) {
            for argument in command.get_arguments() {
                if ArgumentSlot::of(command.get_name(), argument).is_some() {
                    found.push(format!("{} {}", command.get_name(), argument.get_id()));
                }
            }
            command.get_subcommands().for_each(|command| places(command, found));
        }
        let mut found = Vec::new();
        places(&Cli::command(), &mut found);
        for wanted in [
            "mount snapshot",
            "mount dir",
            "umount dir",
            "run snapshot",
            "create snapshot",
            "exec sandbox",
            "logs sandbox",
            "stop sandbox",
            "rm sandbox",
            "inspect sandbox",
            "ls target",
            "cat targets",
            "stat target",
            "tree target",
            "export snapshot",
            "show snapshot",
            "tag snapshot",
            "verify snapshot",
            "pin snapshot",
            "cp from",
            "cp to",
            "snapshot place",
        ] {
            assert!(found.iter().any(|place| place == wanted), "{wanted} is not in {found:?}");
        }
    }

    #[test]
    fn words_are_offered_once_and_in_order() {
        let names = ["base-2", "other", "base", "base"].map(str::to_owned).to_vec();
        assert_eq!(matching(names, "ba").collect::<Vec<_>>(), ["base", "base-2"]);
    }
}
