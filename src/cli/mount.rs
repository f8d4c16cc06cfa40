//! `inlay mount`, `umount` and `mounts`: sends requests to the daemon and prints the responses.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use inlay_mounts::{
    Changes, Keep, MountError, MountFlag, Owner, PathText, Recorded, Registry, Umount, UpperPlace,
    View, WantedView,
};
use inlay_store::cache::Budget;
use inlay_store::profile::ProfileLabel;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::Global;
use super::client::{warn_of_differences, with_daemon};
use super::error::CliError;
use super::mount_into;
use super::output::{self, escaped};
use super::sandbox_path::Where;
use crate::daemon::{
    CacheUse, Client, ClientError, ErrorKind, GONE, GoneAnswer, GoneRequest, LoadOptions, MOUNTS,
    MountInfo, MountOrigin, MountRequest, Prefetch, RecordProfile, UmountAnswer, UmountRequest,
};

/// Timeout of a mount, most of it for fetching the index.
const MOUNT_LIMIT: Duration = Duration::from_mins(5);
/// Timeout of an unmount.
const UMOUNT_LIMIT: Duration = Duration::from_mins(1);
/// Timeout of one long poll for the end of a mount.
const WATCH_LIMIT: Duration = Duration::from_secs(30);
/// Pause between polls while the daemon is unreachable.
const PAUSE: Duration = Duration::from_millis(200);

/// A restricting option of mount(8).
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FlagArg {
    /// Ignore setuid and setgid bits and file capabilities
    Nosuid,
    /// Do not allow device nodes to be opened
    Nodev,
    /// Do not allow programs to be executed
    Noexec,
}

impl From<FlagArg> for MountFlag {
    fn from(flag: FlagArg) -> Self {
        match flag {
            FlagArg::Nosuid => Self::Nosuid,
            FlagArg::Nodev => Self::Nodev,
            FlagArg::Noexec => Self::Noexec,
        }
    }
}

/// Mount a snapshot on a directory, or into a running sandbox.
///
/// Returns when the mount is visible; files are fetched when they are read. The daemon serves the mount
/// until it is unmounted; if none is running, one is started in the background.
///
/// In a sandbox, the mount hides existing contents of the path, which is created if missing. It is
/// writable unless --read-only is given; 'empty' is an empty snapshot. On a directory of this host, the
/// mount is read-only unless --rw is given.
///
/// Changes are kept, and reappear when the same snapshot is mounted at the same path; 'inlay umount
/// --discard' deletes them. Changes in a sandbox are kept until the sandbox is removed.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is a word of the command line
#[command(after_help = "\
Examples:
  inlay mount base /mnt/base
  inlay mount --rw base /mnt/work
  inlay mount --rw --upper /srv/changes base /mnt/work
  inlay mount --rw --scratch base /mnt/try
  inlay mount --chown 1000:1000 base /mnt/mine
  inlay mount dir-3f9c… b:/project                 into sandbox b
  inlay mount --read-only deps b:/project/node_modules
  inlay mount empty b:/scratch
  inlay mount --pid 4711 --rw dir-3f9c… /project   into any container, by the PID of a process in it
  inlay mount --foreground --log info base /mnt/base")]
pub(super) struct MountArgs {
    /// Name or id of the snapshot
    pub(super) snapshot: String,
    /// Mount point: an existing directory, or SANDBOX:/PATH
    #[arg(value_name = "DIR|SANDBOX:/PATH")]
    dir: PathBuf,
    /// Mount writable, with changes in an upper directory on this host; default in a sandbox
    #[arg(long)]
    pub(super) rw: bool,
    /// Mount read-only, also in a sandbox
    #[arg(long, conflicts_with = "rw")]
    pub(super) read_only: bool,
    /// Mount in the mount namespace of this process; the directory is created if missing
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Upper directory for changes [default: in the state directory]
    #[arg(long, value_name = "DIR", requires = "rw", conflicts_with = "scratch")]
    pub(super) upper: Option<PathBuf>,
    /// Discard changes on unmount
    #[arg(long, requires = "rw")]
    pub(super) scratch: bool,
    /// Map the owner of the snapshot's root directory to this uid and gid. Files of other users and
    /// groups keep their owners; setuid bits are ignored
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    pub(super) chown: Option<Owner>,
    /// Restrict files of the mount; several options separated by commas
    #[arg(long, short, value_enum, value_delimiter = ',', value_name = "OPTIONS")]
    pub(super) options: Vec<FlagArg>,
    /// Disk budget of the host's cache, if this command starts the daemon: a size, a percentage of the
    /// disk such as 20%, or auto. Stored in the state directory [default: the stored value, or auto]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Budget>,
    /// Cache only the index on this host's disk
    #[arg(long, conflicts_with = "cache_size")]
    pub(super) no_cache: bool,
    /// How much to prefetch
    #[arg(
        long,
        value_enum,
        env = "INLAY_PREFETCH",
        default_value_t,
        value_name = "MODE",
        help_heading = "Prefetching"
    )]
    prefetch: Prefetch,
    /// Label of the profile to use and record, one for each kind of start [default: default]
    #[arg(long, value_name = "LABEL", help_heading = "Prefetching")]
    pub(super) label: Option<ProfileLabel>,
    /// Prefetch this path of the snapshot first, recursively. Can be repeated
    #[arg(long, value_name = "PATH", help_heading = "Prefetching")]
    first: Vec<PathBuf>,
    /// Read paths for --first from a file, one per line
    #[arg(long, value_name = "FILE", help_heading = "Prefetching")]
    first_from: Option<PathBuf>,
    /// Record the order of first reads in the store, as a profile for later starts
    #[arg(
        long,
        value_enum,
        env = "INLAY_RECORD_PROFILE",
        default_value_t,
        value_name = "on|off",
        help_heading = "Prefetching"
    )]
    record_profile: RecordProfile,
    /// Stay in the foreground until unmounted; SIGTERM and SIGINT unmount
    #[arg(long)]
    pub(super) foreground: bool,
}

