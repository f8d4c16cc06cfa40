//! `inlay run`: a new sandbox for one program.

use clap::Args;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::exec::With;
use super::output;
use super::sandbox::{path_of, remove};
use super::sandbox_options::{CREATE_LIMIT, OptionArgs, create_request};
use super::stream;
use crate::daemon::{AttachTo, IfRunning, SANDBOXES, SandboxShown, StartWhen, WhenEnded, word};

/// Run a program in a new sandbox.
///
/// It starts before its image is here. Without a command, what the image says is run. The program's
/// exit code is this command's.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay run base -- python3 -c 'print(\"hello\")'
  inlay run --rm -it base -- bash
  inlay run --detach --name web --network host app
  inlay run --rm -v project:/project --workdir /project base -- make test")]
pub(super) struct RunArgs {
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    with: With,
    /// Remove the sandbox when the program has ended
    #[arg(long)]
    rm: bool,
    /// Do not wait for it; 'inlay logs' shows what it prints
    #[arg(long, short)]
    detach: bool,
    /// The image or filesystem snapshot that is its root: name or id
    snapshot: String,
    /// The program and its words
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) fn run(global: &Global, args: &RunArgs) -> Result<(), CliError> {
    let first = args.options.first(&args.command);
    let mut request = create_request(global, &args.snapshot, &args.options, first)?;
    let (stdin, terminal) = (args.with.stdin(), args.with.terminal());
    (request.options.stdin, request.options.terminal) = (stdin, terminal);
    request.when_ended = if args.rm { WhenEnded::Remove } else { WhenEnded::Keep };
    request.start = if args.detach { StartWhen::Now } else { StartWhen::Later };
    let made: SandboxShown = with_daemon(global, None, |client, _| {
        Ok(client.post(SANDBOXES, &request, CREATE_LIMIT)?)
    })?;
    if args.detach {
        output::print(global.format(), &made, |out| writeln!(out, "{}", made.name))?;
        return Ok(());
    }
    let id = made.id.as_str();
    let (attach, start) = (path_of(id, word::ATTACH), path_of(id, word::START));
    let code = with_daemon(global, None, |client, _| {
        let wanted = AttachTo { stdin, size: stream::size(terminal) };
        client.wait(async {
            // Attached first: nothing that it prints is missed.
            let connection = client.upgrade(&attach, &wanted).await?;
            let started = client.ask(hyper::Method::POST, &start, &(), CREATE_LIMIT).await;
            let _: SandboxShown = started?;
            Ok::<_, CliError>(stream::join(connection, stdin, terminal).await)
        })
    });
    let code = code.and_then(|code| code);
    if code.is_err() || args.rm {
        // It may be removed already, because it has ended.
        if let Err(error) = remove(global, id, IfRunning::Kill) {
            tracing::debug!(%error, "the sandbox");
        }
    }
    CliError::ended(code?)
}
