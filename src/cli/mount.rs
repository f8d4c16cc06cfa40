//! `inlay mount`, `umount`, `mounts`: what the daemon is asked for, and how its answers are shown.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper::Method;
use inlay_store::cache::Budget;
use inlay_store::profile::ProfileLabel;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::Global;
use super::client::{warn_of_differences, with_daemon};
use super::error::CliError;
use super::inside::Where;
use super::mount_into;
use super::output::{self, shown};
use crate::daemon::{
    CacheUse, Client, DaemonError, ErrorKind, GONE, GoneAnswer, GoneRequest, LoadOptions, MOUNTS,
    MountRequest, MountShown, Prefetch, RecordProfile, UmountAnswer, UmountRequest,
};
use crate::mount::{
    Changes, Keep, MountError, Owner, PathText, Registry, Umount, UpperPlace, View, WantedView,
};

/// How long a mount may take, most of it for the index, before the caller is told that it failed.
const MOUNT_LIMIT: Duration = Duration::from_mins(5);
/// How long an unmount may take.
const UMOUNT_LIMIT: Duration = Duration::from_mins(1);
/// How long the daemon is asked to wait for the end of a mount before it is asked again.
const WATCH_LIMIT: Duration = Duration::from_secs(30);
/// The pause before a daemon that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Mount a snapshot on a directory, or into a sandbox that runs.
///
/// Returns when it is there; files are fetched when they are read. The daemon serves it until it is
/// unmounted; one is started in the background if none runs.
///
/// In a sandbox it replaces what is at the path, which is made if it is missing, and can be changed
/// unless --read-only is given; 'empty' is a snapshot of nothing. On a directory of this host it is
/// read-only unless --rw is given.
///
/// Changes are kept and are there again when the same snapshot is mounted at the same place; 'inlay
/// umount --discard' throws them away. Those of a sandbox are kept as long as the sandbox is.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is a word of the command line
#[command(after_help = "\
Examples:
  inlay mount base /mnt/base
  inlay mount --rw base /mnt/work
  inlay mount --rw --upper /srv/changes base /mnt/work
  inlay mount --rw --scratch base /mnt/try
  inlay mount --chown 1000:1000 base /mnt/mine
  inlay mount dir-3f9c… b:/project                 into the sandbox b
  inlay mount --read-only deps b:/project/node_modules
  inlay mount empty b:/scratch
  inlay mount --pid 4711 --rw dir-3f9c… /project   into any container, by one of its processes
  inlay mount --foreground --log info base /mnt/base")]
pub(super) struct MountArgs {
    /// Name or id
    pub(super) snapshot: String,
    /// An existing directory, or SANDBOX:/PATH
    #[arg(value_name = "DIR|SANDBOX:/PATH")]
    dir: PathBuf,
    /// Writable: changes go to a directory on this host. In a sandbox that is so without it
    #[arg(long)]
    rw: bool,
    /// As it is, in a sandbox, too
    #[arg(long, conflicts_with = "rw")]
    pub(super) read_only: bool,
    /// Mount where this process of the host sees the directory, which is made if it is missing
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Where the changes go [default: below the state directory]
    #[arg(long, value_name = "DIR", requires = "rw", conflicts_with = "scratch")]
    pub(super) upper: Option<PathBuf>,
    /// Throw the changes away when it is unmounted
    #[arg(long, requires = "rw")]
    pub(super) scratch: bool,
    /// Show what belongs to the owner of the snapshot's root directory as this user's and group's, by
    /// their numbers. Everybody else stays; setuid bits are ignored
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    pub(super) chown: Option<Owner>,
    /// How much disk the host's cache may take, for a daemon that this starts: a size, a share of
    /// the disk such as 20%, or auto. It is remembered for this state [default: what was said last,
    /// or auto]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Budget>,
    /// Keep nothing on this host's disk but the index
    #[arg(long, conflicts_with = "cache_size")]
    pub(super) no_cache: bool,
    /// How much is loaded ahead of readers
    #[arg(
        long,
        value_enum,
        env = "INLAY_PREFETCH",
        default_value_t,
        value_name = "HOW",
        help_heading = "Loading ahead"
    )]
    prefetch: Prefetch,
    /// Which start this is: profiles are kept for each label [default: one for all starts]
    #[arg(long, value_name = "LABEL", help_heading = "Loading ahead")]
    label: Option<ProfileLabel>,
    /// Load this path of the snapshot, with all below it, before everything else. Can be repeated
    #[arg(long, value_name = "PATH", help_heading = "Loading ahead")]
    first: Vec<PathBuf>,
    /// A file with such paths, one a line
    #[arg(long, value_name = "FILE", help_heading = "Loading ahead")]
    first_from: Option<PathBuf>,
    /// Whether what is read first is remembered in the store for the next start
    #[arg(
        long,
        value_enum,
        env = "INLAY_RECORD_PROFILE",
        default_value_t,
        value_name = "WHETHER",
        help_heading = "Loading ahead"
    )]
    record_profile: RecordProfile,
    /// Stay until it is unmounted; SIGTERM and SIGINT unmount it
    #[arg(long)]
    pub(super) foreground: bool,
}

