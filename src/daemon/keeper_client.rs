//! Connects to the keeper of a state directory, starting it if necessary, and stores the session's
//! descriptors with the service manager.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_base::programs::SERVICE_VARIABLES;
use inlay_fusefs::keeper::{Begin, Keeper, KeeperError, KeeperOptions, Kept, Stored, stored_names};

use super::error::DaemonError;
use super::notify::{Notification, notify};
use crate::config;
use inlay_api::Paths;
use inlay_api::{ClientError, open_log, own_program};

/// Deadline for a new keeper to answer: it creates a few mounts first.
const START_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Option of a keeper that receives the descriptors of its predecessor on stdin.
const WITH_STORED: &str = "--with-stored";

/// Returns the options of a keeper's process.
pub fn keeper_options(
    paths: &Paths,
    wait_for_daemon: Duration,
    respawn: Vec<OsString>,
    begin: Begin,
) -> KeeperOptions {
    KeeperOptions {
        begin,
        dir: paths.fuse(),
        socket: paths.keeper_socket(),
        deadline: wait_for_daemon,
        respawn: Some(respawn).filter(|words| !words.is_empty()),
        ..KeeperOptions::below(paths.state())
    }
}

/// Connects to the keeper of `paths`. If none runs, starts this program with the arguments `words`
/// as a keeper, which resumes the session in `stored`, if it holds one.
pub(super) fn find_or_start(
    paths: &Paths,
    words: &[OsString],
    stored: &Stored,
) -> Result<Keeper, DaemonError> {
    let socket = paths.keeper_socket();
    if let Ok(keeper) = Keeper::connect(&socket) {
        return Ok(keeper);
    }
    let log = paths.log();
    let output = open_log(paths)?;
    let before = output.metadata().map_or(0, |meta| meta.len());
    let program = own_program()?;
    let mut command = Command::new(&program);
    let (word, options) = words.split_at(words.len().min(1));
    command.args(word);
    if stored.is_empty() {
        command.stdin(Stdio::null());
    } else {
        command.arg(WITH_STORED).stdin(stored.hand_over()?);
    }
    command.args(options).current_dir("/");
    let stdout = output.try_clone().map_err(DaemonError::io("open", &log))?;
    command.stdout(stdout).stderr(output);
    // The keeper serves other daemons too, so it must not inherit this one's channel to the service
    // manager.
    for variable in SERVICE_VARIABLES {
        command.env_remove(variable);
    }
    let mut child = command.spawn().map_err(DaemonError::io("start", &program))?;
    let start = Instant::now();
    loop {
        match Keeper::connect(&socket) {
            Ok(keeper) => return Ok(keeper),
            Err(KeeperError::Absent { .. }) if start.elapsed() < START_WITHIN => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(error) = failure(&mut child, paths, before)? {
            // A concurrent start may have won.
            return Keeper::connect(&socket).map_err(|_| error);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Stores the session's descriptors with the service manager, so that the session survives if both
/// keeper and daemon end. `given` is what the manager held already. Failures are logged: this is
/// best effort.
pub(super) fn store(kept: &mut Kept, given: &Stored) {
    let Some(manager) = config::notify_socket() else { return };
    if given.is_all_of(kept) {
        return kept.note_stored();
    }
    if !given.is_empty() && given.session().as_ref() != Some(kept.session()) {
        tracing::warn!(
            "can't resume the session kept by the service manager; see the keeper's log"
        );
    }
    forget();
    let (wanted, room) = (stored_names().len(), config::descriptor_store_size());
    if room.is_some_and(|room| room < wanted) {
        tracing::warn!(
            ?room,
            wanted,
            "the service manager keeps too few descriptors for the mounts to outlive the keeper: \
             see FileDescriptorStoreMax="
        );
        return;
    }
    let stored = kept
        .store(|name, descriptor| notify(Some(&manager), Notification::Store { name, descriptor }));
    if let Err(error) = stored {
        tracing::warn!(%error, "the service manager does not store the mounts' descriptors");
        forget();
    }
}

/// Removes all of the session's descriptors from the service manager. Best effort.
pub(super) fn forget() {
    let manager = config::notify_socket();
    for name in stored_names() {
        if let Err(error) = notify(manager.as_deref(), Notification::Remove { name: &name }) {
            tracing::warn!(%error, name, "can't ask the service manager to drop a descriptor");
        }
    }
}

/// Returns why the keeper ended, from its last error in the log; `None` if it still runs. `before`
/// is the length of the log when the keeper was started.
fn failure(
    child: &mut Child,
    paths: &Paths,
    before: u64,
) -> Result<Option<DaemonError>, DaemonError> {
    let ended = child.try_wait().map_err(DaemonError::io("wait for", "the keeper".as_ref()))?;
    let Some(status) = ended else { return Ok(None) };
    let log = fs::read(paths.log()).unwrap_or_default();
    let new = log.get(usize::try_from(before).unwrap_or(0)..).unwrap_or_default();
    let last = new.split(|byte| *byte == b'\n').rfind(|line| line.starts_with(b"inlay: "));
    let why = match last.and_then(|line| line.strip_prefix(b"inlay: ")) {
        Some(line) => std::ffi::OsStr::from_bytes(line).to_string_lossy().into_owned(),
        None => format!("the keeper has ended ({status}); see {}", paths.log().display()),
    };
    Ok(Some(ClientError::Start(why).into()))
}

/// Returns the command that runs this program again with the arguments `words`.
pub fn again(words: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, DaemonError> {
    let program: PathBuf = own_program()?;
    Ok(std::iter::once(program.into_os_string()).chain(words).collect())
}
