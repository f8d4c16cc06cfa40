//! `inlay ls`, `cat`, `stat` and `tree`: inspects a snapshot without mounting it.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use clap::Args;
use inlay_base::text::EscapedBytes;
use inlay_images::export::CopyError;
use inlay_snapshots::host::Host;
use inlay_snapshots::{open_index, resolve};
use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{Attr, FileData, FileKind, Index, InodeIdx};
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::Global;
use super::error::CliError;
use super::output::{self, Columns, Exact, OutputFormat, escaped};
use super::path::{LastLink, Target};
use super::reader::Reader;

/// List a directory of a snapshot, without mounting it.
///
/// Symbolic links in paths are followed within the snapshot, never outside it. Control characters in
/// names are escaped on a terminal, and printed as they are to a pipe or file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay ls base
  inlay ls -l base:/usr/bin
  inlay ls -R img-3f9c:/etc")]
pub(super) struct LsArgs {
    /// Snapshot, or a path in it: SNAPSHOT[:/PATH]
    target: OsString,
    /// Long format: mode, links, owner, group, size, time, name
    #[arg(short = 'l', long)]
    long: bool,
    /// List subdirectories recursively
    #[arg(short = 'R', long)]
    recursive: bool,
    /// List the directory itself, not its contents
    #[arg(short = 'd', long)]
    directory: bool,
}

/// Print files of a snapshot, without mounting it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay cat base:/etc/os-release
  inlay cat base:/usr/bin/env > env")]
pub(super) struct CatArgs {
    /// Files, as SNAPSHOT:/PATH
    #[arg(required = true)]
    targets: Vec<OsString>,
}

/// Show the metadata of a file or directory in a snapshot.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay stat base:/usr/bin/python3
  inlay stat --json base:/etc/shadow")]
pub(super) struct StatArgs {
    /// File or directory, as SNAPSHOT:/PATH
    target: OsString,
    /// Follow symbolic links
    #[arg(short = 'L', long)]
    dereference: bool,
}

/// Show a snapshot's directories as a tree.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay tree -L 2 base
  inlay tree -d base:/usr")]
pub(super) struct TreeArgs {
    /// Snapshot, or a path in it: SNAPSHOT[:/PATH]
    target: OsString,
    /// Maximum depth
    #[arg(short = 'L', long, value_name = "LEVELS")]
    level: Option<usize>,
    /// List directories only
    #[arg(short = 'd', long)]
    directories: bool,
}

/// A file system object in the JSON output.
#[derive(Debug, Serialize)]
struct Object {
    /// Path relative to the listed directory; the path itself for one object.
    path: Exact,
    inode: InodeIdx,
    #[serde(flatten)]
    attr: Attr,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Exact>,
}

impl Object {
    fn new(index: &Index, path: &[u8], inode: InodeIdx) -> Result<Self, CliError> {
        let attr = index.attr(inode)?;
        let target = match attr.kind {
            FileKind::Symlink => Some(index.symlink(inode)?.into()),
            _ => None,
        };
        Ok(Self { path: path.into(), inode, attr, target })
    }

    /// Columns of `ls -l`, without the name.
    fn row(&self) -> Vec<String> {
        let size = match self.attr.kind {
            FileKind::CharDevice | FileKind::BlockDevice => {
                format!("{},{}", self.attr.device.major, self.attr.device.minor)
            }
            _ => self.attr.size.to_string(),
        };
        vec![
            mode(&self.attr),
            self.attr.nlink.to_string(),
            self.attr.uid.to_string(),
            self.attr.gid.to_string(),
            format!("{size:>10}"),
            output::utc(self.attr.mtime.secs),
        ]
    }
}

/// Whether names are escaped.
#[derive(Debug, Clone, Copy)]
enum NameStyle {
    /// Raw bytes, for programs.
    Raw,
    /// Terminal control characters escaped.
    Escaped,
}

impl NameStyle {
    fn write(self, name: &[u8], out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Raw => out.write_all(name),
            Self::Escaped => write!(out, "{}", EscapedBytes(name)),
        }
    }
}