/// Unmount a snapshot from a directory or a sandbox.
///
/// Returns when the mount is gone. Fails if the mount is in use; with --lazy, the mount is detached at
/// once and ends with its last user.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay umount /mnt/base
  inlay umount --lazy /mnt/base
  inlay umount --discard /mnt/work
  inlay umount b:/project")]
pub(super) struct UmountArgs {
    /// Mount point: a directory, or SANDBOX:/PATH
    #[arg(value_name = "DIR|SANDBOX:/PATH")]
    dir: PathBuf,
    /// Unmount in the mount namespace of this process
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Detach now, even if files are open; the mount ends when the last one is closed
    #[arg(long, short)]
    pub(super) lazy: bool,
    /// Delete the changes in the state directory. Changes in a directory given with --upper are kept
    #[arg(long, conflicts_with = "lazy")]
    pub(super) discard: bool,
}

/// List mounts.
///
/// Lists the mounts of this state directory. Without a running daemon, they are shown as dead: the next
/// mount or umount starts a daemon, which serves them again or removes those that cannot be served.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay mounts
  inlay mounts --json | jq -r '.[].mountpoint'")]
pub(super) struct MountsArgs {}

pub(super) fn mount(global: &Global, args: &MountArgs) -> Result<(), CliError> {
    if let Where::Inside(inside) = Where::parse(args.dir.as_os_str())
        && args.pid.is_none()
    {
        return mount_into::mount(global, args, &inside);
    }
    let request = request(global, args)?;
    with_daemon(global, args.cache_size, |client, status| {
        warn_of_differences(global, status, args.cache_size);
        if args.foreground {
            return in_foreground(global, client, &request);
        }
        let mounted: MountInfo = client.post(MOUNTS, &request, MOUNT_LIMIT)?;
        Ok(report(global, &mounted)?)
    })
}

