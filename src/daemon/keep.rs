//! Finds the keeper of a state directory, or starts one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_fusefs::keeper::{Keeper, KeeperError, KeeperOptions};

use super::error::DaemonError;
use super::launch::{open_log, own_program};
use super::paths::Paths;

/// How long a keeper may take until it answers: it makes a few mounts.
const START_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The options that a keeper is run with.
pub fn keeper_options(
    paths: &Paths,
    wait_for_daemon: Duration,
    respawn: Vec<OsString>,
) -> KeeperOptions {
    KeeperOptions {
        dir: paths.fuse(),
        socket: paths.keeper_socket(),
        deadline: wait_for_daemon,
        respawn: Some(respawn).filter(|words| !words.is_empty()),
        ..KeeperOptions::below(paths.state())
    }
}

/// Connects to the keeper of `paths`. If there is none, this program is started with `words`, which
/// make it one.
pub(super) fn find_or_start(paths: &Paths, words: &[OsString]) -> Result<Keeper, DaemonError> {
    let socket = paths.keeper_socket();
    if let Ok(keeper) = Keeper::connect(&socket) {
        return Ok(keeper);
    }
    let log = paths.log();
    let output = open_log(paths)?;
    let before = output.metadata().map_or(0, |meta| meta.len());
    let program = own_program()?;
    let mut command = Command::new(&program);
    command.args(words).current_dir("/").stdin(Stdio::null());
    let stdout = output.try_clone().map_err(DaemonError::io("open", &log))?;
    command.stdout(stdout).stderr(output);
    // The keeper serves other daemons than this one: it is not to be told through what is theirs.
    command.env_remove("NOTIFY_SOCKET");
    let mut child = command.spawn().map_err(DaemonError::io("start", &program))?;
    let start = Instant::now();
    loop {
        match Keeper::connect(&socket) {
            Ok(keeper) => return Ok(keeper),
            Err(KeeperError::Absent { .. }) if start.elapsed() < START_WITHIN => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(error) = failure(&mut child, paths, before)? {
            // Somebody else may have been faster.
            return Keeper::connect(&socket).map_err(|_| error);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Why the keeper has ended, if it has: the last that it wrote to the log.
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
    Ok(Some(DaemonError::Start(why)))
}

/// This program, to be started again with `words`.
pub fn again(words: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, DaemonError> {
    let program: PathBuf = own_program()?;
    Ok(std::iter::once(program.into_os_string()).chain(words).collect())
}
