//! Executes a call of `mount.inlay`: starts the daemon, via its systemd unit if possible, and mounts.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use inlay_base::programs;
use inlay_mounts::MountError;

use super::client::with_daemon;
use super::error::CliError;
use super::mount::{self, MountArgs};
use super::mount_helper::{Act, Call, CallError, Tell, Writable};
use super::{Cli, Command, Global};
use crate::config::STATE_DEFAULT;
use crate::daemon::{Client, MOUNTS, MountInfo, MountOrigin};

/// `EnvironmentFile=`s of the unit, in order: later assignments win.
const ENVIRONMENTS: [&str; 2] = ["/etc/default/inlay", "/etc/inlay/environment"];
const ENVIRONMENT_LEN_MAX: u64 = 64 << 10;
const UNIT: &str = "inlay.service";
/// Where systemd looks for units: the first directory that has the unit decides.
const UNIT_DIRS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Timeout for starting the unit. Together with the mount it is below systemd's 90 s for a mount.
const UNIT_WITHIN: Duration = Duration::from_secs(25);
const MOUNT_LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Mounts as mount(8) requests. `words` are the arguments after the program name. Returns an error
/// message and its exit code on failure.
pub fn mount_as_helper(words: impl IntoIterator<Item = OsString>) -> Result<(), (String, u8)> {
    const WRONG: u8 = 1;
    const FAILED: u8 = 32;
    let call = Call::parse(words).map_err(|error| {
        let code = if matches!(error, CallError::Remount(_)) { FAILED } else { WRONG };
        (error.to_string(), code)
    })?;
    if call.act == Act::Check {
        return Ok(());
    }
    mount(&call).map_err(|error| (error.to_string(), FAILED))
}

fn mount(call: &Call) -> Result<(), CliError> {
    let (global, args) = words_of(call)?;
    begin_unit(&global)?;
    let missing = |why| MountError::Mountpoint { path: call.dir.clone(), why };
    let dir = std::path::absolute(&call.dir)?;
    with_daemon(&global, None, |client, _| {
        // Only after the daemon has started: it removes dead mounts, which cannot be entered.
        match call.pid {
            None => env::set_current_dir(&dir).map_err(missing)?,
            Some(pid) => check_inside(pid, &dir).map_err(missing)?,
        }
        let mut request = mount::request(&global, &args)?;
        request.mountpoint = (&*dir).into();
        request.pid = call.pid;
        request.flags.clone_from(&call.options.flags);
        request.origin = MountOrigin::MountTable;
        request.deadline_ms = u64::try_from(MOUNT_LIMIT.as_millis()).unwrap_or(u64::MAX);
        let mounted: MountInfo = client.post(MOUNTS, &request, MOUNT_LIMIT)?;
        match call.tell {
            Tell::Mount => Ok(mount::report(&global, &mounted)?),
            Tell::Nothing => Ok(()),
        }
    })
}

/// Checks that the directory exists in the mount namespace of `pid`: fstab mounts do not create it.
fn check_inside(pid: u32, dir: &Path) -> io::Result<()> {
    let root = File::open(format!("/proc/{pid}/root"))?;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    Ok(inlay_base::in_root::open(&root, dir, flags).map(drop)?)
}

/// Converts the call to the arguments of `inlay mount`. Unset options come from the environment, then
/// from the unit's environment files.
fn words_of(call: &Call) -> Result<(Global, MountArgs), CliError> {
    let words = ["inlay", "mount", "--", &call.snapshot].map(OsString::from);
    let words = words.into_iter().chain([call.dir.clone().into_os_string()]);
    let parsed = Cli::try_parse_from(words).map_err(|error| {
        CliError::Usage(error.to_string().lines().next().unwrap_or_default().to_owned())
    })?;
    let Cli { mut global, command: Command::Mount(mut args) } = parsed else {
        return Err(CliError::Usage("the words are not those of a mount".into()));
    };
    let file = unit_environment();
    let own_state = env::var_os("INLAY_STATE");
    if let (None, Some(state)) = (own_state, value_of(&file, "INLAY_STATE")) {
        global.state = state.into();
    }
    global.state = std::path::absolute(&global.state)?;
    let of_host = global.store.take().or_else(|| value_of(&file, "INLAY_STORE"));
    global.store = call.options.store.clone().or(of_host);
    global.plain_http = call.options.plain_http;
    match &call.options.writable {
        Writable::No => {}
        Writable::Beside => args.rw = true,
        Writable::Scratch => (args.rw, args.scratch) = (true, true),
        Writable::Upper(path) => (args.rw, args.upper) = (true, Some(path.clone())),
    }
    args.chown = call.options.chown;
    args.label.clone_from(&call.options.label);
    Ok((global, args))
}

