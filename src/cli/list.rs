//! `inlay snapshots`, `show`, `tag`, `untag`: what the store holds, and under which names.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use futures::TryStreamExt;
use inlay_store::ids::{Kind, SnapshotId};
use inlay_store::remote::{Name, NameRecord, SnapshotRecord};
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::error::CliError;
use super::output::{self, shown};
use crate::host::Host;
use crate::snapshots::{open_index, resolve};

/// List the snapshots in the store.
///
/// The newest comes first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay snapshots
  inlay snapshots --json | jq -r '.[].id'")]
pub(super) struct SnapshotsArgs {
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// Show what is known of a snapshot.
///
/// That is its record, its names, and its image's configuration, which --json gives in full.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay show base
  inlay show --json img-3f9c")]
pub(super) struct ShowArgs {
    /// Name or id
    snapshot: String,
}

/// Let a name stand for a snapshot.
///
/// If it stands for another, it is moved: nobody sees a moment without it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay tag img-3f9c base
  inlay tag base base-2026-01")]
pub(super) struct TagArgs {
    /// Name or id
    snapshot: String,
    /// The name
    name: Name,
}

/// Take a name away; the snapshot stays.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay untag base-2026-01")]
pub(super) struct UntagArgs {
    /// The name
    name: Name,
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    record: SnapshotRecord,
    kind: Kind,
    names: Vec<Name>,
}

fn names_of(host: &Host) -> Result<BTreeMap<SnapshotId, Vec<Name>>, CliError> {
    let mut names: BTreeMap<SnapshotId, Vec<Name>> = BTreeMap::new();
    let records: Vec<NameRecord> =
        host.wait(async { host.remote().names().await?.try_collect().await })?;
    for record in records {
        names.entry(record.id).or_default().push(record.name);
    }
    Ok(names)
}

pub(super) fn snapshots(global: &Global, args: &SnapshotsArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let mut names = names_of(&host)?;
    let records: Vec<SnapshotRecord> =
        host.wait(async { host.remote().snapshots().await?.try_collect().await })?;
    let mut listed: Vec<Listed> = records
        .into_iter()
        .map(|record| Listed {
            kind: record.id.kind,
            names: names.remove(&record.id).unwrap_or_default(),
            record,
        })
        .collect();
    listed.sort_by_key(|one| (std::cmp::Reverse(one.record.created), one.record.id));
    output::print(global.format(), &listed, |out| {
        let head = ["ID", "NAMES", "CREATED (UTC)", "FILES", "CONTENT", "SOURCE"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(listed.iter().map(|one| row(one, args)));
        output::table(out, &rows)
    })?;
    Ok(())
}

fn row(one: &Listed, args: &SnapshotsArgs) -> Vec<String> {
    let mut id = one.record.id.to_string();
    if !args.no_trunc {
        id.truncate(one.record.id.kind.prefix().len() + 1 + 12);
    }
    let names: Vec<&str> = one.names.iter().map(Name::as_str).collect();
    vec![
        id,
        if names.is_empty() { "-".to_owned() } else { names.join(",") },
        output::time(i64::try_from(one.record.created).unwrap_or(i64::MAX)),
        one.record.counts.files.to_string(),
        output::bytes(one.record.content_bytes),
        shown(one.record.source.as_bytes()),
    ]
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    listed: Listed,
    groups: u32,
    /// The image's configuration as it was imported; null where there is none.
    config: Value,
}

pub(super) fn show(global: &Global, args: &ShowArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    let record = host.wait(host.remote().snapshot(&id))?;
    let index = host.wait(open_index(host.remote(), host.state(), id))?;
    let names = names_of(&host)?.remove(&id).unwrap_or_default();
    let shown = Shown {
        listed: Listed { kind: id.kind, names, record },
        groups: index.group_count(),
        config: serde_json::from_slice(index.config()).unwrap_or(Value::Null),
    };
    output::print(global.format(), &shown, |out| text(&shown, out))?;
    Ok(())
}

fn text(it: &Shown, out: &mut dyn Write) -> io::Result<()> {
    let Listed { record, kind, names } = &it.listed;
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    writeln!(out, "      id: {}", record.id)?;
    writeln!(out, "    kind: {kind}")?;
    writeln!(out, "   names: {}", names.join(", "))?;
    let created = i64::try_from(record.created).unwrap_or(i64::MAX);
    writeln!(out, " created: {} UTC by {}", output::time(created), shown(record.tool.as_bytes()))?;
    writeln!(out, "  source: {}", shown(record.source.as_bytes()))?;
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
        writeln!(out, "   label: {}={}", shown(key.as_bytes()), shown(value.as_bytes()))?;
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
    /// What the name stood for before.
    before: Option<SnapshotId>,
}

pub(super) fn tag(global: &Global, args: &TagArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let id = host.wait(resolve(host.remote(), &args.snapshot))?;
    // A whole id is taken as it is, so make sure that there is such a snapshot.
    host.wait(host.remote().snapshot(&id))?;
    let updated = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let record = NameRecord { name: args.name.clone(), id, updated };
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
