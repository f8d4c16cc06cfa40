//! `inlay run`: runs a program in a new sandbox.

use clap::Args;
use inlay_sandbox::Stdin;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::exec::With;
use super::output;
use super::sandbox::{path_of, remove};
use super::sandbox_options::{CREATE_LIMIT, OptionArgs, create_request};
use super::stream::{self, ConnectionEnd, Ends};
use crate::daemon::{
    AttachTo, IfRunning, SANDBOXES, SandboxInfo, StartWhen, StopSandbox, StoppedSandbox, WhenEnded,
    word,
};

/// Maximum number of reconnects to a program, in case daemons keep dying.
const JOINS_MAX: u32 = 32;

/// Create a sandbox and run a command in it.
///
/// The command starts before its image is fetched. Default command: that of the image. Exits with the
/// command's exit code.
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
    /// Remove the sandbox when it exits
    #[arg(long)]
    rm: bool,
    /// Run in the background and print the name of the sandbox
    #[arg(long, short)]
    detach: bool,
    /// Name or id of an image or filesystem snapshot
    snapshot: String,
    /// Command and arguments [default: from the image]
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
    let made: SandboxInfo = with_daemon(global, None, |client, _| {
        Ok(client.post(SANDBOXES, &request, CREATE_LIMIT)?)
    })
    .map_err(CliError::for_program)?;
    if args.detach {
        output::print(global.format(), &made, |out| writeln!(out, "{}", made.name))?;
        return Ok(());
    }
    let id = made.id.as_str();
    let (attach, start) = (path_of(id, word::ATTACH), path_of(id, word::START));
    let mut ends = Ends::new(stdin, terminal);
    let begun = with_daemon(global, None, |client, _| {
        let wanted = AttachTo { stdin, size: stream::size(terminal), shown: None };
        client.wait(async {
            // Attach before the start, so that no output is missed.
            let connection = client.upgrade(&attach, &wanted).await?;
            let started = client.ask(hyper::Method::POST, &start, &(), CREATE_LIMIT).await;
            let _: SandboxInfo = started?;
            Ok::<_, CliError>(ends.join(connection).await)
        })
    });
    let left = match begun {
        Ok(left) => left,
        Err(error) => {
            clear(global, id);
            return Err(error.for_program());
        }
    };
    let code = left.and_then(|left| go_on(global, &made, stdin, &mut ends, left));
    // Stop forwarding signals: from here on they end this command.
    drop(ends);
    match &code {
        // The reader of the output is gone: stop the program, as SIGPIPE would.
        Err(CliError::Output(_)) if !args.rm => stop(global, id),
        Err(CliError::Cut(_)) => {}
        _ if args.rm => clear(global, id),
        _ => {}
    }
    CliError::ended(code?)
}

/// Stops the sandbox at once, without removing it. Best effort.
fn stop(global: &Global, id: &str) {
    let at_once = StopSandbox { grace_ms: 0, snapshot: None };
    let stopped: Result<StoppedSandbox, CliError> = with_daemon(global, None, |client, _| {
        Ok(client.post(&path_of(id, word::STOP), &at_once, CREATE_LIMIT)?)
    });
    if let Err(error) = stopped {
        tracing::debug!(%error, "the sandbox");
    }
}

/// Removes the sandbox. Best effort: it may have been removed when it exited.
fn clear(global: &Global, id: &str) {
    if let Err(error) = remove(global, id, IfRunning::Kill) {
        tracing::debug!(%error, "the sandbox");
    }
}

/// Reconnects to the program after each restart of the daemon, and returns its exit code. On failure,
/// the program keeps running.
fn go_on(
    global: &Global,
    made: &SandboxInfo,
    stdin: Stdin,
    ends: &mut Ends,
    mut left: ConnectionEnd,
) -> Result<i32, CliError> {
    let (name, path) = (&made.name, path_of(made.id.as_str(), word::ATTACH));
    for _ in 0..JOINS_MAX {
        let why = match left {
            ConnectionEnd::Ended(code) => return Ok(code),
            ConnectionEnd::Broken(why) => why,
        };
        tracing::debug!(why, "the connection to the daemon broke");
        if !ends.can_go_on() {
            return Err(CliError::Cut(format!(
                "the connection to the daemon broke ({why}), and of what {name} reads a part may be \
                 lost; it goes on without this command: 'inlay logs --follow {name}'"
            )));
        }
        let wanted =
            AttachTo { stdin, size: stream::size(ends.terminal()), shown: Some(ends.position()) };
        let joined = with_daemon(global, None, |client, _| {
            client.wait(async {
                let connection = client.upgrade(&path, &wanted).await?;
                Ok::<_, CliError>(ends.join(connection).await)
            })
        });
        left = match joined {
            Ok(left) => left?,
            Err(error) => return ended_unseen(global, made, &error),
        };
    }
    Err(CliError::Cut(format!(
        "daemons do not last; {name} goes on without this command: 'inlay logs --follow {name}'"
    )))
}

/// Returns the exit code of a program that exited while no daemon was running. Fails with `error` if
/// it is still running.
fn ended_unseen(global: &Global, made: &SandboxInfo, error: &CliError) -> Result<i32, CliError> {
    let (name, path) = (&made.name, path_of(made.id.as_str(), ""));
    let shown = with_daemon(global, None, |client, _| Ok(client.get::<SandboxInfo>(&path)?));
    match shown.map(|shown| shown.exit) {
        Ok(Some(exit)) => {
            tracing::warn!(
                "{name} ended while there was no daemon: 'inlay logs {name}' has what it printed last"
            );
            Ok(exit.code)
        }
        Ok(None) => Err(CliError::Cut(format!(
            "{error}; {name} goes on without this command: 'inlay logs --follow {name}'"
        ))),
        Err(error) => Err(error),
    }
}
