//! `inlay cache`: what the host's cache has, and what to do about it.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use inlay_store::cache::{
    Cache, CacheOptions, ContentId, DiskState, Evicted, Inventory, PinSet, Spare, Verified,
};
use inlay_store::format::{FileKind, FormatError, GroupIdx, Index, InodeIdx};
use inlay_store::ids::SnapshotId;
use inlay_store::units::ByteSize;
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output;
use super::reader::Reader;
use crate::host::HostError;
use crate::import::Progress;
use crate::snapshots::resolve;
use crate::state::State;

/// Look at this host's cache, make room in it, pin snapshots to it, check it.
///
/// Works on the directory of the state, whether anything is mounted or not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache status
  inlay cache prune --to 5G
  inlay cache pin base
  inlay cache verify")]
pub(super) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    Status(StatusArgs),
    Prune(PruneArgs),
    Pin(PinArgs),
    Unpin(UnpinArgs),
    Verify(VerifyArgs),
}

/// Show what the cache holds and how much it may hold.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache status
  inlay cache status --json | jq .used_bytes")]
struct StatusArgs {}

/// Evict what was used longest ago.
///
/// What is open or passed through to the kernel stays, and so does what is pinned, unless --pinned
/// is given. Exits with 1 if what has to stay is more than the size that was asked for.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache prune              down to the low mark
  inlay cache prune --to 5G
  inlay cache prune --all        everything that is not in use or pinned
  inlay cache prune --all --pinned")]
struct PruneArgs {
    /// Until the cache takes no more than this [default: its low mark]
    #[arg(long, value_name = "SIZE", conflicts_with = "all")]
    to: Option<ByteSize>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// What is pinned, too. The pins stay
    #[arg(long)]
    pinned: bool,
}

/// Keep a snapshot's contents in the cache until it is unpinned.
///
/// What is missing is fetched now. Pinned contents are never evicted to make room, so the cache must
/// have room for them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache pin base
  inlay cache pin --no-fetch base     keep what comes, fetch nothing now")]
struct PinArgs {
    /// Name or id
    snapshot: String,
    /// Only keep what is there and what comes
    #[arg(long)]
    no_fetch: bool,
}

/// Let a pinned snapshot's contents be evicted again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache unpin base
  inlay cache unpin img-3f9c")]
struct UnpinArgs {
    /// Name or id, or the beginning of a pinned id
    snapshot: String,
}

/// Read everything in the cache and remove what is damaged.
///
/// What was removed comes from the store again when it is next read. Exits with 1 if anything was
/// damaged or could not be read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache verify
  inlay cache verify --json | jq .removed")]
struct VerifyArgs {}

pub(super) fn cache(global: &Global, args: &CacheArgs) -> Result<(), CliError> {
    match &args.command {
        CacheCommand::Status(StatusArgs {}) => status(global),
        CacheCommand::Prune(args) => prune(global, args),
        CacheCommand::Pin(args) => pin(global, args),
        CacheCommand::Unpin(args) => unpin(global, args),
        CacheCommand::Verify(VerifyArgs {}) => verify(global),
    }
}

fn open(global: &Global) -> Result<Cache, CliError> {
    let state = State::open(&global.state).map_err(HostError::from)?;
    Ok(Cache::open(&state.cache(), CacheOptions::default()).map_err(HostError::from)?)
}

#[derive(Serialize)]
struct Status {
    /// As it was said: auto, bytes, or per cent.
    budget: String,
    budget_bytes: u64,
    high_bytes: u64,
    low_bytes: u64,
    used_bytes: u64,
    #[serde(flatten)]
    inventory: Inventory,
    pins: Vec<SnapshotId>,
    disk: DiskState,
}

fn status(global: &Global) -> Result<(), CliError> {
    let cache = open(global)?;
    let figures = cache.figures();
    let (high_bytes, low_bytes) = cache.marks();
    let status = Status {
        budget: cache.budget().to_string(),
        budget_bytes: figures.budget_bytes,
        high_bytes,
        low_bytes,
        used_bytes: figures.disk_bytes,
        inventory: cache.inventory().map_err(HostError::from)?,
        pins: cache.pins().map_err(HostError::from)?,
        disk: cache.probe(),
    };
    Ok(output::print(global.format(), &status, |out| show(out, &status))?)
}