/// Unmount what 'inlay mount' has mounted, on a directory or in a sandbox.
///
/// Returns when the mount is gone. A mount that is in use stays as it is, and the command
/// fails; with --lazy it goes out of sight and ends with its last user.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay umount /mnt/base
  inlay umount --lazy /mnt/base
  inlay umount --discard /mnt/work
  inlay umount b:/project")]
pub(super) struct UmountArgs {
    /// The directory, or SANDBOX:/PATH
    #[arg(value_name = "DIR|SANDBOX:/PATH")]
    dir: PathBuf,
    /// The directory is as this process of the host sees it
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Also if files are open: it ends when the last one is closed
    #[arg(long, short)]
    pub(super) lazy: bool,
    /// Throw away the changes that were kept below the state directory. Those that went where
    /// --upper said stay
    #[arg(long, conflicts_with = "lazy")]
    pub(super) discard: bool,
}

/// List what is mounted.
///
/// Shows the mounts of this state directory. While no daemon serves them they are shown as dead: the
/// next mount or umount starts one, which serves them again, or clears away what can't be served.
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
        let mounted: MountShown = client.post(MOUNTS, &request, MOUNT_LIMIT)?;
        Ok(report(global, &mounted)?)
    })
}

fn request(global: &Global, args: &MountArgs) -> Result<MountRequest, CliError> {
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
        load: args.load()?,
        deadline_ms: u64::try_from(MOUNT_LIMIT.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Numbers of a user and a group.
fn owner(text: &str) -> Result<Owner, String> {
    let numbers = text.split_once(':').and_then(|(uid, gid)| {
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        Some(Owner { uid: number(uid)?, gid: number(gid)? })
    });
    numbers.ok_or_else(|| "it must be two numbers, such as 1000:1000".to_owned())
}

impl MountArgs {
    /// How it is loaded ahead.
    pub(super) fn load(&self) -> Result<LoadOptions, CliError> {
        Ok(LoadOptions {
            prefetch: self.prefetch,
            label: self.label.clone().unwrap_or_default(),
            record: self.record_profile,
            first: first(self)?,
        })
    }
}

/// The longest list of paths that a mount takes, in bytes: it goes in one request.
const FIRST_LEN_MAX: u64 = 32 << 10;

/// What is to be loaded first.
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

/// Mounts and waits for the end, which a signal brings about. A signal before the mount is there has
/// the daemon undo it.
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
        let mounted: MountShown = tokio::select! {
            mounted = client.ask(Method::POST, MOUNTS, request, MOUNT_LIMIT) => mounted?,
            () = &mut stop => return Ok(()),
        };
        report(global, &mounted)?;
        tokio::select! {
            gone = gone(client, &mounted) => gone,
            () = &mut stop => {
                let request = UmountRequest {
                    mountpoint: mounted.record.mountpoint,
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

/// Waits until a mount is gone, whatever daemons come and go.
async fn gone(client: &Client, mounted: &MountShown) -> Result<(), CliError> {
    let request = GoneRequest {
        mount: mounted.record.seen.number(),
        deadline_ms: u64::try_from(WATCH_LIMIT.as_millis()).unwrap_or(u64::MAX),
    };
    loop {
        match client.look(GONE, &request, WATCH_LIMIT).await {
            Ok(GoneAnswer { gone: true }) => return Ok(()),
            Ok(GoneAnswer { gone: false }) => {}
            Err(_) if !mounted.record.seen.is_mounted()? => return Ok(()),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn report(global: &Global, mounted: &MountShown) -> std::io::Result<()> {
    let record = &mounted.record;
    output::print(global.format(), mounted, |out| {
        let changes = match &record.view {
            View::ReadOnly => String::new(),
            View::Writable { keep: Keep::Scratch, .. } => {
                ", changes thrown away when unmounted".to_owned()
            }
            View::Writable { upper, .. } => format!(", changes in {}", path(&upper.to_path())),
        };
        writeln!(out, "{} on {}{changes}", record.snapshot, path(&record.mountpoint.to_path()))
    })
}

/// Where it is seen: on this host, or in a sandbox.
fn place(mount: &MountShown) -> String {
    let at = mount.record.mountpoint.to_path();
    match (&mount.sandbox, &mount.record.owner) {
        (None, None) => path(&at),
        (Some(sandbox), _) | (None, Some(sandbox)) => {
            let is_root = at.ends_with(format!(
                "sandboxes/{}/rootfs",
                mount.record.owner.as_deref().unwrap_or("")
            ));
            if is_root { format!("{sandbox}:/") } else { format!("{sandbox}:{}", path(&at)) }
        }
    }
}

fn path(path: &Path) -> String {
    shown(path.as_os_str().as_encoded_bytes())
}

pub(super) fn umount(global: &Global, args: &UmountArgs) -> Result<(), CliError> {
    if let Where::Inside(inside) = Where::parse(args.dir.as_os_str())
        && args.pid.is_none()
    {
        return mount_into::umount(global, args, &inside);
    }
    let paths = global.paths()?;
    let dir = std::path::absolute(&args.dir)?;
    let recorded =
        if paths.state().is_dir() { Registry::open(paths.state())?.list()? } else { Vec::new() };
    if recorded.is_empty() && Client::new(&paths)?.status()?.is_none() {
        let registry = paths.state().join("mounts");
        return Err(MountError::NotMounted { mountpoint: dir, registry }.into());
    }
    let request = UmountRequest {
        mountpoint: PathText::from(&*dir),
        pid: args.pid,
        how: if args.lazy { Umount::Lazily } else { Umount::IfFree },
        changes: if args.discard { Changes::Discard } else { Changes::Stay },
    };
    let ended = with_daemon(global, None, |client, _| {
        match client.delete(MOUNTS, &request, UMOUNT_LIMIT) {
            Ok(ended) => Ok(Some(ended)),
            // It was dead: then the daemon has cleared it away when it started.
            Err(DaemonError::Refused(answer))
                if answer.kind == ErrorKind::NotMounted
                    && recorded.iter().any(|record| record.mountpoint == request.mountpoint) =>
            {
                Ok(None)
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
    /// Where changes are kept, if there are some.
    changes: Option<String>,
    /// Whether programs still use what was mounted.
    in_use: bool,
}

impl Unmounted {
    fn new(dir: String, ended: Option<UmountAnswer>) -> Self {
        let Some(UmountAnswer { record, in_use, discarded }) = ended else {
            return Self { dir, changes: None, in_use: false };
        };
        let changes = match record.view {
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
    let mounted: Vec<MountShown> = match Client::new(&paths)?.get(MOUNTS) {
        Ok(mounted) => mounted,
        Err(DaemonError::NotRunning(_)) if !paths.state().is_dir() => Vec::new(),
        Err(DaemonError::NotRunning(_)) => {
            let records = Registry::open(paths.state())?.list()?.into_iter();
            records
                .map(|record| MountShown { record, sandbox: None, server: None, served: false })
                .collect()
        }
        Err(error) => return Err(error.into()),
    };
    output::print(global.format(), &mounted, |out| {
        let head = ["MOUNTED ON", "SNAPSHOT", "MODE", "SLOT", "PID"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(mounted.iter().map(|mount| {
            let mut id = mount.record.snapshot.to_string();
            id.truncate(mount.record.snapshot.kind.prefix().len() + 1 + 12);
            let pid = mount.server.map_or("dead".to_owned(), |server| server.pid.to_string());
            let mode = match mount.record.view {
                View::ReadOnly => "ro",
                View::Writable { .. } => "rw",
            };
            let place = place(mount);
            let slots: Vec<_> = mount.record.slots.iter().map(u32::to_string).collect();
            let slots = slots.join("+");
            vec![place, id, mode.to_owned(), slots, pid]
        }));
        output::table(out, &rows)
    })?;
    Ok(())
}
