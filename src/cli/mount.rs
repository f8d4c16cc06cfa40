//! `inlay mount`, `umount`, `mounts`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use inlay_fusefs::MountOptions;
use inlay_prefetch::{FetchLimits, Fetcher};
use inlay_store::cache::{Budget, CacheOptions};
use inlay_store::ids::SnapshotId;
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output::{self, shown};
use crate::content::{ContentOptions, SnapshotContent};
use crate::host::Host;
use crate::mount::{
    Keep, MountId, MountRecord, Readiness, Registry, Request, Umount, UpperPlace, View, WantedView,
    serve, spawn_background, stop_signal, umount as unmount,
};
use crate::snapshots::{open_index, resolve};

/// How long a mount may take, most of it for the index, before the caller is told that it failed.
const MOUNT_LIMIT: Duration = Duration::from_mins(5);
/// How long the serving process may take to end after its mount is gone.
const END_LIMIT: Duration = Duration::from_mins(1);

/// Mount a snapshot on a directory.
///
/// Returns when it is there; files are fetched when they are read. A process in the background
/// serves it until it is unmounted.
///
/// With --rw, changes are kept in a directory beside and are there again when the same snapshot is
/// mounted on the same directory; 'inlay umount --discard' throws them away.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is a word of the command line
#[command(after_help = "\
Examples:
  inlay mount base /mnt/base
  inlay mount --rw base /mnt/work
  inlay mount --rw --upper /srv/changes base /mnt/work
  inlay mount --rw --scratch base /mnt/try
  inlay mount --foreground --log info base /mnt/base")]
pub(super) struct MountArgs {
    /// Name or id
    snapshot: String,
    /// An existing directory
    dir: PathBuf,
    /// Writable: changes go to a directory on this host
    #[arg(long)]
    rw: bool,
    /// Where the changes go [default: below the state directory]
    #[arg(long, value_name = "DIR", requires = "rw", conflicts_with = "scratch")]
    upper: Option<PathBuf>,
    /// Throw the changes away when it is unmounted
    #[arg(long, requires = "rw")]
    scratch: bool,
    /// How much disk the host's cache may take: a size, a share of the disk such as 20%, or auto.
    /// It is remembered for this state [default: what was said last, or auto]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Budget>,
    /// Keep nothing on this host's disk but the index
    #[arg(long, conflicts_with = "cache_size")]
    no_cache: bool,
    /// Serve in this process, until SIGTERM, SIGINT or an unmount
    #[arg(long)]
    foreground: bool,
    /// Serve in this process, and say on standard output how it went
    #[arg(long, hide = true)]
    background_child: bool,
}

/// Unmount a directory that 'inlay mount' has mounted.
///
/// Returns when nothing of the mount is left. A mount that is in use stays as it is, and the command
/// fails; with --lazy it goes out of sight and ends with its last user.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay umount /mnt/base
  inlay umount --lazy /mnt/base
  inlay umount --discard /mnt/work")]
pub(super) struct UmountArgs {
    /// The directory
    dir: PathBuf,
    /// Also if files are open: it ends when the last one is closed
    #[arg(long, short)]
    lazy: bool,
    /// Throw away the changes that were kept below the state directory. Those that went where
    /// --upper said stay
    #[arg(long, conflicts_with = "lazy")]
    discard: bool,
}

/// List what is mounted.
///
/// Shows the mounts of this state directory. One whose process has died is shown as dead; the next
/// mount or umount clears it away.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay mounts
  inlay mounts --json | jq -r '.[].mountpoint'")]
pub(super) struct MountsArgs {}

#[derive(Serialize)]
struct Mounted<'a> {
    #[serde(flatten)]
    record: &'a MountRecord,
    /// Whether the process that serves it runs.
    served: bool,
}

pub(super) fn mount(global: &Global, args: &MountArgs) -> Result<(), CliError> {
    if args.background_child {
        return in_child(global, args);
    }
    if args.foreground {
        return serve_here(global, args, |record| report(global, record).map_err(CliError::from));
    }
    let registry = Registry::open(&global.state)?;
    // Whatever a dead process has left at the mount point would be in the way.
    registry.sweep()?;
    let state = std::path::absolute(&global.state)?;
    let log = state.join("log").join("mount.log");
    spawn_background(child_args(global, args, &state)?, &log, MOUNT_LIMIT)?;
    let dir = fs::canonicalize(&args.dir)?;
    match registry.find(&dir)? {
        Some(record) => Ok(report(global, &record)?),
        // Unmounted again by somebody else in the meantime.
        None => Ok(()),
    }
}

/// The words that make another process do the same in its foreground.
fn child_args(global: &Global, args: &MountArgs, state: &Path) -> Result<Vec<OsString>, CliError> {
    let mut words: Vec<OsString> =
        vec!["mount".into(), "--background-child".into(), "--state".into(), state.into()];
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    if let Some(store) = &global.store {
        option("--store", store.into());
    }
    option("--log", (&global.log).into());
    if let Some(upper) = &args.upper {
        option("--upper", std::path::absolute(upper)?.into());
    }
    if let Some(size) = args.cache_size {
        option("--cache-size", size.to_string().into());
    }
    for (given, word) in [
        (global.plain_http, "--plain-http"),
        (args.rw, "--rw"),
        (args.scratch, "--scratch"),
        (args.no_cache, "--no-cache"),
    ] {
        if given {
            words.push(word.into());
        }
    }
    words.extend(["--".into(), (&args.snapshot).into(), std::path::absolute(&args.dir)?.into()]);
    Ok(words)
}

