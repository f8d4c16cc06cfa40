//! The lifecycle of a monitor: create the container, serve clients, record the exit.

use std::cell::Cell;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::ExitStatus;
use std::rc::Rc;

use inlay_base::signals;
use inlay_base::sockets::with_short_path;
use inlay_mounts::ProcessId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{getpid, set_child_subreaper, setsid};
use rustix::stdio::dup2_stdout;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet};

use super::super::cgroup::{Cgroups, Freezer};
use super::super::error::SandboxError;
use super::super::exit::{Exit, ExitCause};
use super::super::files;
use super::super::id::SandboxId;
use super::super::layout::Layout;
use super::super::lifecycle::clear_container;
use super::super::logs::{LogLimits, LogWriter};
use super::super::options::{SandboxOptions, Stdin, Terminal};
use super::super::protocol::FrameKind;
use super::super::record::SandboxRecord;
use super::super::runtime::Runtime;
use super::super::secrets;
use super::super::spawn::Report;
use super::super::watched::{MonitorRecord, boot_id};
use super::attach::{Input, pump};
use super::channel::Channel;
use super::console::Console;
use super::exec::{process_of, read_pid};
use super::first::First;
use super::reaper::{Reaper, exit_code};
use super::server;
use super::shared::{Calls, Shared, Stage, first_program, run_failure};

/// The number of frames of the first process's output buffered before it is distributed.
const WAITING_MAX: usize = 4;

/// Runs the monitor of the sandbox `id` in the state directory `state` until the sandbox has ended.
/// Writes one line to stdout, once the container is created or has failed, and nothing else.
pub fn run(state: &Path, id: &SandboxId) -> Result<(), SandboxError> {
    signals::unblock_all();
    signals::unignore_all();
    if let Err(error) = leave_session() {
        tracing::warn!(%error, "the monitor stays in the session of its parent");
    }
    let layout = Layout::of(state, id);
    let failed = || SandboxError::io::<Errno>("set up the monitor of", layout.root());
    let lock = lock(&layout)?;
    // Adopt the processes that the runtime leaves behind.
    set_child_subreaper(Some(getpid())).map_err(failed())?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SandboxError::io("start the threads of", layout.root()))?;
    LocalSet::new().block_on(&runtime, look_after(&layout, lock))
}

/// Starts a session of its own: closing the parent's terminal, ending its session or a signal to its
/// process group must not affect the sandbox.
fn leave_session() -> Result<(), Errno> {
    match setsid() {
        // setsid(2) also refuses the leader of a session, which needs no other one.
        Err(Errno::PERM) if leads_session() => Ok(()),
        left => left.map(drop),
    }
}

/// Reports whether this process leads its session. `rustix::process::getsid` can't tell: the id of a
/// session whose leader is in another PID namespace is 0, which it assumes never to be returned.
pub(crate) fn leads_session() -> bool {
    let session = stat_field("self", SESSION_FIELD);
    session == Some(std::process::id())
}

/// Holds `lock` as long as anything of the sandbox exists that only this process can end.
async fn look_after(layout: &Layout, lock: File) -> Result<(), SandboxError> {
    let failed = || SandboxError::io("set up the monitor of", layout.root());
    let ends = Reaper::listen().map_err(failed())?;
    let reaper = Reaper::default();
    let reaping = tokio::task::spawn_local(reaper.clone().run(ends));
    let ignoring = tokio::task::spawn_local(ignore_signals().map_err(failed())?);
    let made = match create(layout, reaper).await {
        Ok(made) => made,
        Err(error) => {
            let report = Report::Failed(run_failure(&error, &first_program(layout)));
            let cleared = clear_container(layout);
            // The parent removes the sandbox, which retries the cleanup.
            send_report(&report).map_err(failed())?;
            if let Err(error) = cleared {
                tracing::warn!(%error, "can't clean up a container whose creation failed");
            }
            return Err(error);
        }
    };
    let serving = tokio::task::spawn_local(server::run(Rc::clone(&made.shared), made.listener));
    send_report(&Report::Ready).map_err(failed())?;
    let status = made.ended.await.ok();
    made.output_ends.send_replace(true);
    for task in made.output {
        task.await.ok();
    }
    let outcome = record_end(&made.shared, status).await;
    let closed = files::remove(&layout.monitor_socket());
    drop(lock);
    all_left(&made.shared).await;
    for task in [serving, reaping, ignoring] {
        task.abort();
    }
    outcome.and(closed)
}