/// Returns the value of `name` in an environment file, in systemd's syntax; the last assignment wins.
/// An empty value counts as unset.
fn value_of(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().rev().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let value = lines
        .filter_map(|line| line.split_once('='))
        .find_map(|(key, value)| (key.trim() == name).then(|| value.trim()))?;
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)));
    let value = quoted.unwrap_or(value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// Returns the lines of the unit's environment files; unreadable files count as empty.
fn unit_environment() -> String {
    let mut all = String::new();
    for path in ENVIRONMENTS {
        let read = File::open(path).and_then(|file| {
            let mut text = String::new();
            file.take(ENVIRONMENT_LEN_MAX).read_to_string(&mut text).map(|_| text)
        });
        all.push_str(&read.unwrap_or_default());
        all.push('\n');
    }
    all
}

/// Starts the daemon's systemd unit, if the unit exists and has the same state directory. A daemon
/// started by this process would belong to the cgroup of the mount unit.
fn begin_unit(global: &Global) -> Result<(), CliError> {
    let of_unit = value_of(&unit_environment(), "INLAY_STATE");
    let of_unit = of_unit.unwrap_or_else(|| STATE_DEFAULT.to_owned());
    let is_run_by_systemd = Path::new("/run/systemd/system").is_dir();
    if !is_run_by_systemd || global.state != Path::new(&of_unit) {
        return Ok(());
    }
    if Client::new(&global.paths()?)?.status()?.is_some() {
        return Ok(());
    }
    let Some(systemctl) = programs::find("systemctl") else { return Ok(()) };
    if !is_installed(UNIT_DIRS.iter().map(Path::new)) {
        return Ok(());
    }
    let failed = |why: String| {
        let look = format!("`systemctl status {UNIT}` tells more");
        CliError::Cut(format!("can't start {UNIT}: {why}; {look}"))
    };
    let started = Process::new(&systemctl)
        .args(["start", "--quiet", "--no-ask-password", UNIT])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .and_then(|child| wait(child, UNIT_WITHIN));
    match started {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(failed(format!("systemctl ended with {status}"))),
        Ok(None) => Err(failed(format!("it was not ready after {UNIT_WITHIN:?}"))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Whether one of `dirs` has the unit, unmasked. Asking systemd may take seconds while a host boots, and
/// a daemon outside the unit would end together with the first mount's unit.
fn is_installed<'a>(dirs: impl Iterator<Item = &'a Path>) -> bool {
    let mut units = dirs.map(|dir| dir.join(UNIT));
    let first = units.find(|unit| fs::symlink_metadata(unit).is_ok());
    // A link to /dev/null or an empty file masks it.
    first
        .and_then(|unit| fs::metadata(unit).ok())
        .is_some_and(|unit| unit.is_file() && unit.len() > 0)
}

/// Waits for the child; after `limit`, kills it and returns `None`.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        thread::sleep(PAUSE);
    }
    child.kill()?;
    child.wait().map(|_| None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_files_of_variables_are_those_of_the_unit() {
        let unit = include_str!("../../dist/systemd/inlay.service");
        let files = unit.lines().filter_map(|line| line.strip_prefix("EnvironmentFile=-"));
        assert_eq!(files.collect::<Vec<_>>(), ENVIRONMENTS);
    }

    #[test]
    fn the_first_directory_with_the_unit_decides() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["a", "b", "c"].map(|name| dir.path().join(name));
        let is_installed = || is_installed(dirs.iter().map(PathBuf::as_path));
        assert!(!is_installed());
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        fs::write(dirs[2].join(UNIT), "[Service]\n").unwrap();
        assert!(is_installed());
        symlink("/dev/null", dirs[1].join(UNIT)).unwrap();
        assert!(!is_installed());
        symlink(dirs[2].join(UNIT), dirs[0].join(UNIT)).unwrap();
        assert!(is_installed());
        fs::remove_file(dirs[2].join(UNIT)).unwrap();
        assert!(!is_installed());
        fs::remove_file(dirs[0].join(UNIT)).unwrap();
        fs::write(dirs[0].join(UNIT), "").unwrap();
        assert!(!is_installed());
    }

    #[test]
    fn the_units_variables_are_read_as_systemd_reads_them() {
        let text = "# INLAY_STATE=/no\nINLAY_STATE=/a\n INLAY_STATE = \"/b c\"\nINLAY_STORE='s3://x/y'\n\
            ;INLAY_STORE=no\nAWS_REGION=\nno line";
        assert_eq!(value_of(text, "INLAY_STATE").as_deref(), Some("/b c"));
        assert_eq!(value_of(text, "INLAY_STORE").as_deref(), Some("s3://x/y"));
        assert_eq!(value_of(text, "AWS_REGION"), None);
        assert_eq!(value_of(text, "no line"), None);
    }
}
