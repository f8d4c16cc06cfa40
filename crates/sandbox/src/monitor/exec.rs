//! Runs a process beside the first one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::rc::Rc;

use inlay_base::durable::Volatile;
use inlay_mounts::ProcessId;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::error::SandboxError;
use super::super::files;
use super::super::options::Stdin;
use super::super::protocol::{Failure, FrameKind, Output, Reply, Started, StdinFlow};
use super::super::signals::SIGHUP;
use super::attach::{Ended, Input, converse, pump};
use super::channel::Channel;
use super::conn::Conn;
use super::console::Console;
use super::reaper::exit_code;
use super::shared::{Counted, Shared, Stage, failure, run_failure, send};

/// The maximum number of concurrent exec processes.
const EXECS_MAX: usize = 64;
/// The number of output frames buffered for a client before the process blocks.
const WAITING_MAX: usize = 4;

/// A running process.
struct Running {
    process: ProcessId,
    /// `None`: it has already exited.
    handle: Option<OwnedFd>,
    ended: oneshot::Receiver<ExitStatus>,
    input: Input,
    output: Vec<(FrameKind, Rc<Channel>)>,
}

/// Serves an exec request.
pub(super) async fn serve(
    shared: &Rc<Shared>,
    conn: &mut Conn,
    process: &Value,
    (stdin, flow): (Stdin, StdinFlow),
    output: Output,
) {
    let Some(_counted) = Counted::of(&shared.execs, EXECS_MAX) else {
        let message =
            format!("{EXECS_MAX} processes run in the sandbox by exec already; wait for one");
        conn.reply(&Reply::Failed(Failure::Other { message })).await.ok();
        return;
    };
    let running = match run(shared, process, stdin, output).await {
        Ok(running) => running,
        Err(failure) => {
            conn.reply(&Reply::Failed(failure)).await.ok();
            return;
        }
    };
    let Running { process, handle, ended, input, output } = running;
    let told = conn.reply(&Reply::Started(Started::of(process, flow))).await;
    let (ends, has_ended) = watch::channel(false);
    let (exit, mut has_exit) = watch::channel(None);
    let wait = tokio::task::spawn_local(async move {
        let code = ended.await.map_or(-1, exit_code);
        ends.send_replace(true);
        exit.send_replace(Some(code));
    });
    let discards = output.is_empty();
    let (to, mut frames) = mpsc::channel(WAITING_MAX);
    let pumps: Vec<_> = output
        .into_iter()
        .map(|(kind, from)| {
            tokio::task::spawn_local(pump(from, kind, to.clone(), has_ended.clone()))
        })
        .collect();
    drop(to);
    if told.is_ok() && !discards {
        let code = async {
            let code = has_exit.wait_for(Option::is_some).await;
            code.ok().and_then(|code| *code).unwrap_or(-1)
        };
        let signal = async |number| {
            if let Some(handle) = &handle {
                send(handle, number).ok();
            }
        };
        let ended =
            converse(conn, async || frames.recv().await, code, (&input, flow), signal).await;
        if let (Ended::Client, Some(handle)) = (ended, &handle) {
            send(handle, SIGHUP).ok();
        }
    }
    // Closes its stdin or its terminal.
    drop(input);
    for pump in pumps {
        pump.abort();
    }
    wait.await.ok();
}

async fn run(
    shared: &Shared,
    process: &Value,
    stdin: Stdin,
    output: Output,
) -> Result<Running, Failure> {
    shared.thawed().await;
    if shared.has_ended() || shared.stage.get() != Stage::Started {
        return Err(Failure::NotRunning);
    }
    let number = shared.file_number();
    let files = Files::write(shared, number, process).map_err(|e| failure(&e))?;
    let terminal = process.get("terminal").and_then(Value::as_bool) == Some(true);
    let root = shared.layout.root();
    let io = |error: io::Error| {
        failure(&SandboxError::io("make the streams of a process in", root)(error))
    };
    let console = if terminal { Some(Console::listen(root, number).map_err(io)?) } else { None };
    let path = console.as_ref().map(Console::path);
    let runtime = &shared.calls.runtime;
    let mut call =
        runtime.exec(&files.process, &files.pid, path.as_deref()).map_err(|e| failure(&e))?;
    let (mut input, mut streams) = (Input::None, Vec::new());
    if terminal || output == Output::Discard {
        call.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    } else {
        if stdin == Stdin::Open {
            let (from, to) = io::pipe().map_err(io)?;
            call.command.stdin(from);
            input = Input::pipe(Channel::new(to.into()).map_err(io)?);
        }
        let (from, to) = io::pipe().map_err(io)?;
        call.command.stdout(to);
        streams.push((FrameKind::Stdout, Rc::new(Channel::new(from.into()).map_err(io)?)));
        let (from, to) = io::pipe().map_err(io)?;
        call.command.stderr(to);
        streams.push((FrameKind::Stderr, Rc::new(Channel::new(from.into()).map_err(io)?)));
    }
    // The process may exit before its pid is known: keep the statuses of unknown children until
    // then.
    let _calling = shared.calls.reaper.calling();
    let made = shared.calls.make(call).await;
    if shared.has_ended() {
        return Err(Failure::NotRunning);
    }
    let program = process.pointer("/args/0").and_then(Value::as_str).unwrap_or_default();
    made.map_err(|e| run_failure(&e, program))?;
    let pid = files.pid().map_err(|e| failure(&e))?;
    let (ended, handle) = shared.calls.reaper.of(pid);
    let process = process_of(pid);
    if let Some(console) = console {
        let master = Rc::new(console.master().and_then(Channel::new).map_err(io)?);
        if output == Output::Stream {
            streams.push((FrameKind::Stdout, Rc::clone(&master)));
        }
        input = Input::Terminal(master);
    }
    Ok(Running { process, handle, ended, input, output: streams })
}

/// Returns the identity of `pid`; if the process has exited, only its pid is known.
pub(super) fn process_of(pid: i32) -> ProcessId {
    let pid = u32::try_from(pid).unwrap_or_default();
    ProcessId::of(pid).ok().flatten().unwrap_or(ProcessId { pid, started: 0 })
}

/// The files that pass the process to the runtime and its pid back. Removed on drop.
struct Files {
    process: PathBuf,
    pid: PathBuf,
}

impl Files {
    fn write(shared: &Shared, number: u64, process: &Value) -> Result<Self, SandboxError> {
        let path = |what| shared.layout.root().join(format!("exec-{number}.{what}"));
        let files = Self { process: path("json"), pid: path("pid") };
        let json = serde_json::to_vec(process).unwrap_or_default();
        files::remove(&files.pid)?;
        files::write_volatile(&files.process, &json, Volatile("read once, by the runtime"))?;
        Ok(files)
    }

    fn pid(&self) -> Result<i32, SandboxError> {
        read_pid(&self.pid)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        files::remove(&self.process).ok();
        files::remove(&self.pid).ok();
    }
}

/// Reads the pid that the runtime has written.
pub(super) fn read_pid(path: &std::path::Path) -> Result<i32, SandboxError> {
    let bytes = files::read(path, 64)?.unwrap_or_default();
    let number = String::from_utf8_lossy(&bytes).trim().parse().ok().filter(|pid| *pid > 0);
    number.ok_or_else(|| {
        SandboxError::damaged(path.to_owned(), "the runtime has written no process's number")
    })
}
