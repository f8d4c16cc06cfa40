//! `inlay run`: a new sandbox for one program.

use clap::Args;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::exec::With;
use super::output;
use super::sandbox::{path_of, remove};
use super::sandbox_options::{CREATE_LIMIT, OptionArgs, create_request};
use super::stream::{self, Ends, Left};
use crate::daemon::{
    AttachTo, IfRunning, SANDBOXES, SandboxShown, StartWhen, StopSandbox, StoppedSandbox,
    WhenEnded, word,
};
use crate::sandbox::Stdin;

/// How often a program is joined again. Daemons that end all the time are nobody's to wait for.
const JOINS_MAX: u32 = 32;

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
            // Attached first: nothing that it prints is missed.
            let connection = client.upgrade(&attach, &wanted).await?;
            let started = client.ask(hyper::Method::POST, &start, &(), CREATE_LIMIT).await;
            let _: SandboxShown = started?;
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
    match &code {
        // Nobody reads it any more: where a program that writes to a pipe would end, this one does.
        Err(CliError::Output(_)) if !args.rm => stop(global, id),
        Err(CliError::Cut(_)) => {}
        _ if args.rm => clear(global, id),
        _ => {}
    }
    CliError::ended(code?)
}

/// Ends the program, and keeps what it has changed.
fn stop(global: &Global, id: &str) {
    let at_once = StopSandbox { grace_ms: 0, snapshot: None };
    let stopped: Result<StoppedSandbox, CliError> = with_daemon(global, None, |client, _| {
        Ok(client.post(&path_of(id, word::STOP), &at_once, CREATE_LIMIT)?)
    });
    if let Err(error) = stopped {
        tracing::debug!(%error, "the sandbox");
    }
}

/// Removes the sandbox, which may be removed already, because it has ended.
fn clear(global: &Global, id: &str) {
    if let Err(error) = remove(global, id, IfRunning::Kill) {
        tracing::debug!(%error, "the sandbox");
    }
}

/// Joins the program again as long as a daemon is followed by another, which it does not notice. Returns
/// its exit code. Whatever fails, the program goes on.
fn go_on(
    global: &Global,
    made: &SandboxShown,
    stdin: Stdin,
    ends: &mut Ends,
    mut left: Left,
) -> Result<i32, CliError> {
    let (name, path) = (&made.name, path_of(made.id.as_str(), word::ATTACH));
    for _ in 0..JOINS_MAX {
        let why = match left {
            Left::Ended(code) => return Ok(code),
            Left::Broken(why) => why,
        };
        tracing::debug!(why, "the connection to the daemon broke");
        if !ends.can_go_on() {
            return Err(CliError::Cut(format!(
                "the connection to the daemon broke ({why}), and of what {name} reads a part may be \
                 lost; it goes on without this command: 'inlay logs --follow {name}'"
            )));
        }
        let wanted =
            AttachTo { stdin, size: stream::size(ends.terminal()), shown: Some(ends.shown()) };
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

/// How it ended while there was no daemon to tell, if it did.
fn ended_unseen(global: &Global, made: &SandboxShown, error: &CliError) -> Result<i32, CliError> {
    let (name, path) = (&made.name, path_of(made.id.as_str(), ""));
    let shown = with_daemon(global, None, |client, _| Ok(client.get::<SandboxShown>(&path)?));
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
