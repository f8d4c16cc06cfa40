//! `inlay profile`: shows, exports, imports and deletes the prefetch profiles of snapshots.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use inlay_images::export::StagedFile;
use inlay_snapshots::host::Host;
use inlay_snapshots::{
    Keep, Part, PathPart, files_of_groups, groups_of_paths, open_index, read_paths, resolve,
    write_paths,
};
use inlay_store::format::{FormatError, GroupIdx, Index};
use inlay_store::ids::SnapshotId;
use inlay_store::profile::{ENCODED_LEN_MAX, Entry, Profile, ProfileLabel, Run, UnitSet};
use inlay_store::remote::ObjectKey;
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output::{self, escaped};

/// Maximum length of a list of paths, in bytes.
const LIST_LEN_MAX: u64 = 256 << 20;
/// Number of paths shown per group.
const PATHS_SHOWN: usize = 3;

/// Manage prefetch profiles of snapshots.
///
/// A profile is the order in which earlier runs first touched a snapshot's groups. It is stored with the
/// snapshot. A profile only affects the order of fetching: contents are always verified.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay profile show base
  inlay profile export --paths base base.paths       paths that earlier runs read, in order
  inlay profile import --paths base-2 base.paths     applied to the next version
  inlay profile drop --all base")]
pub(super) struct ProfileArgs {
    #[command(subcommand)]
    command: ProfileCommand,
}

#[derive(Debug, Subcommand)]
enum ProfileCommand {
    Show(ProfileShowArgs),
    Export(ProfileExportArgs),
    Import(ProfileImportArgs),
    Drop(DropArgs),
}

/// Show the groups of a profile, in order.
///
/// MS is the mean time of the first touch, measured from the first touch of a run, with long pauses cut
/// short. SEEN is the number of recorded runs that touched the group. TOUCHED is how much of it was read, in
/// units of 64 KiB of decoded data.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay profile show base
  inlay profile show --label python3 base
  inlay profile show --json base | jq .stored_bytes")]
struct ProfileShowArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Label of the profile [default: default]
    #[arg(long)]
    label: Option<ProfileLabel>,
}

/// Write a profile to a file, as stored or as a list of paths.
///
/// A list has one path per line, in the order in which the files' groups are fetched. OFFSET+LENGTH
/// before a path selects a part of the file. A list can be edited, and imported as a profile of any other
/// snapshot.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay profile export base base.profile
  inlay profile export --paths base -")]
struct ProfileExportArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Output file; '-' for standard output
    file: PathBuf,
    /// Label of the profile
    #[arg(long, default_value_t)]
    label: ProfileLabel,
    /// Write a list of paths
    #[arg(long)]
    paths: bool,
    /// Write JSON with the location of all groups and the order of their first touches, for simulations
    #[arg(long, conflicts_with = "paths")]
    trace: bool,
}

/// Import a profile or a list of paths, and replace the existing profile.
///
/// A profile belongs to one snapshot. A list of paths can be applied to any: missing paths are skipped and
/// counted, and a directory includes everything below it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay profile import base base.profile
  inlay profile import --paths base-2 base.paths
  find /srv/app -name '*.py' -printf '/%P\\n' | inlay profile import --paths app -")]
struct ProfileImportArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Input file; '-' for standard input
    file: PathBuf,
    /// Label to import as [default: the profile's label, or 'default' for a list]
    #[arg(long)]
    label: Option<ProfileLabel>,
    /// Read a list of paths
    #[arg(long)]
    paths: bool,
}

/// Delete a profile of a snapshot; the snapshot remains.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay profile drop base
  inlay profile drop --label python3 base
  inlay profile drop --all base")]
struct DropArgs {
    /// Name or id of the snapshot
    snapshot: String,
    /// Label of the profile
    #[arg(long, default_value_t)]
    label: ProfileLabel,
    /// Delete all profiles of the snapshot
    #[arg(long, conflicts_with = "label")]
    all: bool,
}

pub(super) fn profile(global: &Global, args: &ProfileArgs) -> Result<(), CliError> {
    match &args.command {
        ProfileCommand::Show(args) => show(global, args),
        ProfileCommand::Export(args) => export(global, args),
        ProfileCommand::Import(args) => import(global, args),
        ProfileCommand::Drop(args) => drop_profiles(global, args),
    }
}

/// A resolved snapshot, with the name used for it.
struct NamedSnapshot<'a> {
    host: &'a Host,
    name: &'a str,
    id: SnapshotId,
}