/// Ignores the signals that are commonly sent to whole groups of processes: the monitor ends with
/// its sandbox.
fn ignore_signals() -> io::Result<impl Future<Output = ()>> {
    let mut signals = Vec::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        signals.push(signal(kind)?);
    }
    Ok(async move {
        // The registration alone catches them; they need not be read.
        let _signals = signals;
        std::future::pending::<()>().await;
    })
}

/// A created container that waits for its start, and everything that supervises it.
struct Made {
    shared: Rc<Shared>,
    listener: UnixListener,
    ended: oneshot::Receiver<ExitStatus>,
    /// Set to true when the first process has exited.
    output_ends: watch::Sender<bool>,
    /// The tasks that read the first process's output.
    output: Vec<JoinHandle<()>>,
}

async fn create(layout: &Layout, reaper: Reaper) -> Result<Made, SandboxError> {
    let failed = || SandboxError::io("set up the monitor of", layout.root());
    let none = |what: &str| SandboxError::Refused(format!("the sandbox has no {what}"));
    if Exit::read(layout)?.is_some() {
        return Err(SandboxError::NotRunning(layout.id().to_string()));
    }
    let record = SandboxRecord::read(layout)?.ok_or_else(|| none("record"))?;
    let runtime = Runtime::of(layout)?.ok_or_else(|| none("bundle"))?;
    let monitor = ProcessId::this().map_err(failed())?;
    let mut watched = MonitorRecord { boot: boot_id().to_owned(), monitor, init: None };
    watched.write(layout)?;
    let listener = listen(layout).map_err(failed())?;
    let log = LogWriter::open(layout, LogLimits::default())?;
    let calls = Calls { runtime, reaper };
    let streams = create_container(layout, &calls, &record.options).await?;
    watched.init = Some(streams.init);
    watched.write(layout)?;
    let first = First::new(streams.input, log);
    let (output_ends, has_ended) = watch::channel(false);
    let (to, frames) = mpsc::channel(WAITING_MAX);
    let mut output: Vec<_> = streams
        .output
        .into_iter()
        .map(|(kind, from)| {
            tokio::task::spawn_local(pump(from, kind, to.clone(), has_ended.clone()))
        })
        .collect();
    drop(to);
    let distributing = Rc::clone(&first);
    output.push(tokio::task::spawn_local(async move {
        distributing.distribute(frames, has_ended).await;
    }));
    let shared = Rc::new(Shared {
        layout: layout.clone(),
        calls,
        monitor,
        init: streams.init,
        handle: streams.handle,
        freezer: Freezer::of_process(streams.init.pid)?,
        first,
        stage: Cell::new(Stage::Created),
        exit: watch::channel(None).0,
        execs: Cell::new(0),
        connections: Cell::new(0),
        left: Notify::new(),
        freezes: Cell::new(0),
        frozen_before: Cell::new(false),
        killed: Notify::new(),
        next_file: Cell::new(0),
    });
    Ok(Made { shared, listener, ended: streams.ended, output_ends, output })
}

/// The first process before its start.
struct Streams {
    init: ProcessId,
    handle: OwnedFd,
    ended: oneshot::Receiver<ExitStatus>,
    input: Input,
    output: Vec<(FrameKind, Rc<Channel>)>,
}

