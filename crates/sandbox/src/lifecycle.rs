//! The sandbox lifecycle around its monitor: prepare, stop, remove, recover.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::durable;
use inlay_base::inject::{self, Step};
use inlay_base::record::{RecordError, set_aside};
use inlay_base::trash;

use super::calls;
use super::cgroup::{Cgroups, Usage};
use super::client::{self, Monitor};
use super::disk;
use super::error::SandboxError;
use super::exit::{Exit, ExitCause};
use super::files::{self, Config};
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
use super::watched::{MonitorRecord, boot_id};

/// Deadline for the first process to exit after SIGKILL, and for its monitor to exit after it.
const END_WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// How to stop a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopOptions {
    /// The first signal; default: the image's stop signal, or SIGTERM.
    pub signal: Option<i32>,
    /// The time between the first signal and SIGKILL.
    pub grace: Duration,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self { signal: None, grace: Duration::from_secs(10) }
    }
}

/// The state in which a starting daemon finds a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its creation was interrupted: [`remove`] it.
    HalfMade,
    /// One of its records is damaged, for this reason. Nothing of it was touched.
    Damaged(String),
    /// It is running, or created and waiting for its start.
    Running(MonitorStatus),
    /// It has ended; its upper directory is kept.
    Stopped(Exit),
    /// Its removal was interrupted: [`remove`] it.
    Removing,
}

/// Lists the sandboxes of the state directory `state`, complete or not, in no particular order.
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

/// Validates the options and creates everything a sandbox needs before its root is mounted:
/// directories, the limited disk, and the tmpfs with `secrets`, whose names must equal those in
/// `options`, in the same order.
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
    for dir in [layout.rootfs(), layout.rw(), layout.mounts(), layout.bundle(), layout.dev_files()]
    {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(SandboxError::io("make the directory", &dir)(error));
            }
            _ => {}
        }
    }
    // One fsync of the parent covers all of them.
    durable::sync_dir(layout.root()).map_err(SandboxError::io("sync", layout.root()))?;
    if let Some(bytes) = options.limits.disk {
        disk::attach(layout, bytes)?;
    }
    inject::point(Step::SandboxDiskAttached).map_err(SandboxError::io("prepare", layout.root()))?;
    if !secrets.is_empty() {
        secrets::mount_secrets(layout, secrets)?;
    }
    Ok(())
}

/// Mounts the limited disk of a stopped sandbox, which must happen before its root can be mounted,
/// e.g. after a host reboot. No-op if the disk is already mounted or not limited.
pub fn attach_disk(layout: &Layout, options: &SandboxOptions) -> Result<(), SandboxError> {
    match options.limits.disk {
        Some(bytes) => disk::attach(layout, bytes),
        None => Ok(()),
    }
}

/// Ends all processes of the sandbox: the first process gets the stop signal and, after the grace
/// period, SIGKILL; its exit ends all others. Returns how it ended, even if it had ended before.
/// The upper directory is kept until [`remove`].
pub fn stop(layout: &Layout, options: StopOptions) -> Result<Exit, SandboxError> {
    let monitor = Monitor::of(layout);
    let signal = options.signal.unwrap_or_else(|| stop_signal(layout));
    match end(&monitor, signal, options.grace) {
        Ok(exit) => {
            wait_for_monitor(layout)?;
            Ok(exit)
        }
        // The monitor has exited or does not respond properly.
        Err(error) => match Exit::read(layout)? {
            Some(exit) => Ok(exit),
            None if monitor.is_alive()? => Err(error),
            None => end_lost(layout),
        },
    }
}

