//! `inlay snapshot`: of a directory of a sandbox, or of its whole root.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use inlay_store::ids::Kind;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::inside::{Inside, Where};
use super::output;
use super::sandbox_options::pair;
use crate::daemon::{
    SNAPSHOTS, SYNC, SnapshotTaken, StoreRef, SyncAnswer, SyncRequest, TakeSnapshot, WaitFor,
};
use crate::duration;
use crate::mount::PathText;

/// What is mounted in every root by the runtime, of which nobody expects a snapshot.
const RUNTIMES_OWN: [&str; 6] =
    ["/proc", "/dev", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// How long the daemon is asked to wait before it is asked again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long a snapshot may take.
pub(super) const LIMIT: Duration = Duration::from_mins(9);

/// Take a snapshot of a directory of a sandbox, or of its whole root.
///
/// The sandbox stands still for a moment while the changes are taken. Without a path, the snapshot is
/// the root as a difference from its image, and can start new sandboxes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay snapshot a:/project
  inlay snapshot a:/project --name project --exclude node_modules --exclude '*.log'
  inlay snapshot a --name a-as-it-was")]
pub(super) struct SnapshotArgs {
    /// The sandbox, and the directory as it sees it
    #[arg(value_name = "SANDBOX[:/PATH]")]
    place: OsString,
    #[command(flatten)]
    kept: Kept,
}

/// Wait until snapshots that are sealed on this host are in their stores.
///
/// That is what 'inlay snapshot --wait sealed' leaves to be done. A host that is lost before takes them
/// with it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay snapshot a:/project --wait sealed && inlay sync
  inlay sync --time 5m")]
pub(super) struct SyncArgs {
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10m")]
    time: Duration,
}

pub(super) fn sync(global: &Global, args: &SyncArgs) -> Result<(), CliError> {
    let deadline = Instant::now() + args.time;
    let progress = global.progress();
    progress.begin("waiting for the store", 0);
    let answer = loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(LOOK_AGAIN);
        let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let answer: SyncAnswer = with_daemon(global, None, |client, _| {
            Ok(client.post(SYNC, &SyncRequest { deadline_ms }, LOOK_AGAIN)?)
        })?;
        if answer.waiting == 0 || Instant::now() >= deadline {
            break answer;
        }
    };
    progress.finish();
    if answer.waiting > 0 {
        return Err(CliError::NotDurable { waiting: answer.waiting, limit: args.time });
    }
    output::print(global.format(), &answer, |out| writeln!(out, "everything is in its store"))?;
    Ok(())
}

/// What is kept of a snapshot, and for how long.
#[derive(Debug, Args)]
pub(super) struct Kept {
    /// A name that shall stand for the snapshot
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A remark. Can be repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// How long it is kept after its last use, such as 72h [default: by its kind]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Leave out what matches, in the words of gitignore. Can be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// When it counts as done
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    wait: WaitFor,
    /// What it comes from: name or id, or 'none' [default: the last snapshot of the same directory,
    /// or what is mounted there]
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<String>,
}

/// What is asked for, but for the sandbox and the path.
pub(super) fn request(global: &Global, kept: &Kept) -> Result<TakeSnapshot, CliError> {
    let store = match &global.store {
        Some(_) => Some::<StoreRef>(global.store_ref()?),
        None => None,
    };
    Ok(TakeSnapshot {
        store,
        name: kept.name.clone(),
        labels: kept.label.iter().map(|label| pair(label)).collect(),
        ttl_s: kept.ttl.map(|ttl| ttl.as_secs()),
        exclude: kept.exclude.clone(),
        wait: kept.wait,
        parent: kept.parent.clone(),
        deadline_ms: u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX),
        ..TakeSnapshot::default()
    })
}

pub(super) fn snapshot(global: &Global, args: &SnapshotArgs) -> Result<(), CliError> {
    let mut request = request(global, &args.kept)?;
    match Where::parse(&args.place) {
        Where::Inside(Inside { sandbox, path }) => {
            (request.sandbox, request.path) = (sandbox, Some(PathText::from(&*path)));
        }
        Where::Here(name) => {
            let name = name.into_os_string().into_string();
            request.sandbox =
                name.map_err(|_| CliError::Usage("a sandbox's name is text".to_owned()))?;
        }
    }
    let progress = global.progress();
    progress.begin("taking a snapshot", 0);
    let taken: Result<SnapshotTaken, CliError> =
        with_daemon(global, None, |client, _| Ok(client.post(SNAPSHOTS, &request, LIMIT)?));
    progress.finish();
    let taken = taken?;
    output::print(global.format(), &taken, |out| report(out, &taken))?;
    Ok(())
}

/// Says what was taken: the id on a line of its own, then what there is to know.
pub(super) fn report(out: &mut dyn Write, taken: &SnapshotTaken) -> io::Result<()> {
    let record = &taken.record;
    writeln!(out, "{}", record.id)?;
    if taken.unchanged {
        return writeln!(out, "nothing has changed since that snapshot");
    }
    writeln!(
        out,
        "{} files, {}; {} read, {} stored; stood still for {:.1} ms of {:.2} s",
        record.counts.files,
        output::bytes(record.content_bytes),
        output::bytes(taken.read_bytes),
        output::bytes(taken.stored_bytes),
        taken.frozen_ms,
        taken.took_ms / 1e3,
    )?;
    if !taken.durable {
        writeln!(out, "on its way to the store; `inlay sync` waits until it is there")?;
    }
    for left in &taken.left_out {
        let path = left.path.to_path();
        if record.id.kind == Kind::Filesystem
            && RUNTIMES_OWN.iter().any(|own| path == Path::new(own))
        {
            continue;
        }
        let path = output::shown(path.as_os_str().as_encoded_bytes());
        writeln!(out, "left out: {path}: {}", left.why)?;
    }
    match taken.left_out_more {
        0 => Ok(()),
        more => writeln!(out, "left out: {more} more that match excluded patterns"),
    }
}