async fn create_container(
    layout: &Layout,
    calls: &Calls,
    options: &SandboxOptions,
) -> Result<Streams, SandboxError> {
    let failed = || SandboxError::io("make the streams of the first process in", layout.root());
    let console = match options.terminal {
        Terminal::Pty => Some(Console::listen(layout.root(), 0).map_err(failed())?),
        Terminal::None => None,
    };
    let path = console.as_ref().map(Console::path);
    let mut call = calls.runtime.create(path.as_deref())?;
    let (mut input, mut output) = (Input::None, Vec::new());
    if console.is_some() {
        call.command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    } else {
        if options.stdin == Stdin::Open {
            let (from, to) = io::pipe().map_err(failed())?;
            call.command.stdin(from);
            input = Input::pipe(Channel::new(to.into()).map_err(failed())?);
        }
        let (from, to) = io::pipe().map_err(failed())?;
        call.command.stdout(to);
        output.push((FrameKind::Stdout, Rc::new(Channel::new(from.into()).map_err(failed())?)));
        let (from, to) = io::pipe().map_err(failed())?;
        call.command.stderr(to);
        output.push((FrameKind::Stderr, Rc::new(Channel::new(from.into()).map_err(failed())?)));
    }
    let _calling = calls.reaper.calling();
    calls.make(call).await?;
    let pid = read_pid(&layout.pid_file())?;
    let (ended, handle) = calls.reaper.of(pid);
    let init = process_of(pid);
    let handle = handle.filter(|_| is_child(pid)).ok_or_else(|| SandboxError::Runtime {
        runtime: calls.runtime.name(),
        what: "be used",
        message: "its containers' first processes are not left to who has called it".to_owned(),
    })?;
    if let Some(console) = console {
        let master = Rc::new(console.master().and_then(Channel::new).map_err(failed())?);
        output.push((FrameKind::Stdout, Rc::clone(&master)));
        input = Input::Terminal(master);
    }
    Ok(Streams { init, handle, ended, input, output })
}

/// Reports whether `pid` is a child of this process.
fn is_child(pid: i32) -> bool {
    stat_field(&pid.to_string(), PARENT_FIELD) == Some(std::process::id())
}

/// The parent's pid in proc(5)'s `stat`, counted from the field after the program's name.
const PARENT_FIELD: usize = 1;

/// The session id, counted in the same way.
const SESSION_FIELD: usize = 3;

fn stat_field(pid: &str, field: usize) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in parentheses and may contain any character.
    stat.rsplit(") ").next()?.split(' ').nth(field)?.parse().ok()
}

/// Records how the first process ended and cleans up after it.
async fn record_end(shared: &Rc<Shared>, status: Option<ExitStatus>) -> Result<(), SandboxError> {
    let layout = &shared.layout;
    let code = match shared.stage.get() {
        Stage::NotStartable(code) => code,
        _ => status.map_or(-1, exit_code),
    };
    let oom_killed = Cgroups::of(layout).is_ok_and(|cgroups| cgroups.oom_kills() > 0);
    let exit = Exit::now(code, ExitCause::Ended, oom_killed);
    let recorded = exit.write(layout);
    // Delete the container before announcing the exit: clients that wait for it find nothing left.
    let cleared = match shared.calls.runtime.delete() {
        Ok(call) => shared.calls.make(call).await,
        Err(error) => Err(error),
    };
    let left = clear_container(layout);
    let hidden = secrets::unmount_secrets(layout);
    shared.exit.send_replace(Some(exit));
    recorded.and(left).and(hidden).inspect_err(|_| {
        if let Err(error) = cleared {
            tracing::warn!(%error, "the runtime can't delete the container");
        }
    })
}

/// Waits until all clients have received their remaining output and the exit code, or have
/// disconnected. A slow reader, e.g. a pager, gets all of it; nothing else waits for that.
async fn all_left(shared: &Shared) {
    loop {
        let one_left = shared.left.notified();
        if shared.connections.get() == 0 {
            return;
        }
        one_left.await;
    }
}

fn lock(layout: &Layout) -> Result<File, SandboxError> {
    let path = layout.monitor_lock();
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(SandboxError::io("open", &path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| SandboxError::Started(layout.id().to_string()))?;
    Ok(file)
}

fn listen(layout: &Layout) -> io::Result<UnixListener> {
    let path = layout.monitor_socket();
    let new = path.with_extension("new");
    for stale in [&path, &new] {
        match std::fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = with_short_path(&new, |short| std::os::unix::net::UnixListener::bind(short))?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    std::fs::rename(&new, &path)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Reports to the parent process; from then on, stdout is the log.
fn send_report(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    // A parent that has exited in the meantime recovers the sandbox later.
    match out.write_all(&line).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    Ok(dup2_stdout(io::stderr())?)
}
