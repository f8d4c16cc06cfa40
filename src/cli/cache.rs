//! `inlay cache`: shows, prunes, pins and verifies the host's cache.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use inlay_images::import::Progress;
use inlay_snapshots::host::HostError;
use inlay_snapshots::resolve;
use inlay_snapshots::state::State;
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

/// Manage this host's cache: usage, pruning, pins and verification.
///
/// Works on the state directory, whether or not anything is mounted.
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
    Status(CacheStatusArgs),
    Prune(PruneArgs),
    Pin(PinArgs),
    Unpin(UnpinArgs),
    Verify(CacheVerifyArgs),
}

/// Show the contents and limits of the cache.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache status
  inlay cache status --json | jq .used_bytes")]
struct CacheStatusArgs {}

/// Evict the least recently used contents.
///
/// Keeps files that are open or passed through to the kernel, and pinned contents unless --pinned is
/// given. Exits with 1 if more than the size given with --to remains.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache prune              down to the low mark
  inlay cache prune --to 5G
  inlay cache prune --all        everything not in use or pinned
  inlay cache prune --all --pinned")]
struct PruneArgs {
    /// Target size of the cache [default: its low mark]
    #[arg(long, value_name = "SIZE", conflicts_with = "all")]
    to: Option<ByteSize>,
    /// Evict everything not in use or pinned
    #[arg(long)]
    all: bool,
    /// Also evict pinned contents; the pins remain
    #[arg(long)]
    pinned: bool,
}

/// Keep a snapshot's contents in the cache until it is unpinned.
///
/// Fetches missing contents now. Pinned contents are never evicted to make room, so they must fit into
/// the cache.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache pin base
  inlay cache pin --no-fetch base     keep contents once they are read, fetch nothing now")]
struct PinArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Do not fetch missing contents now; keep those present and those fetched later
    #[arg(long)]
    no_fetch: bool,
}

/// Allow a pinned snapshot's contents to be evicted again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache unpin base
  inlay cache unpin img-3f9c")]
struct UnpinArgs {
    /// Name, id, or unique prefix of a pinned id
    snapshot: String,
}

/// Verify all contents of the cache and remove damaged files.
///
/// Removed contents are fetched from the store again on the next read. Exits with 1 if a file was
/// damaged or unreadable.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cache verify
  inlay cache verify --json | jq .removed")]
struct CacheVerifyArgs {}

pub(super) fn cache(global: &Global, args: &CacheArgs) -> Result<(), CliError> {
    match &args.command {
        CacheCommand::Status(CacheStatusArgs {}) => status(global),
        CacheCommand::Prune(args) => prune(global, args),
        CacheCommand::Pin(args) => pin(global, args),
        CacheCommand::Unpin(args) => unpin(global, args),
        CacheCommand::Verify(CacheVerifyArgs {}) => verify(global),
    }
}

fn open(global: &Global) -> Result<Cache, CliError> {
    let state = State::open(&global.state).map_err(HostError::from)?;
    Ok(Cache::open(&state.cache(), CacheOptions::default()).map_err(HostError::from)?)
}

#[derive(Serialize)]
struct Status {
    /// Configured budget: `auto`, bytes, or per cent.
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
    let stats = cache.stats();
    let (high_bytes, low_bytes) = cache.marks();
    let status = Status {
        budget: cache.budget().to_string(),
        budget_bytes: stats.budget_bytes,
        high_bytes,
        low_bytes,
        used_bytes: stats.disk_bytes,
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
    let pruned = Pruned { evicted, used_bytes: cache.stats().disk_bytes };
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
    /// Size of the snapshot's contents when all are cached.
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
    // Drain fetches in flight so that their contents reach the cache.
    reader.close();
    cache.settle();
    fetched?;
    let answer = PinAnswer { id, bytes };
    Ok(output::print(global.format(), &answer, |out| {
        writeln!(out, "{id} is pinned, {}", output::bytes(bytes))
    })?)
}

/// Returns the groups and whole contents of a snapshot, and the decoded size of its groups in bytes.
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

/// Fetches all contents by reading every file.
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

/// Discards bytes and reports them as progress.
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
    progress.begin("verifying", cache.stats().disk_bytes);
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
