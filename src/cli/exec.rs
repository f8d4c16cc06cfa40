//! `inlay exec`: runs a program in a running sandbox.

use clap::Args;
use inlay_sandbox::{ExecOptions, Output, Stdin, Terminal};

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::sandbox::path_of;
use super::sandbox_options::variables;
use super::stream::{self, ConnectionEnd, Ends};
use crate::daemon::word;

/// Run a command in a running sandbox.
///
/// Exits with the command's exit code. With -i, standard input is passed to the command.
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
    /// Run in the background and discard output
    #[arg(long, short, conflicts_with_all = ["tty", "interactive"])]
    detach: bool,
    /// Name or id of the sandbox
    sandbox: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Set an environment variable; KEY alone passes the current value. Can be repeated
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Username or UID [default: as set for the sandbox]
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory inside the sandbox [default: as set for the sandbox]
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,
}

/// Standard input and terminal of a program.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct With {
    /// Keep stdin open
    #[arg(long, short)]
    interactive: bool,
    /// Allocate a terminal
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
            return Ok(Ok(ConnectionEnd::Ended(0)));
        }
        client.wait(async {
            let connection = client.upgrade(&path, &options).await?;
            // `Ok` from here on: the program runs, so the request must not be retried.
            Ok::<_, CliError>(Ends::new(stdin, terminal).join(connection).await)
        })
    })
    .map_err(CliError::for_program)??;
    match left {
        ConnectionEnd::Ended(code) => CliError::ended(code),
        // The program gets SIGHUP, as when its terminal is closed.
        ConnectionEnd::Broken(why) => Err(CliError::Cut(format!(
            "the connection to the daemon broke ({why}), and the program got SIGHUP; its sandbox goes on"
        ))),
    }
}
