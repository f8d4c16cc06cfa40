//! Combines an entry's header with the extended headers before it.

use std::ops::Range;

use inlay_store::format::{Device, Timestamp};
use inlay_store::tree::{Meta, NodeKind};
use tar::{EntryType, Header};

use super::number::field;
use super::pax::PaxOverrides;

/// An entry of an archive.
#[derive(Debug)]
pub struct Entry {
    /// Name as stored in the archive.
    pub name: Vec<u8>,
    /// Owner, mode, times and xattrs.
    pub meta: Meta,
    /// Type and contents.
    pub body: Body,
}

/// Type and contents of an entry.
#[derive(Debug)]
pub enum Body {
    /// A regular file. Reading the archive returns the bytes of its ranges.
    Regular {
        /// Size in bytes, holes included.
        size: u64,
        /// Data ranges.
        data: Vec<Range<u64>>,
    },
    /// A further name of the entry with this name.
    HardLink(Vec<u8>),
    /// Any other type.
    Node(NodeKind),
}

/// All headers of an entry.
pub(super) struct Headers<'a> {
    pub(super) header: &'a Header,
    pub(super) extended: PaxOverrides,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
}

impl Headers<'_> {
    pub(super) fn name(&self) -> Vec<u8> {
        let extended = &self.extended;
        (extended.sparse.name.as_ref())
            .or(extended.path.as_ref())
            .or(self.long_name.as_ref())
            .cloned()
            .unwrap_or_else(|| self.header.path_bytes().into_owned())
    }

    fn link_name(&self) -> Vec<u8> {
        (self.extended.link_path.as_ref())
            .or(self.long_link.as_ref())
            .cloned()
            .or_else(|| self.header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default()
    }

    /// Size of the entry's data in the archive, in bytes.
    pub(super) fn stored(&self) -> Result<u64, String> {
        match self.extended.size {
            Some(size) => Ok(size),
            None => number(&self.header.as_old().size, "size"),
        }
    }

    pub(super) fn meta(&mut self) -> Result<Meta, String> {
        let old = self.header.as_old();
        let mode: u64 = number(&old.mode, "mode")?;
        let owner = |extended: Option<u64>, bytes: &[u8], what| match extended {
            Some(id) => u32::try_from(id).map_err(|_| format!("its {what} {id} is too large")),
            None => number(bytes, what),
        };
        let mtime = match self.extended.mtime {
            Some(mtime) => mtime,
            None => Timestamp { secs: number(&old.mtime, "modification time")?, nanos: 0 },
        };
        Ok(Meta {
            perm: u16::try_from(mode & 0o7777).unwrap_or_default(),
            uid: owner(self.extended.uid, &old.uid, "owner")?,
            gid: owner(self.extended.gid, &old.gid, "group")?,
            mtime,
            xattrs: self.extended.take_xattrs()?,
        })
    }

    /// Returns the node; `None` for a regular file. `name` is the entry's.
    pub(super) fn node(&self, name: &[u8]) -> Result<Option<Body>, String> {
        if self.extended.socket {
            return Ok(Some(Body::Node(NodeKind::Socket)));
        }
        let node = match self.header.entry_type() {
            // Pre-POSIX archives mark directories by a trailing slash instead.
            EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => {
                NodeKind::Directory
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => return Ok(None),
            EntryType::Link => return Ok(Some(Body::HardLink(self.link_name()))),
            EntryType::Symlink => NodeKind::Symlink(self.link_name().into()),
            EntryType::Char => NodeKind::CharDevice(self.device()?),
            EntryType::Block => NodeKind::BlockDevice(self.device()?),
            EntryType::Directory => NodeKind::Directory,
            EntryType::Fifo => NodeKind::Fifo,
            other => match other.as_byte() {
                // GNU tar's incremental format: a directory, with a list of names as its data.
                b'D' => NodeKind::Directory,
                b'M' => return Err("archives in several volumes are not supported".into()),
                byte => return Err(format!("its type '{}' is not known", byte.escape_ascii())),
            },
        };
        Ok(Some(Body::Node(node)))
    }

    /// Whether an entry of this type has data in the archive, regardless of its size field.
    pub(super) fn has_data(&self) -> bool {
        use EntryType::{Continuous, GNUSparse, Regular};
        let kind = self.header.entry_type();
        matches!(kind, Regular | Continuous | GNUSparse) || kind.as_byte() == b'D'
    }

    fn device(&self) -> Result<Device, String> {
        let header = self.header;
        let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
            (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
            (None, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
            (None, None) => return Err("its header has no room for a device number".into()),
        };
        let part = |extended: Option<u64>, bytes: &[u8]| match extended {
            Some(part) => u32::try_from(part).map_err(|_| "its device number is too large".into()),
            None => number(bytes, "device number"),
        };
        Ok(Device {
            major: part(self.extended.device_major, major)?,
            minor: part(self.extended.device_minor, minor)?,
        })
    }
}

/// Parses a number in a header's field; fails if it does not fit.
pub(super) fn number<T: TryFrom<i128>>(bytes: &[u8], what: &str) -> Result<T, String> {
    field(bytes).and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
        format!("its {what} '{}' is no valid number", bytes.trim_ascii().escape_ascii())
    })
}