impl<'a> NamedSnapshot<'a> {
    fn find(host: &'a Host, name: &'a str) -> Result<Self, CliError> {
        let id = host.wait(resolve(host.remote(), name))?;
        Ok(Self { host, name, id })
    }

    fn index(&self) -> Result<Index, CliError> {
        Ok(self.host.wait(open_index(self.host.remote(), self.host.state(), self.id))?)
    }

    fn profile(&self, label: &ProfileLabel) -> Result<Profile, CliError> {
        let found = self.host.wait(self.host.remote().profile(&self.id, label))?;
        found.ok_or_else(|| self.no_profile(label))
    }

    fn no_profile(&self, label: &ProfileLabel) -> CliError {
        let store = self.host.remote().description();
        // Best effort, for the message: the profile is missing even if the store cannot be listed.
        let labels = self.host.wait(self.host.remote().profiles(&self.id)).unwrap_or_default();
        let labels: Vec<&str> = labels.iter().map(ProfileLabel::as_str).collect();
        CliError::Profile(if labels.is_empty() {
            format!(
                "no profile '{label}' of {} in {store}; 'inlay profile import --paths' makes one",
                self.name
            )
        } else {
            format!(
                "no profile '{label}' of {} in {store}, but there are: {}; choose one with --label",
                self.name,
                labels.join(", ")
            )
        })
    }
}

#[derive(Serialize)]
struct ProfileDetails {
    snapshot: SnapshotId,
    label: ProfileLabel,
    runs: u32,
    stored_bytes: u64,
    raw_bytes: u64,
    touched_bytes: u64,
    groups: Vec<GroupJson>,
}

#[derive(Serialize)]
struct GroupJson {
    group: GroupIdx,
    at_ms: u32,
    seen: u32,
    stored_len: u32,
    raw_len: u32,
    /// Decoded bytes of the touched units.
    touched_len: u32,
    /// The first [`PATHS_SHOWN`] paths.
    files: Vec<String>,
    #[serde(skip)]
    files_count: u64,
}

fn show(global: &Global, args: &ProfileShowArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let snapshot = NamedSnapshot::find(&host, &args.snapshot)?;
    let mut profile = snapshot.profile(&args.label.clone().unwrap_or_default())?;
    let index = snapshot.index()?;
    let dropped = profile.retain_groups(index.group_count());
    let shown = shown_profile(&index, &profile)?;
    output::print(global.format(), &shown, |out| {
        write_shown(&shown, out)?;
        match dropped {
            0 => Ok(()),
            some => writeln!(out, "{some} groups that the snapshot does not have are passed over"),
        }
    })?;
    Ok(())
}

fn shown_profile(index: &Index, profile: &Profile) -> Result<ProfileDetails, FormatError> {
    let files = files_of_groups(index, profile.groups(), Keep::First(PATHS_SHOWN))?;
    let group = |entry: &Entry| {
        let group = index.group(entry.group)?;
        let files = files.get(&entry.group);
        Ok(GroupJson {
            group: entry.group,
            at_ms: entry.at_ms,
            seen: entry.seen.count(),
            stored_len: group.stored_len,
            raw_len: group.raw_len,
            touched_len: touched_len(entry.units, group.raw_len),
            files: files
                .map(|files| files.first.iter().map(|part| escaped(&part.path)).collect())
                .unwrap_or_default(),
            files_count: files.map_or(0, |files| files.count),
        })
    };
    let groups = profile.entries().iter().map(group).collect::<Result<Vec<_>, FormatError>>()?;
    Ok(ProfileDetails {
        snapshot: profile.snapshot,
        label: profile.label.clone(),
        runs: profile.runs(),
        stored_bytes: groups.iter().map(|group| u64::from(group.stored_len)).sum(),
        raw_bytes: groups.iter().map(|group| u64::from(group.raw_len)).sum(),
        touched_bytes: groups.iter().map(|group| u64::from(group.touched_len)).sum(),
        groups,
    })
}

fn touched_len(units: UnitSet, raw_len: u32) -> u32 {
    let ranges = units.units(raw_len).filter_map(|unit| unit.range(raw_len));
    ranges.map(|range| range.end - range.start).sum()
}