pub(super) fn request(global: &Global, args: &MountArgs) -> Result<MountRequest, CliError> {
    let absolute = |path: &Path| std::path::absolute(path).map(|path| PathText::from(&*path));
    let view = match (&args.upper, args.scratch) {
        _ if !args.rw => WantedView::ReadOnly,
        (Some(upper), _) => WantedView::Writable(UpperPlace::Kept(absolute(upper)?)),
        (None, true) => WantedView::Writable(UpperPlace::Scratch),
        (None, false) => WantedView::Writable(UpperPlace::Beside),
    };
    Ok(MountRequest {
        snapshot: args.snapshot.clone(),
        store: global.store_ref()?,
        cache: if args.no_cache { CacheUse::None } else { CacheUse::Kept },
        mountpoint: absolute(&args.dir)?,
        pid: args.pid,
        view,
        chown: args.chown,
        flags: args.options.iter().map(|flag| (*flag).into()).collect(),
        origin: MountOrigin::Command,
        load: args.load()?,
        deadline_ms: u64::try_from(MOUNT_LIMIT.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Parses `UID:GID`.
pub(super) fn owner(text: &str) -> Result<Owner, String> {
    let numbers = text.split_once(':').and_then(|(uid, gid)| {
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        Some(Owner { uid: number(uid)?, gid: number(gid)? })
    });
    numbers.ok_or_else(|| "it must be two numbers, such as 1000:1000".to_owned())
}

impl MountArgs {
    /// Returns the prefetch options. Fails if the file of `--first-from` is unreadable or too long.
    pub(super) fn load(&self) -> Result<LoadOptions, CliError> {
        Ok(LoadOptions {
            prefetch: self.prefetch,
            label: self.label.clone().unwrap_or_default(),
            record: self.record_profile,
            first: first(self)?,
        })
    }
}

/// Maximum length of a `--first-from` file, in bytes: the paths are sent in one request.
const FIRST_LEN_MAX: u64 = 32 << 10;

/// Returns the paths to prefetch first.
fn first(args: &MountArgs) -> Result<Vec<PathText>, CliError> {
    let mut paths: Vec<PathText> = args.first.iter().map(|path| PathText::from(&**path)).collect();
    if let Some(file) = &args.first_from {
        let failed = |why: String| CliError::Usage(format!("{}: {why}", file.display()));
        let len = fs::metadata(file).map_err(|error| failed(error.to_string()))?.len();
        if len > FIRST_LEN_MAX {
            return Err(failed(format!(
                "it has {len} bytes, and a list may have {FIRST_LEN_MAX}; name directories instead \
                 of files, or import a profile with `inlay profile import --paths`"
            )));
        }
        let list = fs::read(file).map_err(|error| failed(error.to_string()))?;
        let lines = list.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        paths.extend(lines.map(|line| PathText::from(Path::new(OsStr::from_bytes(line)))));
    }
    Ok(paths)
}

/// Mounts, and blocks until the mount is gone. SIGTERM and SIGINT unmount. A signal that arrives before
/// the response drops the connection, and the daemon undoes the mount.
fn in_foreground(global: &Global, client: &Client, request: &MountRequest) -> Result<(), CliError> {
    client.wait(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut stop = std::pin::pin!(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        let mounted: MountInfo = tokio::select! {
            mounted = client.ask(Method::POST, MOUNTS, request, MOUNT_LIMIT) => mounted?,
            () = &mut stop => return Ok(()),
        };
        report(global, &mounted)?;
        tokio::select! {
            gone = gone(global, client, &mounted) => gone,
            () = &mut stop => {
                let request = UmountRequest {
                    mountpoint: mounted.mountpoint,
                    pid: request.pid,
                    how: Umount::Lazily,
                    changes: Changes::Stay,
                };
                let ended = client.ask(Method::DELETE, MOUNTS, &request, UMOUNT_LIMIT).await;
                let _: UmountAnswer = ended?;
                Ok(())
            }
        }
    })
}

/// Waits until a mount is gone, across restarts of the daemon.
async fn gone(global: &Global, client: &Client, mounted: &MountInfo) -> Result<(), CliError> {
    let request = GoneRequest {
        mount: mounted.mount,
        deadline_ms: u64::try_from(WATCH_LIMIT.as_millis()).unwrap_or(u64::MAX),
    };
    loop {
        match client.query(GONE, &request, WATCH_LIMIT).await {
            Ok(GoneAnswer { gone: true }) => return Ok(()),
            Ok(GoneAnswer { gone: false }) => {}
            Err(_) if !is_recorded(global, mounted.mount)? => return Ok(()),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Whether the kernel still has the mount, as its record tells while no daemon answers.
fn is_recorded(global: &Global, mount: u64) -> Result<bool, CliError> {
    let recorded = Registry::open(global.paths()?.state())?.list()?;
    let found = recorded.mounts.iter().find(|record| record.seen.number() == mount);
    found.map_or(Ok(false), |record| Ok(record.seen.is_mounted()?))
}

pub(super) fn report(global: &Global, mounted: &MountInfo) -> std::io::Result<()> {
    output::print(global.format(), mounted, |out| {
        let changes = match &mounted.view {
            View::ReadOnly => String::new(),
            View::Writable { keep: Keep::Scratch, .. } => {
                ", changes thrown away when unmounted".to_owned()
            }
            View::Writable { upper, .. } => format!(", changes in {}", path(&upper.to_path())),
        };
        writeln!(out, "{} on {}{changes}", mounted.snapshot, path(&mounted.mountpoint.to_path()))
    })
}

/// Formats the mount point: a path on this host, with process and container for a `--pid` mount, or
/// `SANDBOX:/PATH`.
fn place(mount: &MountInfo) -> String {
    let at = mount.mountpoint.to_path();
    match (&mount.sandbox, &mount.sandbox_id) {
        (None, None) => match &mount.inside {
            None => path(&at),
            Some(inside) => {
                let container = inside.container.as_deref().and_then(|id| id.get(..12));
                let container = container.map(|id| format!(", container {id}")).unwrap_or_default();
                format!("{} (pid {}, {}{container})", path(&at), inside.pid, inside.name)
            }
        },
        (Some(sandbox), _) | (None, Some(sandbox)) => {
            let is_root = at.ends_with(format!(
                "sandboxes/{}/rootfs",
                mount.sandbox_id.as_deref().unwrap_or("")
            ));
            if is_root { format!("{sandbox}:/") } else { format!("{sandbox}:{}", path(&at)) }
        }
    }
}

fn path(path: &Path) -> String {
    escaped(path.as_os_str().as_encoded_bytes())
}

pub(super) fn umount(global: &Global, args: &UmountArgs) -> Result<(), CliError> {
    if let Where::Inside(inside) = Where::parse(args.dir.as_os_str())
        && args.pid.is_none()
    {
        return mount_into::umount(global, args, &inside);
    }
    let paths = global.paths()?;
    let dir = std::path::absolute(&args.dir)?;
    let recorded = if paths.state().is_dir() {
        Registry::open(paths.state())?.list()?
    } else {
        Recorded::default()
    };
    let refused = || MountError::NotMounted {
        mountpoint: dir.clone(),
        registry: paths.state().join("mounts"),
    };
    if recorded.mounts.is_empty()
        && recorded.damaged.is_empty()
        && Client::new(&paths)?.status()?.is_none()
    {
        return Err(refused().into());
    }
    // A starting daemon removes dead mounts, possibly this one before the request arrives: that is
    // success, not "not mounted".
    let dead = recorded.mounts.into_iter().find(|record| {
        record.mountpoint == PathText::from(&*dir)
            && args.pid.is_none()
            && record.seen.is_here().unwrap_or(false)
    });
    let request = UmountRequest {
        mountpoint: PathText::from(&*dir),
        pid: args.pid,
        how: if args.lazy { Umount::Lazily } else { Umount::IfFree },
        changes: if args.discard { Changes::Discard } else { Changes::Stay },
    };
    let ended = with_daemon(global, None, |client, _| {
        match client.delete(MOUNTS, &request, UMOUNT_LIMIT) {
            Ok(ended) => Ok(Some(ended)),
            Err(ClientError::Refused(answer)) if answer.kind == ErrorKind::NotMounted => {
                match &dead {
                    Some(record) if !record.seen.is_mounted()? => Ok(None),
                    _ => Err(ClientError::Refused(answer).into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    })?;
    let answer = Unmounted::new(path(&args.dir), ended);
    output::print(global.format(), &answer, |out| {
        write!(out, "{} unmounted", answer.dir)?;
        if let Some(upper) = &answer.changes {
            write!(out, ", changes stay in {upper}")?;
        }
        if answer.in_use {
            write!(out, "; programs that use it go on")?;
        }
        writeln!(out)
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Unmounted {
    dir: String,
    /// Upper directory with kept changes; `None` if there are none.
    changes: Option<String>,
    /// Whether programs still use the detached mount.
    in_use: bool,
}

impl Unmounted {
    fn new(dir: String, ended: Option<UmountAnswer>) -> Self {
        let Some(UmountAnswer { view, in_use, discarded, .. }) = ended else {
            return Self { dir, changes: None, in_use: false };
        };
        let changes = match view {
            View::Writable { upper, keep: Keep::Kept } if !discarded => {
                Some(path(&upper.to_path()))
            }
            View::Writable { .. } | View::ReadOnly => None,
        };
        Self { dir, changes, in_use }
    }
}

pub(super) fn mounts(global: &Global, _: &MountsArgs) -> Result<(), CliError> {
    let paths = global.paths()?;
    let mounted: Vec<MountInfo> = match Client::new(&paths)?.get(MOUNTS) {
        Ok(mounted) => mounted,
        Err(ClientError::NotRunning(_)) if !paths.state().is_dir() => Vec::new(),
        Err(ClientError::NotRunning(_)) => {
            let records = Registry::open(paths.state())?.list()?.mounts.into_iter();
            records.map(MountInfo::of).collect()
        }
        Err(error) => return Err(error.into()),
    };
    output::print(global.format(), &mounted, |out| {
        let head = ["MOUNTED ON", "SNAPSHOT", "MODE", "PID"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(mounted.iter().map(|mount| {
            let mut id = mount.snapshot.to_string();
            id.truncate(mount.snapshot.kind.prefix().len() + 1 + 12);
            let pid = mount.server.map_or("dead".to_owned(), |server| server.pid.to_string());
            let mode = match mount.view {
                View::ReadOnly => "ro",
                View::Writable { .. } => "rw",
            };
            let place = place(mount);
            vec![place, id, mode.to_owned(), pid]
        }));
        output::table(out, &rows)
    })?;
    Ok(())
}
