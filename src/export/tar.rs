//! A snapshot as a tar archive. The same snapshot gives the same bytes.

use std::io::Write;

use inlay_store::format::{FileKind, Index};
use tar::EntryType;

use super::content::{Content, copy_failed};
use super::error::{ExportError, Omission, shown};
use super::pax::{self, EXTENDED_LEN_MAX, Entry, Extended, SHORT_FIELD_MAX};
use super::walk::{Node, Place, Step, Walk};
use super::{Export, Report};

/// What the archive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be unpacked as it is.
    Archive,
    /// The layer of an image, where a name that begins with `.wh.` means a deletion.
    Layer,
}

/// Writes the whole snapshot to `out` and flushes it.
pub(super) fn write(
    export: &Export<'_>,
    purpose: Purpose,
    out: &mut dyn Write,
) -> Result<Report, ExportError> {
    let mut writer = TarWriter { export, purpose, out, report: Report::default() };
    let mut walk = Walk::new(export.index);
    writer.step(&walk, Step::Enter(walk.root()?))?;
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
    fn step(&mut self, walk: &Walk<'_>, step: Step<'_>) -> Result<(), ExportError> {
        let (node, first) = match step {
            Step::Leave(_) => return Ok(()),
            Step::Enter(node) | Step::Node(node) => (node, None),
            Step::Link { node, first } => (node, Some(first)),
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
        walk: &Walk<'_>,
        node: &Node<'_>,
        first: Option<Place<'_>>,
    ) -> Option<Omission> {
        let device = node.attr.device;
        // What can't stand at its first name can't be linked to either.
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
        walk: &Walk<'_>,
        node: &Node<'_>,
        kind: EntryType,
        link: &[u8],
    ) -> Result<(), ExportError> {
        let extended = match kind {
            // A further name says nothing of its own: the first one has the attributes.
            EntryType::Link => Extended::default(),
            _ => self.attributes(walk, node)?,
        };
        let path = archive_path(walk.path(), node.attr.kind);
        let entry =
            Entry { path: &path, kind, link, attr: &node.attr, stored_len: 0, sparse_size: None };
        pax::write_headers(&entry, extended, self.out).map_err(unwritten(walk.path()))
    }

    fn attributes(&self, walk: &Walk<'_>, node: &Node<'_>) -> Result<Extended, ExportError> {
        let mut extended = Extended::default();
        for attribute in self.index().xattrs(node.inode).map_err(|e| walk.wrong(e))?.iter() {
            let (name, value) = attribute.map_err(|e| walk.wrong(e))?;
            extended.add_xattr(name, value);
            if extended.len() > EXTENDED_LEN_MAX {
                return Err(ExportError::TooLarge {
                    path: shown(walk.path()),
                    what: "extended attributes",
                    found: extended.len() as u64,
                    limit: EXTENDED_LEN_MAX as u64,
                });
            }
        }
        Ok(extended)
    }

    fn file(&mut self, walk: &Walk<'_>, node: &Node<'_>) -> Result<(), ExportError> {
        let extended = self.attributes(walk, node)?;
        let content = Content::of(self.export.index, node.inode, node.attr.size)
            .map_err(|e| walk.wrong(e))?;
        let map = if content.is_dense() {
            Vec::new()
        } else {
            pax::sparse_map(&content.data, content.size)
        };
        let entry = Entry {
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
    move |source| ExportError::Object { path: shown(path), doing: "writing the archive", source }
}

/// `./` for the root, and a slash after a directory's name.
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
        // A socket does not come this far.
        FileKind::Regular | FileKind::Socket => EntryType::Regular,
    }
}
