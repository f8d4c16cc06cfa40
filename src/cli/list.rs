//! `inlay snapshots`, `show`, `tag` and `untag`: lists snapshots and manages their names.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use inlay_snapshots::host::Host;
use inlay_snapshots::{open_index, resolve};
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::remote::{Name, NameRecord, Remote, SnapshotRecord, StoreError};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::Global;
use super::error::CliError;
use super::output::{self, escaped};

/// Timeout for listing the store when sealed snapshots on this host can be listed instead.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// List the snapshots in the store.
///
/// The newest snapshot comes first. Snapshots with a damaged record are listed without details; damaged
/// records and names are reported, and the exit code is 1.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay snapshots
  inlay snapshots --json | jq -r '.[].id'")]
pub(super) struct SnapshotsArgs {
    /// Do not truncate ids
    #[arg(long)]
    no_trunc: bool,
}

/// Show details of a snapshot.
///
/// Prints its record, its names and the image configuration; --json prints the configuration in full.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay show base
  inlay show --json img-3f9c")]
pub(super) struct ShowArgs {
    /// Name or id of the snapshot
    snapshot: String,
}

/// Assign a name to a snapshot.
///
/// If another snapshot has the name, it is moved atomically.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay tag img-3f9c base
  inlay tag base base-2026-01")]
pub(super) struct TagArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Name to assign
    name: Name,
}

/// Remove a name; the snapshot remains.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay untag base-2026-01")]
pub(super) struct UntagArgs {
    /// Name to remove
    name: Name,
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    record: SnapshotRecord,
    kind: Kind,
    names: Vec<Name>,
}

/// A snapshot with a damaged record.
#[derive(Serialize)]
struct Damaged {
    id: SnapshotId,
    kind: Kind,
    names: Vec<Name>,
    /// Damage, including the key of the object.
    #[serde(rename = "damaged")]
    damage: String,
}

/// A snapshot in the list.
#[derive(Serialize)]
#[serde(untagged)]
enum ListedSnapshot {
    Whole(Box<Listed>),
    Damaged(Damaged),
}

/// Names in a store, by snapshot.
struct StoreNames {
    of: BTreeMap<SnapshotId, Vec<Name>>,
    /// Errors of damaged name records.
    damage: Vec<StoreError>,
}