fn write_shown(it: &ProfileDetails, out: &mut dyn Write) -> io::Result<()> {
    let head = ["ORDER", "GROUP", "MS", "SEEN", "STORED", "DECODED", "TOUCHED", "FILES"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend((1..).zip(&it.groups).map(|(order, group): (u64, _)| {
        let files = match (group.files.first(), group.files_count) {
            (None, _) => "-".to_owned(),
            (Some(first), 0 | 1) => first.clone(),
            (Some(first), count) => format!("{first} and {} more", count - 1),
        };
        vec![
            order.to_string(),
            group.group.0.to_string(),
            group.at_ms.to_string(),
            format!("{}/{}", group.seen, it.runs),
            output::bytes(group.stored_len.into()),
            output::bytes(group.raw_len.into()),
            output::bytes(group.touched_len.into()),
            files,
        ]
    }));
    output::table(out, &rows)?;
    writeln!(
        out,
        "{} groups, {} stored, {} decoded, {} touched; profile '{}' of {}, runs: {}",
        it.groups.len(),
        output::bytes(it.stored_bytes),
        output::bytes(it.raw_bytes),
        output::bytes(it.touched_bytes),
        it.label,
        it.snapshot,
        it.runs,
    )
}

#[derive(Serialize)]
struct Exported {
    snapshot: SnapshotId,
    label: ProfileLabel,
    file: String,
    bytes: u64,
}

fn export(global: &Global, args: &ProfileExportArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let snapshot = NamedSnapshot::find(&host, &args.snapshot)?;
    let profile = snapshot.profile(&args.label)?;
    let bytes = match (args.paths, args.trace) {
        (true, _) => path_list(&snapshot, profile)?,
        (false, true) => trace(&snapshot, profile)?,
        (false, false) => profile.encode(),
    };
    if args.file == Path::new("-") {
        let mut out = io::stdout().lock();
        out.write_all(&bytes)?;
        return Ok(out.flush()?);
    }
    let staged = StagedFile::new(&args.file)?;
    staged.write(&bytes)?;
    staged.commit()?;
    let answer = Exported {
        snapshot: snapshot.id,
        label: args.label.clone(),
        file: args.file.display().to_string(),
        bytes: bytes.len() as u64,
    };
    output::print(global.format(), &answer, |out| {
        writeln!(out, "{}: {}", answer.file, output::bytes(answer.bytes))
    })?;
    Ok(())
}

/// All groups of a snapshot, and the touches of a profile.
#[derive(Serialize)]
struct Trace {
    groups: Vec<TracedGroup>,
    touches: Vec<TracedTouch>,
}

#[derive(Serialize)]
struct TracedGroup {
    blob: u32,
    offset: u64,
    stored_len: u32,
    raw_len: u32,
    /// Inode of the file if the group belongs to one file only.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<u32>,
}

#[derive(Serialize)]
struct TracedTouch {
    group: u32,
    at_us: u64,
}

fn trace(snapshot: &NamedSnapshot<'_>, mut profile: Profile) -> Result<Vec<u8>, CliError> {
    let index = snapshot.index()?;
    profile.retain_groups(index.group_count());
    let groups = (0..index.group_count()).map(|number| {
        let group = index.group(GroupIdx(number))?;
        Ok(TracedGroup {
            blob: group.blob.0,
            offset: group.offset,
            stored_len: group.stored_len,
            raw_len: group.raw_len,
            owner: group.owner.map(|inode| inode.0),
        })
    });
    let groups = groups.collect::<Result<_, FormatError>>()?;
    let touches = profile
        .entries()
        .iter()
        .map(|entry| TracedTouch { group: entry.group.0, at_us: u64::from(entry.at_ms) * 1000 });
    let trace = Trace { groups, touches: touches.collect() };
    Ok(serde_json::to_vec(&trace).map_err(io::Error::other)?)
}

/// Returns the list of paths of a profile: the files of each group in order, each part once.
fn path_list(snapshot: &NamedSnapshot<'_>, mut profile: Profile) -> Result<Vec<u8>, CliError> {
    let index = snapshot.index()?;
    profile.retain_groups(index.group_count());
    let files = files_of_groups(&index, profile.groups(), Keep::All)?;
    let mut listed = HashSet::new();
    let parts = profile
        .groups()
        .filter_map(|group| files.get(&group))
        .flat_map(|files| &files.first)
        .filter(|part| listed.insert(*part));
    let mut text = Vec::new();
    let left_out = write_paths(&joined(parts), &mut text)?;
    if left_out > 0 {
        output::note(format_args!("inlay: {left_out} paths hold a line break and are left out"));
    }
    Ok(text)
}

/// Joins parts that are adjacent both in the list and in the file.
fn joined<'p>(parts: impl Iterator<Item = &'p PathPart>) -> Vec<PathPart> {
    let mut joined: Vec<PathPart> = Vec::new();
    for part in parts {
        if let (Some(last), Part::Range(next)) = (joined.last_mut(), &part.part)
            && last.path == part.path
            && let Part::Range(range) = &mut last.part
            && range.end == next.start
        {
            range.end = next.end;
        } else {
            joined.push(part.clone());
        }
    }
    joined
}

