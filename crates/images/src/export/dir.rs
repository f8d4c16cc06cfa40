//! Exports a snapshot to a directory on this machine.
//!
//! Every call is relative to a directory descriptor and follows no symbolic link. This guarantees
//! that nothing is written outside the target, even for hostile names and links. Everything is
//! created in a directory of mode 0700. Directories get their owners, permissions and times in a
//! second walk, because the first still has to write into them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use inlay_store::format::{FileKind, Index};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::content::{Content, copy_failed};
use super::cursor::{self, Cursor};
use super::error::{ExportError, Omission, Warnings, escaped};
use super::meta::{self, ObjectRef, Outcome};
use super::staging::{StagedDir, unwritten};
use super::walk::{IndexWalk, Node, Place, WalkStep};
use super::{BUFFER_LEN, Export, Report};

/// Largest device numbers that `mknod` accepts: it packs 12 and 20 bits into 32.
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Writes the whole snapshot into the directory `target`, which must be missing or empty.
pub(super) fn write(export: &Export<'_>, target: &Path) -> Result<Report, ExportError> {
    let staged = StagedDir::new(target, 0o700)?;
    let handle = staged.open().map_err(unwritten(target))?;
    meta::forget_inherited(&handle).map_err(unwritten(target))?;
    let mut writer = DirWriter { export, root: &handle, report: Report::default() };
    writer.objects()?;
    writer.directories()?;
    let report = writer.report;
    staged.commit(&handle)?;
    Ok(report)
}

struct DirWriter<'a> {
    export: &'a Export<'a>,
    root: &'a File,
    report: Report,
}

impl<'a> DirWriter<'a> {
    fn objects(&mut self) -> Result<(), ExportError> {
        let mut walk = IndexWalk::new(self.export.index);
        let mut cursor = Cursor::new(self.root).map_err(failed(b"", "opening the directory"))?;
        self.count();
        while let Some(step) = walk.step()? {
            match step {
                WalkStep::Enter(node) => {
                    cursor
                        .make(name(&node))
                        .and_then(|()| cursor.enter(name(&node)))
                        .map_err(failed(walk.path(), "making the directory"))?;
                    self.count();
                }
                WalkStep::Leave(_) => {
                    cursor.leave().map_err(failed(walk.path(), "leaving the directory"))?;
                }
                WalkStep::Node(node) => self.node(&walk, &cursor, &node)?,
                WalkStep::Link { node, first } => self.link(&walk, &cursor, &node, first)?,
            }
        }
        Ok(())
    }

    fn directories(&mut self) -> Result<(), ExportError> {
        let mut walk = IndexWalk::new(self.export.index);
        let mut cursor = Cursor::new(self.root).map_err(failed(b"", "opening the directory"))?;
        while let Some(step) = walk.step()? {
            match step {
                WalkStep::Enter(node) => cursor
                    .enter(name(&node))
                    .map_err(failed(walk.path(), "opening the directory"))?,
                WalkStep::Leave(node) => {
                    // Ascend first: the permissions may make the directory inaccessible.
                    let left =
                        cursor.leave().map_err(failed(walk.path(), "leaving the directory"))?;
                    self.attributes(&walk, &node, &ObjectRef::Open(left.as_fd()))?;
                }
                WalkStep::Node(_) | WalkStep::Link { .. } => {}
            }
        }
        self.attributes(&walk, &walk.root()?, &ObjectRef::Open(self.root.as_fd()))
    }

    fn node(
        &mut self,
        walk: &IndexWalk<'_>,
        cursor: &Cursor,
        node: &Node<'_>,
    ) -> Result<(), ExportError> {
        match node.attr.kind {
            FileKind::Regular => {
                let file = self.file(walk, cursor, node)?;
                self.attributes(walk, node, &ObjectRef::Open(file.as_fd()))?;
            }
            FileKind::Symlink => {
                let target = self.index().symlink(node.inode).map_err(|e| walk.wrong(e))?;
                rustix::fs::symlinkat(OsStr::from_bytes(target), cursor.dir(), name(node))
                    .map_err(failed(walk.path(), "making the symbolic link"))?;
                self.attributes(
                    walk,
                    node,
                    &ObjectRef::Link { dir: cursor.dir(), name: name(node) },
                )?;
            }
            _ => {
                if !self.special(walk, cursor, node)? {
                    return Ok(());
                }
                self.attributes(
                    walk,
                    node,
                    &ObjectRef::Node { dir: cursor.dir(), name: name(node) },
                )?;
            }
        }
        self.count();
        Ok(())
    }

