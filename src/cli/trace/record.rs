//! `inlay trace record`: records the daemon's reads and fetches for a while.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use inlay_base::duration;
use inlay_trace::{Facts, assemble, clock};

use super::endings::Endings;
use super::options::TraceOutputArgs;
use super::recording::Recording;
use super::run::utc_now;
use super::write::write;
use crate::cli::Global;
use crate::cli::client::with_daemon;
use crate::cli::error::CliError;
use crate::cli::output;
use crate::cli::sandbox::path_of;
use crate::daemon::{BeginTrace, MOUNTS, MountInfo, SandboxInfo};

/// Record reads and fetches on this host until interrupted.
///
/// Ctrl-C stops recording and writes the trace. Reads served by the kernel's page cache are not visible
/// to the daemon.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay trace record -o work.json
  inlay trace record --for 30s --sandbox web -o web.json
  inlay trace record --for 10s --mount /mnt/base --html base.html")]
pub(super) struct RecordArgs {
    /// Duration of the recording [default: until Ctrl-C]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    length: Option<Duration>,
    /// Record only reads of the snapshot mounted at this path, at all its mount points
    #[arg(long, value_name = "PATH", conflicts_with = "sandbox")]
    mount: Option<PathBuf>,
    /// Record only reads of the snapshots in this sandbox: name or id
    #[arg(long, value_name = "NAME")]
    sandbox: Option<String>,
    #[command(flatten)]
    kept: TraceOutputArgs,
}

pub(super) fn record(global: &Global, args: &RecordArgs) -> Result<(), CliError> {
    let snapshots = snapshots(global, args)?;
    let recorded = utc_now();
    let request =
        BeginTrace { snapshots: snapshots.into_iter().collect(), events: Some(args.kept.events) };
    let mut recording = Recording::begin(global, &request)?;
    let began_ns = clock::now();
    let endings = Endings::heard(recording.client())?;
    if !global.quiet {
        // Also a marker for scripts that wait for the start of the recording.
        output::note("inlay: recording; Ctrl-C ends it");
    }
    wait(&mut recording, endings, args.length)?;
    let events = recording.end()?;
    let facts = Facts {
        title: match (&args.mount, &args.sandbox) {
            (Some(path), _) => format!("reads of {}", path.display()),
            (None, Some(sandbox)) => format!("reads of the sandbox {sandbox}"),
            (None, None) => "all reads".to_owned(),
        },
        command: std::env::args().collect(),
        recorded,
        began_ns,
        ..Facts::default()
    };
    write(global, &args.kept, &assemble(events, facts))
}

/// Waits until `length` has passed or a signal arrives. Fails if the daemon exits.
fn wait(
    recording: &mut Recording,
    mut endings: Endings,
    length: Option<Duration>,
) -> Result<(), CliError> {
    let (client, lost) = recording.parts();
    client.wait(async {
        let over = async {
            match length {
                Some(length) => tokio::time::sleep(length).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => Ok(()),
            () = endings.next() => Ok(()),
            () = lost => Err(CliError::Trace(
                "the daemon has ended, and what it had recorded is lost; record again".to_owned(),
            )),
        }
    })
}

/// Returns the ids of the snapshots to record; empty for all.
fn snapshots(global: &Global, args: &RecordArgs) -> Result<BTreeSet<String>, CliError> {
    if let Some(sandbox) = &args.sandbox {
        let path = path_of(sandbox, "");
        let shown: SandboxInfo = with_daemon(global, None, |client, _| Ok(client.get(&path)?))?;
        let mounted = shown.mounts.iter().map(|mounted| mounted.snapshot);
        return Ok(mounted.chain(shown.snapshot).map(|id| id.to_string()).collect());
    }
    let Some(path) = &args.mount else { return Ok(BTreeSet::new()) };
    let path = std::path::absolute(path)?;
    let mounts: Vec<MountInfo> = with_daemon(global, None, |client, _| Ok(client.get(MOUNTS)?))?;
    let there = |mount: &&MountInfo| {
        mount.sandbox.is_none() && mount.mountpoint.to_path() == Path::new(&path)
    };
    match mounts.iter().find(there) {
        Some(mount) => Ok(BTreeSet::from([mount.snapshot.to_string()])),
        None => Err(CliError::Trace(format!(
            "nothing is mounted at {}; `inlay mounts` lists what is",
            path.display()
        ))),
    }
}