fn in_child(global: &Global, args: &MountArgs) -> Result<(), CliError> {
    let mut readiness = Some(Readiness::new()?);
    let result = serve_here(global, args, |_| match readiness.take() {
        Some(readiness) => Ok(readiness.ready()?),
        None => Ok(()),
    });
    if let (Err(error), Some(readiness)) = (&result, readiness) {
        readiness.failed(error)?;
    }
    result
}

fn serve_here(
    global: &Global,
    args: &MountArgs,
    ready: impl FnOnce(&MountRecord) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let host = global.host()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    let index = host.wait(open_index(host.remote(), host.state(), id))?;
    let cache = if args.no_cache {
        None
    } else {
        Some(host.cache(CacheOptions { budget: args.cache_size, ..CacheOptions::default() })?)
    };
    let handle = host.handle().clone();
    let remote = host.remote().clone();
    let fetcher = Fetcher::new(remote, cache.clone(), FetchLimits::default(), handle.clone());
    let content = SnapshotContent::new(
        index.clone(),
        cache,
        fetcher.clone(),
        ContentOptions::default(),
        handle,
    );
    let request = Request {
        state: host.state().root().to_owned(),
        snapshot: id,
        index,
        source: Arc::new(content.clone()),
        mountpoint: args.dir.clone(),
        view: view(&host, args, id)?,
        options: MountOptions::default(),
    };
    let mut answered = Ok(());
    let ended = host.wait(async {
        let stop = stop_signal()?;
        Ok::<_, CliError>(serve(request, |record| answered = ready(record), stop).await?)
    });
    host.wait(async {
        // The fetcher first: readers that still wait get their errors at once.
        fetcher.shutdown().await;
        content.shutdown().await;
    });
    let figures = fetcher.figures();
    tracing::info!(
        demand_requests = figures.demand_requests,
        read_ahead_requests = figures.read_ahead_requests,
        fetched_bytes = figures.fetched_bytes,
        "the mount has ended"
    );
    ended?;
    answered
}

fn view(host: &Host, args: &MountArgs, id: SnapshotId) -> Result<WantedView, CliError> {
    if !args.rw {
        return Ok(WantedView::ReadOnly);
    }
    if args.scratch {
        return Ok(WantedView::Writable(UpperPlace::Scratch));
    }
    let place = match &args.upper {
        Some(upper) => upper.clone(),
        None => kept_upper(host.state().root(), id, &fs::canonicalize(&args.dir)?),
    };
    Ok(WantedView::Writable(UpperPlace::Kept(place)))
}

/// Where the changes to `id`, mounted on `mountpoint`, are kept when no place is named.
fn kept_upper(state: &Path, id: SnapshotId, mountpoint: &Path) -> PathBuf {
    state.join("upper").join(format!("{}-{}", MountId::of(mountpoint).as_str(), id.index))
}

fn report(global: &Global, record: &MountRecord) -> std::io::Result<()> {
    let mounted = Mounted { record, served: true };
    output::print(global.format(), &mounted, |out| {
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

fn path(path: &Path) -> String {
    shown(path.as_os_str().as_encoded_bytes())
}

pub(super) fn umount(global: &Global, args: &UmountArgs) -> Result<(), CliError> {
    let registry = Registry::open(&global.state)?;
    let how = if args.lazy { Umount::Lazily } else { Umount::IfFree };
    let record = match fs::canonicalize(&args.dir) {
        Ok(dir) => registry.find(&dir)?,
        Err(_) => None,
    };
    unmount(&registry, &args.dir, how, END_LIMIT)?;
    let state = fs::canonicalize(&global.state)?;
    let kept = record.as_ref().and_then(|record| match &record.view {
        View::Writable { upper, keep: Keep::Kept, .. } => Some(upper.to_path()),
        View::Writable { .. } | View::ReadOnly => None,
    });
    let discarded = match &kept {
        Some(upper) if args.discard && upper.starts_with(state.join("upper")) => {
            fs::remove_dir_all(upper)?;
            true
        }
        _ => false,
    };
    let answer = Unmounted {
        dir: path(&args.dir),
        changes: kept.as_ref().filter(|_| !discarded).map(|upper| path(upper)),
    };
    output::print(global.format(), &answer, |out| match &answer.changes {
        Some(upper) => writeln!(out, "{} unmounted, changes stay in {upper}", answer.dir),
        None => writeln!(out, "{} unmounted", answer.dir),
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Unmounted {
    dir: String,
    /// Where changes are kept, if there are some.
    changes: Option<String>,
}

pub(super) fn mounts(global: &Global, _: &MountsArgs) -> Result<(), CliError> {
    let records = Registry::open(&global.state)?.list()?;
    let mounted: Vec<Mounted<'_>> =
        records.iter().map(|record| Mounted { record, served: record.server.is_alive() }).collect();
    output::print(global.format(), &mounted, |out| {
        let mut rows = vec![["MOUNTED ON", "SNAPSHOT", "MODE", "PID"].map(str::to_owned).to_vec()];
        rows.extend(mounted.iter().map(|mount| {
            let mut id = mount.record.snapshot.to_string();
            id.truncate(mount.record.snapshot.kind.prefix().len() + 1 + 12);
            vec![
                path(&mount.record.mountpoint.to_path()),
                id,
                match mount.record.view {
                    View::ReadOnly => "ro".to_owned(),
                    View::Writable { .. } => "rw".to_owned(),
                },
                if mount.served { mount.record.server.pid.to_string() } else { "dead".to_owned() },
            ]
        }));
        output::table(out, &rows)
    })?;
    Ok(())
}
