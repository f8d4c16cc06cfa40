//! `inlay snapshot` and `inlay sync`: takes snapshots of sandboxes, and waits until they are durable.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use inlay_base::duration;
use inlay_mounts::PathText;
use inlay_store::ids::Kind;

use super::Global;
use super::client::with_daemon;
use super::error::CliError;
use super::output;
use super::sandbox_options::pair;
use super::sandbox_path::{Inside, Where};
use crate::daemon::{
    ConflictingNames, SNAPSHOTS, SYNC, SnapshotTaken, StoreRef, SyncAnswer, SyncRequest,
    TakeSnapshot, WaitFor,
};

/// Mounts that the runtime creates in every root; not reported as left out.
const RUNTIMES_OWN: [&str; 6] =
    ["/proc", "/dev", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// Timeout of one long poll of the daemon.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Timeout of taking a snapshot.
pub(super) const LIMIT: Duration = Duration::from_mins(9);

/// Take a snapshot of a directory of a sandbox, or of its whole root.
///
/// The sandbox is frozen briefly while the changes are captured. Without a path, takes a snapshot of
/// the root, relative to its image; new sandboxes can be created from it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay snapshot a:/project
  inlay snapshot a:/project --name project --exclude node_modules --exclude '*.log'
  inlay snapshot a --name a-backup")]
pub(super) struct SnapshotArgs {
    /// Sandbox, and a directory inside the sandbox
    #[arg(value_name = "SANDBOX[:/PATH]")]
    place: OsString,
    #[command(flatten)]
    kept: RetentionArgs,
}

/// Wait until sealed snapshots are in their stores.
///
/// 'inlay snapshot --wait sealed' returns before the snapshot is in the store; until then, it is lost
/// if this host is lost. Retries all pending snapshots at once. Exits with 1, and lists the problems, if
/// a snapshot is not in its store, an outbox is damaged, or a name was not moved because it had been
/// moved elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay snapshot a:/project --wait sealed && inlay sync
  inlay sync --time 5m
  inlay sync --leave-names                         leave names that were moved elsewhere")]
pub(super) struct SyncArgs {
    /// Maximum time to wait
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "10m")]
    time: Duration,
    /// Leave names that could not be moved, and stop reporting them
    #[arg(long)]
    leave_names: bool,
}

pub(super) fn sync(global: &Global, args: &SyncArgs) -> Result<(), CliError> {
    let deadline = Instant::now() + args.time;
    let progress = global.progress();
    progress.begin("waiting for the store", 0);
    let answer = loop {
        let asked = Instant::now();
        let left = deadline.saturating_duration_since(asked).min(LOOK_AGAIN);
        // Rounded up, so that the last poll is not repeated until the deadline.
        let deadline_ms = u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let answer: SyncAnswer = with_daemon(global, None, |client, _| {
            let names =
                if args.leave_names { ConflictingNames::Leave } else { ConflictingNames::Report };
            Ok(client.post(SYNC, &SyncRequest { deadline_ms, names }, LOOK_AGAIN)?)
        })?;
        let early = is_early(asked.elapsed(), left);
        if answer.waiting == 0 || early || Instant::now() >= deadline {
            break answer;
        }
    };
    progress.finish();
    output::print(global.format(), &answer, |out| report_sync(out, &answer))?;
    let SyncAnswer { waiting, failing, damaged, name_conflicts } = &answer;
    if *waiting == 0 && damaged.is_empty() && name_conflicts.is_empty() {
        return Ok(());
    }
    let (waiting, failing) = (*waiting, failing.len());
    let (damaged, names) = (damaged.len(), name_conflicts.len());
    Err(CliError::NotInSync { waiting, failing, damaged, names })
}

/// Whether the daemon responded after `took`, before the `left` that it may wait: the remaining
/// snapshots cannot be shipped. Allows for its clock; a shorter poll has less slack, so that polls
/// near the deadline are not repeated without a pause.
fn is_early(took: Duration, left: Duration) -> bool {
    took + Duration::from_secs(1).min(left / 2) < left
}

