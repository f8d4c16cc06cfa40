//! `inlay exec`: another program in a sandbox that runs.

use clap::Args;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::sandbox::path_of;
use super::sandbox_options::variables;
use super::stream::{self, Ends, Left};
use crate::daemon::word;
use crate::sandbox::{ExecOptions, Output, Stdin, Terminal};

/// Run a program in a sandbox.
///
/// Its exit code is this command's. What is piped into this command is what it reads.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay exec a -- git clone https://localhost/app.git /project
  inlay exec -it a -- bash
  inlay exec --user app --workdir /project --env CI=1 a -- make test
  tar c . | inlay exec -i a -- tar x -C /project")]
pub(super) struct ExecArgs {
    #[command(flatten)]
    with: With,
    /// Do not wait for it: its output goes nowhere
    #[arg(long, short, conflicts_with_all = ["tty", "interactive"])]
    detach: bool,
    /// Name or id
    sandbox: String,
    /// The program and its words
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Set a variable; NAME alone takes it from here. Can be repeated
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// As whom it runs: by name or number [default: as the sandbox's first program]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Where it starts [default: where the sandbox's first program did]
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,
}

/// How this command's input and terminal are a program's.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct With {
    /// Give it what this command reads
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    tty: bool,
}

impl With {
    pub(super) fn stdin(self) -> Stdin {
        if self.interactive { Stdin::Open } else { Stdin::Empty }
    }

    pub(super) fn terminal(self) -> Terminal {
        if self.tty { Terminal::Pty } else { Terminal::None }
    }
}

pub(super) fn exec(global: &Global, args: &ExecArgs) -> Result<(), CliError> {
    let (stdin, terminal) = (args.with.stdin(), args.with.terminal());
    let options = ExecOptions {
        command: args.command.clone(),
        env: variables(&args.env),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        terminal,
        size: stream::size(terminal),
        stdin,
        output: if args.detach { Output::Discard } else { Output::Stream },
    };
    let path = path_of(&args.sandbox, word::EXEC);
    let left = with_daemon(global, None, |client, _| {
        if args.detach {
            let _: serde_json::Value =
                client.post(&path, &options, super::sandbox_options::CREATE_LIMIT)?;
            return Ok(Ok(Left::Ended(0)));
        }
        client.wait(async {
            let connection = client.upgrade(&path, &options).await?;
            // From here on, nothing is tried again.
            Ok::<_, CliError>(Ends::new(stdin, terminal).join(connection).await)
        })
    })
    .map_err(CliError::for_program)??;
    match left {
        Left::Ended(code) => CliError::ended(code),
        // As when a terminal is closed.
        Left::Broken(why) => Err(CliError::Cut(format!(
            "the connection to the daemon broke ({why}), and the program got SIGHUP; its sandbox goes on"
        ))),
    }
}