/// Formats type and permissions, e.g. `drwxr-sr-t`.
fn mode(attr: &Attr) -> String {
    let mut text = String::from(attr.kind.letter());
    for (shift, special, on, off) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = attr.perm >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (attr.perm & special != 0, bits & 1 != 0) {
            (true, true) => on,
            (true, false) => off,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn index_of(host: &Host, target: &Target) -> Result<Index, CliError> {
    let id = host.wait(resolve(host.remote(), &target.snapshot))?;
    Ok(host.wait(open_index(host.remote(), host.state(), id))?)
}

pub(super) fn ls(global: &Global, args: &LsArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let target = Target::parse(&args.target)?;
    let index = index_of(&host, &target)?;
    let listing = Listing { index: &index, inode: target.find(&index, LastLink::Follow)?, args };
    // Read everything once before printing: a damaged index fails without partial output.
    let mut columns = Columns::default();
    listing.each(&target.path, &mut |path, inode| {
        columns.measure(&Object::new(&index, path, inode)?.row());
        Ok(())
    })?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match global.format() {
        OutputFormat::Json => {
            let mut json = serde_json::Serializer::pretty(&mut out);
            let mut list = json.serialize_seq(None).map_err(io::Error::from)?;
            listing.each(&target.path, &mut |path, inode| {
                let object = Object::new(&index, path, inode)?;
                Ok(list.serialize_element(&object).map_err(io::Error::from)?)
            })?;
            list.end().map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        OutputFormat::Text => {
            let terminal = io::stdout().is_terminal();
            let names = if terminal { NameStyle::Escaped } else { NameStyle::Raw };
            listing.each(&target.path, &mut |path, inode| {
                if args.long {
                    let object = Object::new(&index, path, inode)?;
                    write!(out, "{}  ", columns.line(&object.row()))?;
                    names.write(path, &mut out)?;
                    if let Some(target) = &object.target {
                        out.write_all(b" -> ")?;
                        names.write(target.as_bytes(), &mut out)?;
                    }
                } else {
                    names.write(path, &mut out)?;
                }
                Ok(out.write_all(b"\n")?)
            })?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Callback with the path and the inode of an object.
type Take<'a> = dyn FnMut(&[u8], InodeIdx) -> Result<(), CliError> + 'a;

/// The objects that `ls` lists, enumerated without buffering.
struct Listing<'a> {
    index: &'a Index,
    inode: InodeIdx,
    args: &'a LsArgs,
}

impl Listing<'_> {
    /// Calls `take` for each object, in index order. `own` is the path of the target itself.
    fn each(&self, own: &[u8], take: &mut Take<'_>) -> Result<(), CliError> {
        let (index, inode) = (self.index, self.inode);
        if self.args.directory || index.attr(inode)?.kind != FileKind::Directory {
            return take(own, inode);
        }
        if !self.args.recursive {
            for entry in index.dir(inode)?.iter() {
                let entry = entry?;
                take(entry.name, entry.inode)?;
            }
            return Ok(());
        }
        let mut path = Vec::new();
        for step in Walk::new(index, inode)? {
            match step? {
                Step::Leave { .. } => pop(&mut path),
                Step::Entry { entry, .. } => {
                    let len = path.len();
                    push(&mut path, entry.name);
                    take(&path, entry.inode)?;
                    if entry.kind != FileKind::Directory {
                        path.truncate(len);
                    }
                }
            }
        }
        Ok(())
    }
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn pop(path: &mut Vec<u8>) {
    let end = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    path.truncate(end);
}

pub(super) fn cat(global: &Global, args: &CatArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let mut out = io::stdout().lock();
    for target in &args.targets {
        let target = Target::parse(target)?;
        let reader = Reader::open(&host, &target.snapshot)?;
        let result = copy(&reader, &target, &mut out);
        reader.close();
        result?;
    }
    out.flush()?;
    Ok(())
}

fn copy(reader: &Reader<'_>, target: &Target, out: &mut dyn Write) -> Result<(), CliError> {
    let index = reader.index();
    let inode = target.find(index, LastLink::Follow)?;
    let attr = index.attr(inode)?;
    if attr.kind != FileKind::Regular {
        return Err(CliError::Path {
            snapshot: target.snapshot.clone(),
            path: escaped(&target.path),
            why: "not a regular file",
        });
    }
    let mut copied = 0;
    match index.data(inode)? {
        FileData::Hole => {}
        FileData::Inline(bytes) => {
            out.write_all(bytes)?;
            copied = bytes.len() as u64;
        }
        FileData::Extents(extents) => {
            for extent in extents.within(0..attr.size) {
                let extent = extent?;
                zeros(extent.file_offset.saturating_sub(copied), out)?;
                let range = extent.file_offset..extent.file_end();
                reader.bytes().copy(inode, range, out).map_err(|error| match error {
                    CopyError::Sink(error) => CliError::Output(error),
                    CopyError::Source(why) => CliError::Damaged(format!(
                        "{}:{}: {why}",
                        target.snapshot,
                        escaped(&target.path)
                    )),
                })?;
                copied = extent.file_end();
            }
        }
    }
    Ok(zeros(attr.size.saturating_sub(copied), out)?)
}

fn zeros(len: u64, out: &mut dyn Write) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), len), out).map(drop)
}

#[derive(Serialize)]
struct Details {
    #[serde(flatten)]
    object: Object,
    mode: String,
    xattrs: Vec<(Exact, Exact)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_blake3: Option<inlay_store::ids::Digest>,
    /// Storage of the contents: `none`, `inline` or `groups`.
    data: &'static str,
    /// Number of extents in groups.
    pieces: usize,
}

pub(super) fn stat(global: &Global, args: &StatArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let target = Target::parse(&args.target)?;
    let index = index_of(&host, &target)?;
    let last = if args.dereference { LastLink::Follow } else { LastLink::Keep };
    let inode = target.find(&index, last)?;
    let object = Object::new(&index, &target.path, inode)?;
    let (data, pieces) = match object.attr.kind {
        FileKind::Regular => match index.data(inode)? {
            FileData::Hole => ("none", 0),
            FileData::Inline(_) => ("inline", 0),
            FileData::Extents(extents) => ("groups", extents.len()),
        },
        _ => ("none", 0),
    };
    let xattrs = index
        .xattrs(inode)?
        .iter()
        .map(|entry| entry.map(|(name, value)| (name.into(), value.into())))
        .collect::<Result<_, _>>()?;
    let details = Details {
        mode: format!("{:06o}", object.attr.mode()),
        xattrs,
        content_blake3: index.content(inode)?,
        data,
        pieces,
        object,
    };
    output::print(global.format(), &details, |out| details_text(&details, out))?;
    Ok(())
}

fn details_text(details: &Details, out: &mut dyn Write) -> io::Result<()> {
    let Object { path, inode, attr, target } = &details.object;
    let arrow = target.as_ref().map_or(String::new(), |to| format!(" -> {to}"));
    writeln!(out, "  path: {path}{arrow}")?;
    writeln!(out, "  type: {:?}, mode {} ({})", attr.kind, details.mode, mode(attr))?;
    writeln!(out, " owner: {}:{}", attr.uid, attr.gid)?;
    writeln!(out, "  size: {} bytes, {} blocks, {} links", attr.size, attr.blocks, attr.nlink)?;
    writeln!(out, " mtime: {}.{:09} UTC", output::utc(attr.mtime.secs), attr.mtime.nanos)?;
    if matches!(attr.kind, FileKind::CharDevice | FileKind::BlockDevice) {
        writeln!(out, "device: {},{}", attr.device.major, attr.device.minor)?;
    }
    writeln!(out, " inode: {}, data: {}, pieces: {}", inode.0, details.data, details.pieces)?;
    if let Some(digest) = details.content_blake3 {
        writeln!(out, "blake3: {digest}")?;
    }
    for (name, value) in &details.xattrs {
        writeln!(out, " xattr: {name} = {value}")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Branch {
    name: Exact,
    kind: FileKind,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<Branch>,
}

pub(super) fn tree(global: &Global, args: &TreeArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let target = Target::parse(&args.target)?;
    let index = index_of(&host, &target)?;
    let inode = target.find(&index, LastLink::Follow)?;
    let mut open: Vec<Branch> = vec![Branch {
        name: target.path.as_slice().into(),
        kind: FileKind::Directory,
        children: Vec::new(),
    }];
    let level = args.level.unwrap_or(usize::MAX).min(LEVELS_MAX);
    for step in Walk::new(&index, inode)? {
        match step? {
            Step::Entry { depth, entry } => {
                let branch =
                    Branch { name: entry.name.into(), kind: entry.kind, children: Vec::new() };
                if entry.kind == FileKind::Directory {
                    open.push(branch);
                } else if depth < level && !args.directories {
                    open.last_mut().map(|parent| parent.children.push(branch)).unwrap_or_default();
                }
            }
            Step::Leave { .. } => {
                let depth = open.len() - 1;
                if let (Some(done), Some(parent)) = (open.pop(), open.last_mut())
                    && depth <= level
                {
                    parent.children.push(done);
                }
            }
        }
    }
    let Some(mut root) = open.pop() else { return Ok(()) };
    sort(&mut root);
    output::print(global.format(), &root, |out| {
        writeln!(out, "{}", root.name)?;
        branches(&root, "", out)
    })?;
    Ok(())
}

/// Maximum depth of a printed tree: printing is recursive.
const LEVELS_MAX: usize = 256;

fn sort(branch: &mut Branch) {
    branch.children.sort_by(|a, b| a.name.cmp(&b.name));
    branch.children.iter_mut().for_each(sort);
}

fn branches(branch: &Branch, indent: &str, out: &mut dyn Write) -> io::Result<()> {
    let Some(last) = branch.children.len().checked_sub(1) else { return Ok(()) };
    for (place, child) in branch.children.iter().enumerate() {
        let (knot, below) =
            if place == last { ("└── ", "    ") } else { ("├── ", "│   ") };
        writeln!(out, "{indent}{knot}{}", child.name)?;
        branches(child, &format!("{indent}{below}"), out)?;
    }
    Ok(())
}