async fn names_of(remote: &Remote) -> Result<StoreNames, StoreError> {
    let mut names = StoreNames { of: BTreeMap::new(), damage: Vec::new() };
    let mut records = remote.names().await?;
    while let Some(record) = records.next().await {
        match record {
            Ok(NameRecord { name, id, .. }) => names.of.entry(id).or_default().push(name),
            Err(error) if error.is_of_one_object() => names.damage.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Lists all snapshots, and the errors of damaged name records.
async fn all(remote: &Remote) -> Result<(Vec<ListedSnapshot>, Vec<StoreError>), StoreError> {
    let mut names = names_of(remote).await?;
    let mut entries = Vec::new();
    let mut records = remote.snapshots().await?;
    while let Some((id, record)) = records.next().await {
        let (kind, names) = (id.kind, names.of.remove(&id).unwrap_or_default());
        entries.push(match record {
            Ok(record) => ListedSnapshot::Whole(Box::new(Listed { record, kind, names })),
            Err(error) if error.is_of_one_object() => {
                ListedSnapshot::Damaged(Damaged { id, kind, names, damage: error.to_string() })
            }
            Err(error) => return Err(error),
        });
    }
    // Newest first; damaged records have no time and come last.
    entries.sort_by_key(|entry| match entry {
        ListedSnapshot::Whole(one) => (0, Reverse(one.record.created), one.record.id),
        ListedSnapshot::Damaged(one) => (1, Reverse(0), one.id),
    });
    Ok((entries, names.damage))
}

/// As [`all`], with a fallback to the snapshots sealed on this host if the store fails or times out.
fn all_or_sealed(host: &Host) -> Result<(Vec<ListedSnapshot>, Vec<StoreError>), CliError> {
    let Some(sealed) = host.sealed()? else { return Ok(host.wait(all(host.remote()))?) };
    let why = match host.wait(async { timeout(STORE_WAIT, all(host.remote())).await }) {
        Ok(Ok(all)) => return Ok(all),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("{} does not answer within {STORE_WAIT:?}", host.remote().description()),
    };
    output::note(format_args!(
        "inlay: only those sealed on this host are listed, without those of the store: {}",
        escaped(why.as_bytes())
    ));
    Ok(host.wait(all(&sealed))?)
}

pub(super) fn snapshots(global: &Global, args: &SnapshotsArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let (entries, names_damage) = all_or_sealed(&host)?;
    output::print(global.format(), &entries, |out| {
        let head = ["ID", "NAMES", "CREATED (UTC)", "FILES", "CONTENT", "SOURCE"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(entries.iter().map(|entry| match entry {
            ListedSnapshot::Whole(one) => row(one, args),
            ListedSnapshot::Damaged(one) => damaged_row(one, args),
        }));
        output::table(out, &rows)
    })?;
    let records = entries.iter().filter_map(|entry| match entry {
        ListedSnapshot::Whole(_) => None,
        ListedSnapshot::Damaged(one) => Some(one.damage.clone()),
    });
    let damage: Vec<String> = records.chain(names_damage.iter().map(ToString::to_string)).collect();
    for line in &damage {
        output::note(format_args!("warning: {}", escaped(line.as_bytes())));
    }
    match damage.len() {
        0 => Ok(()),
        count => Err(CliError::Damaged(format!(
            "{count} records in {} are damaged; import the sources of these snapshots again, or restore \
             the records from another copy of the store",
            host.remote().description()
        ))),
    }
}

/// Formats an id for the list: 12 digits, unless `--no-trunc` is given.
fn short(id: &SnapshotId, args: &SnapshotsArgs) -> String {
    let mut text = id.to_string();
    if !args.no_trunc {
        text.truncate(id.kind.prefix().len() + 1 + 12);
    }
    text
}

fn joined(names: &[Name]) -> String {
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    if names.is_empty() { "-".to_owned() } else { names.join(",") }
}

fn damaged_row(one: &Damaged, args: &SnapshotsArgs) -> Vec<String> {
    let unknown = || "-".to_owned();
    let id = short(&one.id, args);
    vec![id, joined(&one.names), unknown(), unknown(), unknown(), "(damaged record)".to_owned()]
}

fn row(one: &Listed, args: &SnapshotsArgs) -> Vec<String> {
    vec![
        short(&one.record.id, args),
        joined(&one.names),
        output::utc(i64::try_from(one.record.created).unwrap_or(i64::MAX)),
        one.record.counts.files.to_string(),
        output::bytes(one.record.content_bytes),
        escaped(one.record.source.as_bytes()),
    ]
}

#[derive(Serialize)]
struct SnapshotDetails {
    #[serde(flatten)]
    listed: Listed,
    groups: u32,
    /// Image configuration as imported; null if there is none.
    config: Value,
}

pub(super) fn show(global: &Global, args: &ShowArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    let record = host.wait(host.remote().snapshot(&id))?;
    let index = host.wait(open_index(host.remote(), host.state(), id))?;
    let mut names = match (host.wait(names_of(host.remote())), host.sealed()?) {
        // The store is unreachable: show only names sealed on this host.
        (Err(_), Some(sealed)) => host.wait(names_of(&sealed))?,
        (names, _) => names?,
    };
    for error in &names.damage {
        output::note(format_args!("warning: {}", escaped(error.to_string().as_bytes())));
    }
    let names = names.of.remove(&id).unwrap_or_default();
    let shown = SnapshotDetails {
        listed: Listed { kind: id.kind, names, record },
        groups: index.group_count(),
        config: serde_json::from_slice(index.config()).unwrap_or(Value::Null),
    };
    output::print(global.format(), &shown, |out| text(&shown, out))?;
    Ok(())
}

fn text(it: &SnapshotDetails, out: &mut dyn Write) -> io::Result<()> {
    let Listed { record, kind, names } = &it.listed;
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    writeln!(out, "      id: {}", record.id)?;
    writeln!(out, "    kind: {kind}")?;
    writeln!(out, "   names: {}", names.join(", "))?;
    let created = i64::try_from(record.created).unwrap_or(i64::MAX);
    writeln!(out, " created: {} UTC by {}", output::utc(created), escaped(record.tool.as_bytes()))?;
    writeln!(out, "  source: {}", escaped(record.source.as_bytes()))?;
    if let Some(parent) = record.parent {
        writeln!(out, "  parent: {parent}")?;
    }
    let counts = record.counts;
    writeln!(
        out,
        " objects: {} files, {} directories, {} others",
        counts.files, counts.directories, counts.others
    )?;
    writeln!(
        out,
        "   bytes: {} of content in {} groups of {} blobs; {} were new",
        output::bytes(record.content_bytes),
        it.groups,
        record.blobs,
        output::bytes(record.stored_bytes_new),
    )?;
    writeln!(
        out,
        "   index: {}, {} in the store",
        output::bytes(record.index_bytes),
        output::bytes(record.index_packed_bytes),
    )?;
    for (key, value) in &record.labels {
        writeln!(out, "   label: {}={}", escaped(key.as_bytes()), escaped(value.as_bytes()))?;
    }
    if let Some(config) = it.config.get("config").and_then(Value::as_object) {
        for key in ["Entrypoint", "Cmd", "Env", "User", "WorkingDir", "ExposedPorts", "Labels"] {
            if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
                writeln!(out, "   image: {key} = {value}")?;
            }
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Tagged {
    name: Name,
    id: SnapshotId,
    /// Snapshot that had the name before.
    before: Option<SnapshotId>,
}

pub(super) fn tag(global: &Global, args: &TagArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    // `resolve` does not look up a full id, so check that the snapshot exists.
    if host.wait(host.remote().stored_snapshot(&id))?.is_none() {
        let store = host.remote().description();
        return Err(CliError::Damaged(match host.sealed()? {
            Some(sealed) if host.wait(sealed.stored_snapshot(&id))?.is_some() => {
                format!(
                    "{id} is sealed on this host and not in {store} yet; run `inlay sync` first"
                )
            }
            _ => format!("{id} is not in {store}; 'inlay snapshots' lists them"),
        }));
    }
    let record = NameRecord::now(args.name.clone(), id);
    let before = host.wait(host.remote().set_name(&record))?;
    let answer = Tagged { name: args.name.clone(), id, before };
    output::print(global.format(), &answer, |out| {
        writeln!(out, "{}", answer.id)?;
        match answer.before {
            Some(before) if before != id => writeln!(out, "{} was {before}", answer.name.as_str()),
            _ => Ok(()),
        }
    })?;
    Ok(())
}

pub(super) fn untag(global: &Global, args: &UntagArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let Some(record) = host.wait(host.remote().name(&args.name))? else {
        return Err(CliError::Damaged(format!(
            "no name '{}' in {}; 'inlay snapshots' lists the names",
            args.name.as_str(),
            host.remote().description()
        )));
    };
    host.wait(host.remote().remove_name(&args.name))?;
    output::print(global.format(), &record, |out| writeln!(out, "{}", record.id))?;
    Ok(())
}
