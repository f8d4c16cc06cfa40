//! A sandbox's life around its monitor: preparing, stopping, removing, finding it again.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::calls;
use super::cgroup::{Cgroups, Usage};
use super::client::{self, Monitor};
use super::disk;
use super::error::SandboxError;
use super::exit::{Exit, ExitCause};
use super::files;
use super::id::SandboxId;
use super::layout::Layout;
use super::mounts;
use super::options::{SandboxOptions, Secret};
use super::protocol::MonitorStatus;
use super::record::{Phase, SandboxRecord};
use super::runtime::{CALL_WITHIN, ContainerState, Runtime};
use super::secrets;
use super::signals::{SIGKILL, SIGTERM};
use super::spawn;
use super::spec::STOP_SIGNAL;
use super::sweep;
use super::watched::{MonitorRecord, boot_id};
use crate::inject::{self, Step};

/// How long a first process may take to end after SIGKILL, and its monitor after it.
const END_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// How a sandbox is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopOptions {
    /// What is sent first; otherwise what the image says, or SIGTERM.
    pub signal: Option<i32>,
    /// How long it may take before everything is killed.
    pub grace: Duration,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self { signal: None, grace: Duration::from_secs(10) }
    }
}

/// What a daemon that starts finds of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It was not finished, or can't be read: [`remove`] it.
    HalfMade,
    /// It runs, or was created and waits to be started.
    Running(MonitorStatus),
    /// It has ended; its changes are there.
    Stopped(Exit),
    /// It was being removed: [`remove`] it.
    Removing,
}

/// The sandboxes of the state directory `state`, whole or not, in no order.
pub fn list(state: &Path) -> Result<Vec<SandboxId>, SandboxError> {
    let dir = Layout::parent(state);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SandboxError::io("list", &dir)(error)),
    };
    let names = entries.map(|entry| Ok(entry?.file_name()));
    let names: io::Result<Vec<_>> = names.collect();
    let names = names.map_err(SandboxError::io("list", &dir))?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Checks the options and makes what a sandbox needs before its root is mounted: directories, the
/// limited disk, and the tmpfs with `secrets`, whose names must be those in `options`.
pub fn prepare(
    layout: &Layout,
    options: &SandboxOptions,
    secrets: &[Secret],
) -> Result<(), SandboxError> {
    options.check()?;
    Runtime::choose(options.runtime.as_deref())?;
    if !secrets.iter().map(|secret| &secret.name).eq(&options.secrets) {
        return Err(SandboxError::option("--secret", "names and secrets do not fit together"));
    }
    for dir in [layout.rootfs(), layout.rw(), layout.mounts(), layout.bundle(), layout.shown()] {
        files::make_private_dirs(&dir)?;
    }
    if let Some(bytes) = options.limits.disk {
        disk::attach(layout, bytes)?;
    }
    inject::point(Step::SandboxDiskAttached).map_err(SandboxError::io("prepare", layout.root()))?;
    if !secrets.is_empty() {
        secrets::mount_secrets(layout, secrets)?;
    }
    Ok(())
}

/// Mounts the limited disk of a stopped sandbox again, as is needed after a restart of the host, before
/// its root can be mounted. Nothing to be done if it is mounted, or not limited.
pub fn attach_disk(layout: &Layout, options: &SandboxOptions) -> Result<(), SandboxError> {
    match options.limits.disk {
        Some(bytes) => disk::attach(layout, bytes),
        None => Ok(()),
    }
}

/// Ends the first process, and with it all others: by the stop signal, then, after the grace
/// period, by SIGKILL. How it ended is the answer also if it had ended before. What was changed
/// stays until [`remove`].
pub fn stop(layout: &Layout, options: StopOptions) -> Result<Exit, SandboxError> {
    let monitor = Monitor::of(layout);
    let signal = options.signal.unwrap_or_else(|| stop_signal(layout));
    match end(&monitor, signal, options.grace) {
        Ok(exit) => {
            wait_for_monitor(layout)?;
            Ok(exit)
        }
        // The monitor has ended, or does not answer as it should.
        Err(error) => match Exit::read(layout)? {
            Some(exit) => Ok(exit),
            None if monitor.is_alive()? => Err(error),
            None => end_lost(layout),
        },
    }
}

fn end(monitor: &Monitor, signal: i32, grace: Duration) -> Result<Exit, SandboxError> {
    // What waits for its start hears nothing but SIGKILL.
    if monitor.status()?.started && !grace.is_zero() {
        send(monitor, signal)?;
        if let Some(exit) = monitor.wait(grace)? {
            return Ok(exit);
        }
    }
    send(monitor, SIGKILL)?;
    match monitor.wait(END_WITHIN)? {
        Some(exit) => Ok(exit),
        None => Err(SandboxError::DoNotEnd(monitor.sandbox())),
    }
}