fn show(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let bytes = output::bytes;
    let Inventory { groups, group_bytes, contents_whole, contents_partial, content_bytes } =
        status.inventory;
    writeln!(
        out,
        "used      {} of {} (budget {}; evicts above {} down to {})",
        bytes(status.used_bytes),
        bytes(status.budget_bytes),
        status.budget,
        bytes(status.high_bytes),
        bytes(status.low_bytes)
    )?;
    writeln!(out, "groups    {groups}, {}", bytes(group_bytes))?;
    writeln!(
        out,
        "contents  {contents_whole} whole, {contents_partial} in parts, {}",
        bytes(content_bytes)
    )?;
    match status.disk {
        DiskState::Good => writeln!(out, "disk      takes writes")?,
        DiskState::Failing => {
            writeln!(out, "disk      takes no writes: reads stream from the store")?;
        }
    }
    if status.pins.is_empty() {
        return writeln!(out, "pins      none");
    }
    for pin in &status.pins {
        writeln!(out, "pinned    {pin}")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Pruned {
    #[serde(flatten)]
    evicted: Evicted,
    used_bytes: u64,
}

fn prune(global: &Global, args: &PruneArgs) -> Result<(), CliError> {
    let cache = open(global)?;
    let target = match (args.to, args.all) {
        (Some(size), _) => size.0,
        (None, true) => 0,
        (None, false) => cache.marks().1,
    };
    let spare = if args.pinned { Spare::Nothing } else { Spare::Pins };
    let evicted = cache.prune(target, spare).map_err(HostError::from)?;
    let pruned = Pruned { evicted, used_bytes: cache.figures().disk_bytes };
    output::print(global.format(), &pruned, |out| {
        writeln!(
            out,
            "{} freed, {} groups and {} contents; {} used",
            output::bytes(evicted.bytes),
            evicted.groups,
            evicted.contents,
            output::bytes(pruned.used_bytes)
        )
    })?;
    if pruned.used_bytes > target && args.to.is_some() {
        return Err(CliError::Cache(format!(
            "{} stay: {} files are in use or pinned; unmount what uses them, or prune with --pinned",
            output::bytes(pruned.used_bytes),
            evicted.spared
        )));
    }
    Ok(())
}

#[derive(Serialize)]
struct PinAnswer {
    id: SnapshotId,
    /// What the snapshot's contents take when all of them are there.
    bytes: u64,
}

fn pin(global: &Global, args: &PinArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let reader = Reader::open(&host, &args.snapshot)?;
    let (needs, bytes) = needs(reader.index())?;
    let low = reader.cache().marks().1;
    if bytes > low {
        reader.close();
        return Err(CliError::Cache(format!(
            "{} has {} of contents, and the cache holds {} on to: give it more with --cache-size",
            args.snapshot,
            output::bytes(bytes),
            output::bytes(low)
        )));
    }
    let id = reader.id();
    let pinned = reader.cache().pin(&id, &needs).map_err(HostError::from);
    let fetched = pinned
        .map_err(CliError::from)
        .and_then(|()| if args.no_fetch { Ok(()) } else { fetch(global, &reader, bytes) });
    let cache = reader.cache().clone();
    // What was still on its way into the cache is there then.
    reader.close();
    cache.settle();
    fetched?;
    let answer = PinAnswer { id, bytes };
    Ok(output::print(global.format(), &answer, |out| {
        writeln!(out, "{id} is pinned, {}", output::bytes(bytes))
    })?)
}

/// What a snapshot needs of the cache, and how many bytes that is.
fn needs(index: &Index) -> Result<(PinSet, u64), FormatError> {
    let mut needs = PinSet::default();
    let mut bytes = 0u64;
    for group in 0..index.group_count() {
        let group = index.group(GroupIdx(group))?;
        needs.groups.push(group.digest);
        bytes = bytes.saturating_add(u64::from(group.raw_len));
    }
    for inode in (0..index.inode_count()).map(InodeIdx) {
        if index.attr(inode)?.kind != FileKind::Regular {
            continue;
        }
        if let Some(digest) = index.content(inode)? {
            let content = ContentId { digest, size: index.attr(inode)?.size };
            needs.contents.push(content);
        }
    }
    needs.contents.sort_unstable_by_key(|content| content.digest);
    needs.contents.dedup();
    Ok((needs, bytes))
}

/// Reads every file, so that all of it comes.
fn fetch(global: &Global, reader: &Reader<'_>, bytes: u64) -> Result<(), CliError> {
    let progress = global.progress();
    progress.begin("fetching", bytes);
    let index = reader.index();
    for inode in (0..index.inode_count()).map(InodeIdx) {
        let attr = index.attr(inode)?;
        if attr.kind == FileKind::Regular && attr.size > 0 {
            let mut sink = Sink(&progress);
            reader
                .bytes()
                .copy(inode, 0..attr.size, &mut sink)
                .map_err(|error| CliError::Cache(format!("fetching: {error}")))?;
        }
    }
    progress.finish();
    Ok(())
}

/// Takes bytes and tells of them.
struct Sink<'a>(&'a dyn Progress);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.advance(0, bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Serialize)]
struct UnpinAnswer {
    id: SnapshotId,
}

fn unpin(global: &Global, args: &UnpinArgs) -> Result<(), CliError> {
    let cache = open(global)?;
    let pins = cache.pins().map_err(HostError::from)?;
    let begins = |pin: &&SnapshotId| pin.to_string().starts_with(&args.snapshot);
    let mut matching = pins.iter().filter(begins);
    let id = if let (Some(id), None) = (matching.next(), matching.next()) {
        *id
    } else {
        let host = global.host()?;
        host.wait(resolve(host.remote(), &args.snapshot))?
    };
    if !cache.unpin(&id).map_err(HostError::from)? {
        return Err(CliError::Cache(format!(
            "{id} is not pinned; 'inlay cache status' lists pins"
        )));
    }
    Ok(output::print(global.format(), &UnpinAnswer { id }, |out| {
        writeln!(out, "{id} is not pinned any more")
    })?)
}

fn verify(global: &Global) -> Result<(), CliError> {
    let cache = open(global)?;
    let progress = global.progress();
    progress.begin("verifying", cache.figures().disk_bytes);
    let verified = cache
        .verify(&mut |bytes| Progress::advance(&progress, 1, bytes))
        .map_err(HostError::from)?;
    progress.finish();
    output::print(global.format(), &verified, |out| {
        for name in &verified.removed {
            writeln!(out, "{name}: damaged, removed")?;
        }
        for failure in &verified.failed {
            writeln!(out, "{failure}")?;
        }
        let Verified { groups, contents, bytes, .. } = verified;
        writeln!(out, "{groups} groups and {contents} contents, {} read", output::bytes(bytes))
    })?;
    let wrong = verified.removed.len() + verified.failed.len();
    if wrong > 0 {
        return Err(CliError::Damaged(format!(
            "{wrong} files of the cache were damaged or unreadable; check the disk"
        )));
    }
    Ok(())
}