    fn file(
        &mut self,
        walk: &IndexWalk<'_>,
        cursor: &Cursor,
        node: &Node<'_>,
    ) -> Result<File, ExportError> {
        let flags = OFlags::CREATE
            | OFlags::EXCL
            | OFlags::WRONLY
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let file = rustix::fs::openat(cursor.dir(), name(node), flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(failed(walk.path(), "making the file"))?;
        let content =
            Content::of(self.index(), node.inode, node.attr.size).map_err(|e| walk.wrong(e))?;
        let written = failed(walk.path(), "writing the file");
        let mut out = BufWriter::with_capacity(buffer_len(content.data_len()), &file);
        for range in &content.data {
            // Seeking flushes the buffer, so seek only after a hole.
            if range.start > 0 {
                out.seek(SeekFrom::Start(range.start)).map_err(&written)?;
            }
            content
                .copy(range, self.export.bytes, &mut out)
                .map_err(|error| copy_failed(walk.path(), error))?;
            self.report.bytes += range.end - range.start;
            self.export.progress.advance(0, range.end - range.start);
        }
        out.flush().map_err(&written)?;
        drop(out);
        if !content.is_dense() {
            file.set_len(content.size).map_err(&written)?;
        }
        Ok(file)
    }

    /// Creates a device node, FIFO or socket. Returns false, after a warning, if it may not.
    fn special(
        &mut self,
        walk: &IndexWalk<'_>,
        cursor: &Cursor,
        node: &Node<'_>,
    ) -> Result<bool, ExportError> {
        let kind = node.attr.kind;
        let file_type = match kind {
            FileKind::CharDevice => FileType::CharacterDevice,
            FileKind::BlockDevice => FileType::BlockDevice,
            FileKind::Socket => FileType::Socket,
            _ => FileType::Fifo,
        };
        let device = node.attr.device;
        if device.major > MAJOR_MAX || device.minor > MINOR_MAX {
            self.warn(walk.path(), Omission::DeviceNumber);
            return Ok(false);
        }
        let number = rustix::fs::makedev(device.major, device.minor);
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(cursor.dir(), name(node), file_type, mode, number) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => {
                self.warn(walk.path(), Omission::Node(kind));
                Ok(false)
            }
            Err(error) => Err(failed(walk.path(), "making the node")(error)),
        }
    }

    fn link(
        &mut self,
        walk: &IndexWalk<'_>,
        cursor: &Cursor,
        node: &Node<'_>,
        first: Place<'_>,
    ) -> Result<(), ExportError> {
        let names = walk.names_to(first);
        let (last, dirs) = names.split_last().unwrap_or((&first.name, &[]));
        let made = cursor::descend(self.root, dirs).and_then(|dir| {
            let (from, to) = (OsStr::from_bytes(last), name(node));
            rustix::fs::linkat(&dir, from, cursor.dir(), to, AtFlags::empty())
        });
        match made {
            Ok(()) => {
                self.count();
                Ok(())
            }
            // The target of the link was omitted with its own warning.
            Err(Errno::NOENT) if node.attr.kind != FileKind::Regular => {
                self.warn(walk.path(), Omission::Node(node.attr.kind));
                Ok(())
            }
            Err(error) => Err(failed(walk.path(), "making the hard link")(error)),
        }
    }

    fn attributes(
        &mut self,
        walk: &IndexWalk<'_>,
        node: &Node<'_>,
        object: &ObjectRef<'_>,
    ) -> Result<(), ExportError> {
        let xattrs = self.index().xattrs(node.inode).map_err(|e| walk.wrong(e))?;
        let path = walk.path();
        let owned =
            meta::set_owner(object, &node.attr).map_err(failed(path, "setting the owner"))?;
        if owned == Outcome::NotAllowed {
            self.warn(path, Omission::Owner);
        }
        for attribute in xattrs.iter() {
            let (key, value) = attribute.map_err(|e| walk.wrong(e))?;
            let set = meta::set_xattr(object, key, value)
                .map_err(failed(path, "setting an extended attribute"))?;
            if set == Outcome::NotAllowed {
                self.warn(path, Omission::Xattr(escaped(key)));
            }
        }
        meta::set_mode(object, &node.attr, owned)
            .map_err(failed(path, "setting the permissions"))?;
        meta::set_time(object, &node.attr).map_err(failed(path, "setting the time"))
    }

    fn index(&self) -> &'a Index {
        self.export.index
    }

    fn count(&mut self) {
        self.report.entries += 1;
        self.export.progress.advance(1, 0);
    }

    fn warn(&mut self, path: &[u8], omission: Omission) {
        let warnings: &mut Warnings = &mut self.report.warnings;
        warnings.add(path, omission);
    }
}

fn name<'a>(node: &Node<'a>) -> &'a OsStr {
    OsStr::from_bytes(node.place.name)
}

/// Most files are small; a large buffer for each would cost more than it saves.
fn buffer_len(data_len: u64) -> usize {
    usize::try_from(data_len).map_or(BUFFER_LEN, |len| len.min(BUFFER_LEN))
}

fn failed<E: Into<io::Error>>(path: &[u8], doing: &'static str) -> impl Fn(E) -> ExportError {
    let path = path.to_vec();
    move |source| ExportError::Object { path: escaped(&path), doing, source: source.into() }
}
