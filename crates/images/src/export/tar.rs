//! Exports a snapshot as a tar archive. Deterministic: equal snapshots yield equal bytes.

use std::io::Write;

use inlay_store::format::{FileKind, Index};
use tar::EntryType;

use super::content::{Content, copy_failed};
use super::error::{ExportError, Omission, escaped};
use super::pax::{self, EXTENDED_LEN_MAX, PaxEntry, PaxRecords, SHORT_FIELD_MAX};
use super::walk::{IndexWalk, Node, Place, WalkStep};
use super::{Export, Report};

/// Intended use of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Unpacking as is.
    Archive,
    /// The layer of an image, in which a name that begins with `.wh.` is a whiteout.
    Layer,
}

/// Writes the whole snapshot to `out` and flushes it.
pub(super) fn write(
    export: &Export<'_>,
    purpose: Purpose,
    out: &mut dyn Write,
) -> Result<Report, ExportError> {
    let mut writer = TarWriter { export, purpose, out, report: Report::default() };
    let mut walk = IndexWalk::new(export.index);
    writer.step(&walk, WalkStep::Enter(walk.root()?))?;
    while let Some(step) = walk.step()? {
        writer.step(&walk, step)?;
    }
    pax::write_end(writer.out).and_then(|()| writer.out.flush()).map_err(unwritten(b""))?;
    Ok(writer.report)
}

struct TarWriter<'a> {
    export: &'a Export<'a>,
    purpose: Purpose,
    out: &'a mut dyn Write,
    report: Report,
}

impl<'a> TarWriter<'a> {
    fn step(&mut self, walk: &IndexWalk<'_>, step: WalkStep<'_>) -> Result<(), ExportError> {
        let (node, first) = match step {
            WalkStep::Leave(_) => return Ok(()),
            WalkStep::Enter(node) | WalkStep::Node(node) => (node, None),
            WalkStep::Link { node, first } => (node, Some(first)),
        };
        if let Some(omission) = self.omission(walk, &node, first) {
            self.report.warnings.add(walk.path(), omission);
            return Ok(());
        }
        self.report.entries += 1;
        self.export.progress.advance(1, 0);
        match (node.attr.kind, first) {
            (_, Some(first)) => {
                let target = archive_path(&walk.names_to(first).join(&b'/'), FileKind::Regular);
                self.header(walk, &node, EntryType::Link, &target)
            }
            (FileKind::Regular, None) => self.file(walk, &node),
            (kind, None) => {
                let link = match kind {
                    FileKind::Symlink => {
                        self.index().symlink(node.inode).map_err(|e| walk.wrong(e))?
                    }
                    _ => &[],
                };
                self.header(walk, &node, entry_type(kind), link)
            }
        }
    }

    fn index(&self) -> &'a Index {
        self.export.index
    }

    fn omission(
        &self,
        walk: &IndexWalk<'_>,
        node: &Node<'_>,
        first: Option<Place<'_>>,
    ) -> Option<Omission> {
        let device = node.attr.device;
        // An object omitted at its first name cannot be a link target either.
        let hidden = |path: &[u8]| {
            self.purpose == Purpose::Layer
                && path.split(|&b| b == b'/').any(|name| name.starts_with(b".wh."))
        };
        if node.attr.kind == FileKind::Socket {
            Some(Omission::Socket)
        } else if device.major > SHORT_FIELD_MAX || device.minor > SHORT_FIELD_MAX {
            Some(Omission::DeviceNumber)
        } else if hidden(walk.path())
            || first.is_some_and(|first| hidden(&walk.names_to(first).join(&b'/')))
        {
            Some(Omission::LooksLikeWhiteout)
        } else {
            None
        }
    }

    fn header(
        &mut self,
        walk: &IndexWalk<'_>,
        node: &Node<'_>,
        kind: EntryType,
        link: &[u8],
    ) -> Result<(), ExportError> {
        let extended = match kind {
            // Further names carry no attributes; the first name has them.
            EntryType::Link => PaxRecords::default(),
            _ => self.attributes(walk, node)?,
        };
        let path = archive_path(walk.path(), node.attr.kind);
        let entry = PaxEntry {
            path: &path,
            kind,
            link,
            attr: &node.attr,
            stored_len: 0,
            sparse_size: None,
        };
        pax::write_headers(&entry, extended, self.out).map_err(unwritten(walk.path()))
    }

    fn attributes(&self, walk: &IndexWalk<'_>, node: &Node<'_>) -> Result<PaxRecords, ExportError> {
        let mut extended = PaxRecords::default();
        for attribute in self.index().xattrs(node.inode).map_err(|e| walk.wrong(e))?.iter() {
            let (name, value) = attribute.map_err(|e| walk.wrong(e))?;
            extended.add_xattr(name, value);
            if extended.byte_len() > EXTENDED_LEN_MAX {
                return Err(ExportError::TooLarge {
                    path: escaped(walk.path()),
                    what: "extended attributes",
                    found: extended.byte_len() as u64,
                    limit: EXTENDED_LEN_MAX as u64,
                });
            }
        }
        Ok(extended)
    }

    fn file(&mut self, walk: &IndexWalk<'_>, node: &Node<'_>) -> Result<(), ExportError> {
        let extended = self.attributes(walk, node)?;
        let content = Content::of(self.export.index, node.inode, node.attr.size)
            .map_err(|e| walk.wrong(e))?;
        let map = if content.is_dense() {
            Vec::new()
        } else {
            pax::sparse_map(&content.data, content.size)
        };
        let entry = PaxEntry {
            path: walk.path(),
            kind: EntryType::Regular,
            link: &[],
            attr: &node.attr,
            stored_len: map.len() as u64 + content.data_len(),
            sparse_size: (!content.is_dense()).then_some(content.size),
        };
        let failed = unwritten(walk.path());
        pax::write_headers(&entry, extended, self.out).map_err(&failed)?;
        self.out.write_all(&map).map_err(&failed)?;
        for range in &content.data {
            content
                .copy(range, self.export.bytes, self.out)
                .map_err(|error| copy_failed(walk.path(), error))?;
            self.report.bytes += range.end - range.start;
            self.export.progress.advance(0, range.end - range.start);
        }
        pax::pad(entry.stored_len, self.out).map_err(&failed)
    }
}

fn unwritten(path: &[u8]) -> impl Fn(std::io::Error) -> ExportError {
    move |source| ExportError::Object { path: escaped(path), doing: "writing the archive", source }
}

/// Returns the path of a member: `./` for the root, with a trailing slash for directories.
fn archive_path(path: &[u8], kind: FileKind) -> Vec<u8> {
    let mut path = if path.is_empty() { b".".to_vec() } else { path.to_vec() };
    if kind == FileKind::Directory {
        path.push(b'/');
    }
    path
}

fn entry_type(kind: FileKind) -> EntryType {
    match kind {
        FileKind::Directory => EntryType::Directory,
        FileKind::Symlink => EntryType::Symlink,
        FileKind::CharDevice => EntryType::Char,
        FileKind::BlockDevice => EntryType::Block,
        FileKind::Fifo => EntryType::Fifo,
        // Sockets have been omitted before.
        FileKind::Regular | FileKind::Socket => EntryType::Regular,
    }
}