#[derive(Serialize)]
struct Imported {
    snapshot: SnapshotId,
    label: ProfileLabel,
    /// Number of groups in the imported profile.
    groups: u64,
    /// Number of paths (of a list) or groups (of a profile) that the snapshot does not have.
    missing: u64,
}

fn import(global: &Global, args: &ProfileImportArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let snapshot = NamedSnapshot::find(&host, &args.snapshot)?;
    let (profile, missing) =
        if args.paths { from_paths(&snapshot, args)? } else { from_profile(&snapshot, args)? };
    host.wait(host.remote().put_profile(&profile))?;
    let answer = Imported {
        snapshot: snapshot.id,
        label: profile.label.clone(),
        groups: profile.entries().len() as u64,
        missing: missing as u64,
    };
    output::print(global.format(), &answer, |out| {
        writeln!(
            out,
            "profile '{}' of {}: {} groups",
            answer.label, answer.snapshot, answer.groups
        )?;
        let what = if args.paths { "paths" } else { "groups" };
        match answer.missing {
            0 => Ok(()),
            some => writeln!(out, "{some} {what} that the snapshot does not have were passed over"),
        }
    })?;
    Ok(())
}

fn from_profile(
    snapshot: &NamedSnapshot<'_>,
    args: &ProfileImportArgs,
) -> Result<(Profile, usize), CliError> {
    let file = args.file.display();
    let bytes = read(&args.file, ENCODED_LEN_MAX)?;
    let mut profile = Profile::decode(&bytes)
        .map_err(|reason| CliError::Profile(format!("can't use {file}: {reason}")))?;
    if profile.snapshot != snapshot.id {
        return Err(CliError::Profile(format!(
            "{file} is of {}, not of {}: its groups hold other bytes there; carry it over with \
             'profile export --paths' and 'profile import --paths'",
            profile.snapshot, snapshot.id
        )));
    }
    if let Some(label) = &args.label {
        profile.label = label.clone();
    }
    let missing = profile.retain_groups(snapshot.index()?.group_count());
    Ok((profile, missing))
}

fn from_paths(
    snapshot: &NamedSnapshot<'_>,
    args: &ProfileImportArgs,
) -> Result<(Profile, usize), CliError> {
    let paths = read_paths(&read(&args.file, LIST_LEN_MAX)?);
    let found = groups_of_paths(&snapshot.index()?, &paths)?;
    if found.groups.is_empty() {
        return Err(CliError::Profile(format!(
            "{} names nothing of {} that is fetched: of {} paths, {} are not there, and the others \
             have no contents or stand in the index",
            args.file.display(),
            snapshot.name,
            paths.len(),
            found.missing.len()
        )));
    }
    let label = args.label.clone().unwrap_or_default();
    let run = Run::in_order(found.groups);
    Ok((Profile::of_run(snapshot.id, label, &run), found.missing.len()))
}

/// Reads a file, or standard input for `-`. Fails if it is longer than `len_max` bytes.
fn read(path: &Path, len_max: u64) -> Result<Vec<u8>, CliError> {
    let wrong = |why: String| CliError::Profile(format!("{}: {why}", path.display()));
    let mut bytes = Vec::new();
    let done = if path == Path::new("-") {
        io::stdin().lock().take(len_max + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(len_max + 1).read_to_end(&mut bytes))
    };
    done.map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > len_max {
        return Err(wrong(format!("more than the {} that are read", output::bytes(len_max))));
    }
    Ok(bytes)
}

#[derive(Serialize)]
struct Dropped {
    snapshot: SnapshotId,
    dropped: Vec<ProfileLabel>,
}

fn drop_profiles(global: &Global, args: &DropArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let snapshot = NamedSnapshot::find(&host, &args.snapshot)?;
    let (remote, id) = (host.remote(), snapshot.id);
    let labels = if args.all { host.wait(remote.profiles(&id))? } else { vec![args.label.clone()] };
    for label in &labels {
        // Check existence only: a damaged profile can be deleted, too.
        let key = ObjectKey::Profile { snapshot: id, label: label.clone() };
        if !args.all && host.wait(remote.len(&key))?.is_none() {
            return Err(snapshot.no_profile(label));
        }
        host.wait(remote.remove_profile(&id, label))?;
    }
    let answer = Dropped { snapshot: id, dropped: labels };
    output::print(global.format(), &answer, |out| {
        answer.dropped.iter().try_for_each(|label| writeln!(out, "{label}"))
    })?;
    Ok(())
}