/// Prints snapshots that are not in their stores, with reasons, and name conflicts.
pub(super) fn report_sync(out: &mut dyn Write, answer: &SyncAnswer) -> io::Result<()> {
    for one in &answer.failing {
        let name = one.name.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
        let error = output::escaped(one.error.as_bytes());
        writeln!(out, "not shipped: {}{name}: {error}; attempts: {}", one.snapshot, one.attempts)?;
    }
    for one in &answer.damaged {
        let path = one.path.to_path();
        let path = output::escaped(path.as_os_str().as_encoded_bytes());
        writeln!(out, "damaged: {path}: {}; it stays there", output::escaped(one.why.as_bytes()))?;
    }
    for one in &answer.name_conflicts {
        let found = match one.stands_for {
            Some(id) => format!("it was moved to {id} meanwhile"),
            None => "it was removed meanwhile".to_owned(),
        };
        let (name, id) = (&one.name, one.snapshot);
        writeln!(
            out,
            "name not moved: {name}: {found}; {id} is in the store, and `inlay tag {id} {name}` \
             moves the name"
        )?;
    }
    if answer.waiting == 0 && answer.damaged.is_empty() {
        writeln!(out, "everything is in its store")?;
    }
    Ok(())
}

/// Name, labels, lifetime and contents of a new snapshot.
#[derive(Debug, Args)]
pub(super) struct RetentionArgs {
    /// Assign a name to the snapshot
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Set a label (KEY=VALUE). Can be repeated
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Time to live after the last use, e.g. 72h [default: by kind of snapshot]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// Exclude files that match a gitignore pattern. Can be repeated
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// State of the snapshot to wait for
    #[arg(long, value_enum, default_value_t, value_name = "STATE")]
    wait: WaitFor,
    /// Name or id of the parent snapshot; 'none' for none [default: the last snapshot of the same
    /// directory, or the snapshot mounted there]
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<String>,
}

/// Builds the request, without the sandbox and the path.
pub(super) fn request(global: &Global, kept: &RetentionArgs) -> Result<TakeSnapshot, CliError> {
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
    output::print(global.format(), &taken, |out| {
        report(out, &taken)?;
        match (args.kept.ttl.map(|ttl| ttl.as_secs()), taken.record.ttl_s) {
            (Some(wanted), kept) if kept != Some(wanted) => {
                let kept = kept.map_or_else(
                    || "as long as its kind is by default".to_owned(),
                    |kept| duration::format(Duration::from_secs(kept)),
                );
                writeln!(out, "kept for {kept}: a time to live is only extended")
            }
            _ => Ok(()),
        }
    })?;
    Ok(())
}

/// Prints the snapshot: the id on the first line, then details.
pub(super) fn report(out: &mut dyn Write, taken: &SnapshotTaken) -> io::Result<()> {
    let record = &taken.record;
    writeln!(out, "{}", record.id)?;
    if taken.unchanged {
        return writeln!(out, "nothing has changed since that snapshot");
    }
    writeln!(
        out,
        "{} files, {} in total; {} read, {} stored; frozen for {:.1} ms of {:.2} s",
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
        let path = output::escaped(path.as_os_str().as_encoded_bytes());
        writeln!(out, "left out: {path}: {}", left.why)?;
    }
    match taken.left_out_more {
        0 => Ok(()),
        more => writeln!(out, "left out: {more} more that match excluded patterns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_response_ends_the_wait_at_any_distance_from_the_deadline() {
        let ms = Duration::from_millis;
        for left in [1, 10, 900, 1500, 30_000].map(ms) {
            assert!(is_early(ms(0), left), "{left:?}");
            assert!(!is_early(left, left), "{left:?}");
            assert!(!is_early(left * 9 / 10, left) || left > ms(10_000), "{left:?}");
        }
        assert!(!is_early(ms(29_500), LOOK_AGAIN));
        assert!(is_early(ms(28_000), LOOK_AGAIN));
        assert!(!is_early(ms(0), ms(0)));
    }
}