fn end(monitor: &Monitor, signal: i32, grace: Duration) -> Result<Exit, SandboxError> {
    // A container that waits for its start reacts only to SIGKILL.
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

/// Sends a signal to the first process. Ignores that it has already exited: its monitor is then
/// recording the exit.
fn send(monitor: &Monitor, signal: i32) -> Result<(), SandboxError> {
    match monitor.signal(signal) {
        Ok(()) | Err(SandboxError::NotRunning(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns the host pids of a sandbox's processes.
pub fn processes(layout: &Layout) -> Result<Vec<u32>, SandboxError> {
    let found = Cgroups::of(layout)?.processes()?;
    Ok(found.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect())
}

/// Returns the current resource usage of a sandbox.
pub fn usage(layout: &Layout) -> Result<Usage, SandboxError> {
    Ok(Cgroups::of(layout)?.usage())
}

/// Removes a sandbox in any state, however incomplete: processes, container, cgroups, secrets,
/// disk, directory. Lazily unmounts everything below its directory. Idempotent.
pub fn remove(layout: &Layout) -> Result<(), SandboxError> {
    if !layout.root().exists() {
        return Cgroups::of(layout).and_then(|cgroups| clear_cgroups(&cgroups));
    }
    end_monitor(layout)?;
    clear_container(layout)?;
    mounts::detach_all(layout.root())?;
    trash::discard(layout.state(), layout.root()).map_err(SandboxError::io("remove", layout.root()))
}

/// Determines the state of a sandbox. If its monitor is gone, the sandbox is cleaned up and counts
/// as stopped, but only if all of its records are intact: otherwise nothing is touched.
pub fn recover(layout: &Layout) -> Result<Found, SandboxError> {
    let record = match SandboxRecord::read(layout) {
        Ok(Some(record)) => record,
        Ok(None) => return without_record(layout),
        Err(SandboxError::Record(error)) => return Ok(Found::Damaged(error.to_string())),
        Err(error) => return Err(error),
    };
    match record.phase {
        // Its creation was never reported, or its removal was requested: no other record matters.
        Phase::Creating => return Ok(Found::HalfMade),
        Phase::Removing => return Ok(Found::Removing),
        Phase::Stopped { .. } | Phase::Running => {}
    }
    if let Some(error) = damaged_record(layout)? {
        return Ok(Found::Damaged(error.to_string()));
    }
    if let Phase::Stopped { exit } = record.phase {
        return Ok(Found::Stopped(exit));
    }
    let monitor = Monitor::of(layout);
    if monitor.is_alive()? {
        match monitor.status() {
            Ok(status) => match status.exit {
                None => return Ok(Found::Running(status)),
                Some(exit) => return Ok(Found::Stopped(exit)),
            },
            // It is just exiting.
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

/// Returns the first damaged record other than the sandbox's own.
fn damaged_record(layout: &Layout) -> Result<Option<RecordError>, SandboxError> {
    for found in [
        files::damage(Exit::read(layout))?,
        files::damage(MonitorRecord::read(layout))?,
        files::damage(Config::read(layout))?,
    ] {
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Classifies a directory without a record. The record is the first file created in it, and a
/// removal leaves its marker until nothing else is left, so any other content means that the record
/// was lost.
fn without_record(layout: &Layout) -> Result<Found, SandboxError> {
    // Earlier versions removed a sandbox in place and moved its directories there.
    if fs::symlink_metadata(layout.root().join(".sweeping")).is_ok_and(|meta| meta.is_dir()) {
        return Ok(Found::Removing);
    }
    let failed = || SandboxError::io("list", layout.root());
    for entry in fs::read_dir(layout.root()).map_err(failed())? {
        // Names of incomplete temporary files start with a dot.
        if !entry.map_err(failed())?.file_name().as_encoded_bytes().starts_with(b".") {
            let missing = SandboxError::damaged(layout.record(), "it is missing");
            return Ok(Found::Damaged(missing.to_string()));
        }
    }
    Ok(Found::HalfMade)
}

/// Reports whether the sandbox's root is mounted, according to the kernel's mount table.
pub fn has_root_mount(layout: &Layout) -> Result<bool, SandboxError> {
    mounts::is_mounted(&layout.rootfs())
}

/// Replaces a damaged record with `instead`, so that the next daemon continues the removal. The
/// damaged file is kept beside it until then.
pub fn give_up(layout: &Layout, instead: &SandboxRecord) -> Result<(), SandboxError> {
    let path = layout.record();
    match set_aside(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(SandboxError::io("rename", &path)(error));
        }
        _ => {}
    }
    instead.write(layout)
}

/// Cleans up after a monitor that was killed, and records that end.
fn end_lost(layout: &Layout) -> Result<Exit, SandboxError> {
    let lives = MonitorRecord::read(layout)?.is_some_and(|record| record.boot == boot_id());
    let cause = if lives { ExitCause::MonitorLost } else { ExitCause::HostRestarted };
    clear_container(layout)?;
    secrets::unmount_secrets(layout)?;
    let exit = Exit::lost(cause);
    exit.write(layout)?;
    Ok(exit)
}

/// Ends a sandbox through its monitor, if that is alive, so that attached clients receive the
/// remaining output. Kills the monitor only if it does not respond.
fn end_monitor(layout: &Layout) -> Result<(), SandboxError> {
    let monitor = Monitor::of(layout);
    if !monitor.is_alive()? {
        return Ok(());
    }
    // An unreadable exit record proves nothing: then wait for the monitor, or kill it.
    let recorded = || matches!(Exit::read(layout), Ok(Some(_)));
    let ended = end(&monitor, SIGKILL, Duration::ZERO).is_ok() || recorded();
    if ended && wait_for_monitor(layout).is_ok() {
        return Ok(());
    }
    if let Ok(Some(record)) = MonitorRecord::read(layout)
        && record.boot == boot_id()
    {
        record.kill_monitor()?;
    }
    wait_for_monitor(layout)
}

/// Blocks until the monitor, which has finished its work, has exited.
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

/// Removes the container without its monitor: processes, the runtime's state, cgroups.
pub(super) fn clear_container(layout: &Layout) -> Result<(), SandboxError> {
    let cgroups = Cgroups::of(layout)?;
    // First kill runtime invocations, which may still be creating it.
    calls::kill_all(layout)?;
    cgroups.kill()?;
    if let Ok(Some(runtime)) = Runtime::of(layout)
        && layout.runtime_root().exists()
    {
        let deleted = runtime.delete().and_then(|call| runtime.run(call, CALL_WITHIN));
        // The runtime may know only half of the container; its state then goes with the directory.
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

/// Returns the sandbox's stop signal; SIGTERM if the bundle is unreadable, since SIGKILL follows.
fn stop_signal(layout: &Layout) -> i32 {
    let config = Config::read(layout).ok().flatten();
    let annotation = config.as_ref().and_then(|config| config.get("annotations")?.get(STOP_SIGNAL));
    annotation.and_then(|number| number.as_str()?.parse().ok()).unwrap_or(SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a sandbox's directory with a record in `phase`.
    fn with_record(phase: Phase) -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let id = SandboxId::random().unwrap();
        let layout = Layout::of(dir.path(), &id);
        let snapshot = inlay_snapshots::empty_id();
        let options = SandboxOptions::default();
        let mut record =
            SandboxRecord::new(id, "a".into(), snapshot, serde_json::Value::Null, options);
        record.phase = phase;
        record.write(&layout).unwrap();
        (dir, layout)
    }

    fn stopped() -> (Exit, Phase) {
        let exit = Exit::now(3, ExitCause::Ended, false);
        (exit.clone(), Phase::Stopped { exit })
    }

    fn why(layout: &Layout) -> String {
        match recover(layout).unwrap() {
            Found::Damaged(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn recovery_follows_the_recorded_phase() {
        for (phase, wanted) in
            [(Phase::Creating, Found::HalfMade), (Phase::Removing, Found::Removing)]
        {
            let (_dir, layout) = with_record(phase);
            // In these phases no other record matters.
            fs::write(layout.exit(), "{").unwrap();
            assert_eq!(recover(&layout).unwrap(), wanted);
        }
        let (exit, phase) = stopped();
        let (_dir, layout) = with_record(phase);
        assert_eq!(recover(&layout).unwrap(), Found::Stopped(exit));
    }

    #[test]
    fn a_damaged_record_is_told_of_and_nothing_is_touched() {
        let (_, phase) = stopped();
        let (_dir, layout) = with_record(phase);
        fs::create_dir(layout.bundle()).unwrap();
        for path in [layout.record(), layout.exit(), layout.monitor_record(), layout.config()] {
            let before = fs::read(&path).ok();
            for damage in ["", "{", "\0\0", "[]", r#"{"version":2,"name":"a"}"#] {
                fs::write(&path, damage).unwrap();
                let why = why(&layout);
                assert!(why.contains(path.to_str().unwrap()), "{damage:?}: {why}");
                assert_eq!(fs::read_to_string(&path).unwrap(), damage);
            }
            fs::remove_file(&path).unwrap();
            if let Some(before) = before {
                fs::write(&path, before).unwrap();
            }
        }
        assert!(matches!(recover(&layout).unwrap(), Found::Stopped(_)));
    }

    #[test]
    fn a_record_of_another_sandbox_is_damage() {
        let (_, phase) = stopped();
        let (_dir, layout) = with_record(phase.clone());
        let (_other_dir, other) = with_record(phase);
        fs::copy(other.record(), layout.record()).unwrap();
        assert!(why(&layout).contains(other.id().as_str()));
    }

    #[test]
    fn a_directory_without_a_record_is_half_made_half_removed_or_damaged() {
        let (_dir, layout) = with_record(Phase::Creating);
        fs::remove_file(layout.record()).unwrap();
        assert_eq!(recover(&layout).unwrap(), Found::HalfMade);
        // An incomplete temporary file.
        fs::write(layout.root().join(".new-x"), "{").unwrap();
        assert_eq!(recover(&layout).unwrap(), Found::HalfMade);
        fs::create_dir(layout.rw()).unwrap();
        assert!(why(&layout).contains("missing"));
        fs::create_dir(layout.root().join(".sweeping")).unwrap();
        assert_eq!(recover(&layout).unwrap(), Found::Removing);
    }

    #[test]
    fn given_up_sandboxes_are_removed_by_the_next_daemon_despite_damaged_records() {
        for damage in [Some("{"), None] {
            let (_, phase) = stopped();
            let (_dir, layout) = with_record(phase);
            let instead = SandboxRecord {
                phase: Phase::Removing,
                ..SandboxRecord::read(&layout).unwrap().unwrap()
            };
            fs::remove_file(layout.record()).unwrap();
            match damage {
                Some(text) => fs::write(layout.record(), text).unwrap(),
                None => fs::create_dir(layout.record()).unwrap(),
            }
            give_up(&layout, &instead).unwrap();
            assert_eq!(recover(&layout).unwrap(), Found::Removing);
            assert!(layout.root().join("sandbox.json.damaged-1").exists());
        }
    }

    #[test]
    fn names_are_read_only_from_valid_json_records() {
        let (_dir, layout) = with_record(Phase::Creating);
        let name = || crate::name_in_record(&layout);
        assert_eq!(name().as_deref(), Some("a"));
        for (text, wanted) in [
            (r#"{"version":2,"name":"b"}"#, Some("b")),
            (r#"{"name":1}"#, None),
            ("{}", None),
            ("{", None),
        ] {
            fs::write(layout.record(), text).unwrap();
            assert_eq!(name().as_deref(), wanted);
        }
        fs::remove_file(layout.record()).unwrap();
        assert_eq!(name(), None);
    }
}