/// Sends a signal to the first process. If that has ended, its monitor is at work to record it.
fn send(monitor: &Monitor, signal: i32) -> Result<(), SandboxError> {
    match monitor.signal(signal) {
        Ok(()) | Err(SandboxError::NotRunning(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The processes of a sandbox, as this host numbers them.
pub fn processes(layout: &Layout) -> Result<Vec<u32>, SandboxError> {
    let found = Cgroups::of(layout)?.processes()?;
    Ok(found.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect())
}

/// What a sandbox uses now.
pub fn usage(layout: &Layout) -> Result<Usage, SandboxError> {
    Ok(Cgroups::of(layout)?.usage())
}

/// Removes whatever there is of a sandbox, however far it was made: processes, the container,
/// cgroups, secrets, the disk, its directory. Everything else that is mounted below its directory is
/// taken out of the tree. Done twice, it does nothing the second time.
pub fn remove(layout: &Layout) -> Result<(), SandboxError> {
    if !layout.root().exists() {
        return Cgroups::of(layout).and_then(|cgroups| clear_cgroups(&cgroups));
    }
    end_monitor(layout)?;
    clear_container(layout)?;
    mounts::detach_all(layout.root())?;
    sweep::remove_tree(layout.root())
}

/// Finds out what there is of a sandbox. One whose monitor is gone is ended and counts as stopped.
pub fn recover(layout: &Layout) -> Result<Found, SandboxError> {
    let record = match SandboxRecord::read(layout) {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(Found::HalfMade),
        Err(error @ SandboxError::Record { .. }) => {
            tracing::warn!(%error, "a sandbox can't be used any more");
            return Ok(Found::HalfMade);
        }
        Err(error) => return Err(error),
    };
    match record.phase {
        Phase::Creating => return Ok(Found::HalfMade),
        Phase::Removing => return Ok(Found::Removing),
        Phase::Stopped { exit } => return Ok(Found::Stopped(exit)),
        Phase::Running => {}
    }
    let monitor = Monitor::of(layout);
    if monitor.is_alive()? {
        match monitor.status() {
            Ok(status) => match status.exit {
                None => return Ok(Found::Running(status)),
                Some(exit) => return Ok(Found::Stopped(exit)),
            },
            // It ends at this moment.
            Err(_) => wait_for_monitor(layout)?,
        }
    }
    match Exit::read(layout)? {
        Some(exit) => {
            clear_container(layout)?;
            secrets::unmount_secrets(layout)?;
            Ok(Found::Stopped(exit))
        }
        None => end_lost(layout).map(Found::Stopped),
    }
}

/// Ends what a monitor that was killed has left, and records that end.
fn end_lost(layout: &Layout) -> Result<Exit, SandboxError> {
    let lives = MonitorRecord::read(layout)?.is_some_and(|record| record.boot == boot_id());
    let cause = if lives { ExitCause::MonitorLost } else { ExitCause::HostRestarted };
    clear_container(layout)?;
    secrets::unmount_secrets(layout)?;
    let exit = Exit::lost(cause);
    exit.write(layout)?;
    Ok(exit)
}

/// Ends a sandbox whose monitor is still there. Who is attached gets what is left of its output; only a
/// monitor that does not do its part is killed.
fn end_monitor(layout: &Layout) -> Result<(), SandboxError> {
    let monitor = Monitor::of(layout);
    if !monitor.is_alive()? {
        return Ok(());
    }
    let ended = end(&monitor, SIGKILL, Duration::ZERO).is_ok() || Exit::read(layout)?.is_some();
    if ended && wait_for_monitor(layout).is_ok() {
        return Ok(());
    }
    if let Some(record) = MonitorRecord::read(layout)?
        && record.boot == boot_id()
    {
        record.kill_monitor()?;
    }
    wait_for_monitor(layout)
}

/// Waits until the monitor, which has nothing to do any more, has ended.
fn wait_for_monitor(layout: &Layout) -> Result<(), SandboxError> {
    let deadline = Instant::now() + END_WITHIN;
    while client::is_alive(layout)? {
        if Instant::now() > deadline {
            let why = "it does not end".to_owned();
            return Err(Monitor::of(layout).monitor_error(why));
        }
        thread::sleep(PAUSE);
    }
    spawn::reap_monitors();
    Ok(())
}

/// Ends the container without its monitor: processes, the runtime's records, cgroups.
pub(super) fn clear_container(layout: &Layout) -> Result<(), SandboxError> {
    let cgroups = Cgroups::of(layout)?;
    // First who may still be making it.
    calls::kill_all(layout)?;
    cgroups.kill()?;
    if let Ok(Some(runtime)) = Runtime::of(layout)
        && layout.runtime_root().exists()
    {
        let deleted = runtime.delete().and_then(|call| runtime.run(call, CALL_WITHIN));
        // It may have known the container only half; then what it has recorded goes with the directory.
        if let Err(error) = deleted
            && !matches!(runtime.state(), Ok(ContainerState::Absent))
        {
            tracing::warn!(%error, "the runtime can't delete a container");
        }
    }
    clear_cgroups(&cgroups)
}

fn clear_cgroups(cgroups: &Cgroups) -> Result<(), SandboxError> {
    cgroups.kill()?;
    cgroups.remove()
}

fn stop_signal(layout: &Layout) -> i32 {
    let config = files::read_json::<Value>(&layout.config()).ok().flatten();
    let annotation = config.as_ref().and_then(|config| config.get("annotations")?.get(STOP_SIGNAL));
    annotation.and_then(|number| number.as_str()?.parse().ok()).unwrap_or(SIGTERM)
}
