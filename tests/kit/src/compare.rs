//! Compares two trees completely and says how they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use crate::attributes;

/// What to do about holes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holes {
    /// Both files must have data and holes at the same offsets.
    Compare,
    /// Only what is read counts.
    Ignore,
}

/// What of two trees is compared. By default: names, types, permissions, owners, sizes, times of
/// modification, device numbers, link counts, hard-link groups, targets of symbolic links,
/// extended attributes (access control lists are among them), contents and holes.
///
/// What a tree cannot carry to another file system is left out: device and inode numbers,
/// allocated blocks, sizes of directories, times of access and of change.
#[derive(Clone, Debug)]
pub struct Comparison {
    holes: Holes,
    unseen_attributes: Vec<OsString>,
    unseen_paths: Vec<PathBuf>,
    unseen_fields: Vec<(&'static str, &'static str)>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self {
            holes: Holes::Compare,
            unseen_attributes: Vec::new(),
            unseen_paths: Vec::new(),
            unseen_fields: Vec::new(),
        }
    }
}

/// One way in which two objects of the same path differ. The left value comes first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Only the left tree has this path.
    OnlyLeft,
    /// Only the right tree has this path.
    OnlyRight,
    /// A field of the attributes differs: its name and both values, as text.
    Field(&'static str, String, String),
    /// The contents differ, first at this offset.
    Bytes(u64),
    /// An extended attribute differs or is missing on one side.
    Attribute(OsString, Option<Vec<u8>>, Option<Vec<u8>>),
}

/// One difference between two trees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where, relative to the roots of the trees.
    pub path: PathBuf,
    /// What differs there.
    pub what: What,
}

/// All differences between two trees, at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Differences(pub Vec<Difference>);

/// Why two trees are not the same, or could not be compared.
#[derive(Debug)]
pub enum NotSame {
    /// They differ.
    Different(Differences),
    /// An object could not be read.
    Unreadable(PathBuf, io::Error),
}

impl Comparison {
    /// Takes holes as given.
    #[must_use]
    pub fn holes(mut self, holes: Holes) -> Self {
        self.holes = holes;
        self
    }

    /// Leaves out the extended attributes whose names begin with `prefix`.
    #[must_use]
    pub fn without_attributes(mut self, prefix: &str) -> Self {
        self.unseen_attributes.push(prefix.into());
        self
    }

    /// Leaves out what has this path, relative to the roots, in either tree.
    #[must_use]
    pub fn without_path(mut self, path: &str) -> Self {
        self.unseen_paths.push(path.into());
        self
    }

    /// Leaves out a field, by its name in [`What::Field`], of objects of a type such as
    /// `directory`.
    #[must_use]
    pub fn without_field(mut self, kind: &'static str, field: &'static str) -> Self {
        self.unseen_fields.push((kind, field));
        self
    }

    /// Compares the trees below two directories, and the directories themselves.
    pub fn run(&self, left: &Path, right: &Path) -> Result<(), NotSame> {
        let left = self.read_tree(left)?;
        let right = self.read_tree(right)?;
        let mut differences = Vec::new();
        let mut add = |path: &Path, what| {
            differences.push(Difference { path: path.to_path_buf(), what });
        };
        let mut paths: BTreeSet<&PathBuf> = left.keys().chain(right.keys()).collect();
        paths.retain(|path| !self.unseen_paths.contains(path));
        for path in paths {
            match (left.get(path), right.get(path)) {
                (Some(left), Some(right)) => {
                    left.compare(right, |what| match what {
                        What::Field(field, ..)
                            if self.unseen_fields.contains(&(left.kind(), field)) => {}
                        what => add(path, what),
                    });
                    if let Some(at) = left.first_different_byte(right)? {
                        add(path, What::Bytes(at));
                    }
                }
                (Some(_), None) => add(path, What::OnlyLeft),
                (None, _) => add(path, What::OnlyRight),
            }
        }
        if differences.is_empty() {
            Ok(())
        } else {
            Err(NotSame::Different(Differences(differences)))
        }
    }

    fn read_tree(&self, root: &Path) -> Result<BTreeMap<PathBuf, Object>, NotSame> {
        let mut objects = BTreeMap::new();
        let mut names_of: BTreeMap<(u64, u64), BTreeSet<PathBuf>> = BTreeMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            // Joining an empty path would add a slash, which follows a symbolic link.
            let full = if path.as_os_str().is_empty() { root.into() } else { root.join(&path) };
            let unreadable = |error| NotSame::Unreadable(full.clone(), error);
            let object = self.read_object(&full).map_err(unreadable)?;
            if object.metadata.is_dir() {
                for entry in fs::read_dir(&full).map_err(unreadable)? {
                    waiting.push(path.join(entry.map_err(unreadable)?.file_name()));
                }
            } else if object.metadata.nlink() > 1 {
                let inode = (object.metadata.dev(), object.metadata.ino());
                names_of.entry(inode).or_default().insert(path.clone());
            }
            objects.insert(path, object);
        }
        for names in names_of.into_values() {
            for name in &names {
                if let Some(object) = objects.get_mut(name) {
                    object.hard_links.clone_from(&names);
                }
            }
        }
        Ok(objects)
    }

    fn read_object(&self, path: &Path) -> io::Result<Object> {
        let metadata = fs::symlink_metadata(path)?;
        let target = if metadata.is_symlink() { Some(fs::read_link(path)?) } else { None };
        let mut attributes = attributes::read(path)?;
        attributes.retain(|name, _| !self.is_unseen(name));
        let data = if metadata.is_file() && self.holes == Holes::Compare {
            data_ranges(&File::open(path)?, metadata.len())?
        } else {
            Vec::new()
        };
        Ok(Object {
            path: path.to_path_buf(),
            metadata,
            target,
            attributes,
            data,
            hard_links: BTreeSet::new(),
        })
    }

    fn is_unseen(&self, name: &OsStr) -> bool {
        let name = name.as_encoded_bytes();
        self.unseen_attributes.iter().any(|prefix| name.starts_with(prefix.as_encoded_bytes()))
    }
}

struct Object {
    path: PathBuf,
    metadata: Metadata,
    target: Option<PathBuf>,
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// Where the file has data, start and end; the rest is holes.
    data: Vec<(u64, u64)>,
    /// All names of the inode, if it has several.
    hard_links: BTreeSet<PathBuf>,
}

impl Object {
    fn kind(&self) -> &'static str {
        let kind = self.metadata.file_type();
        match () {
            () if kind.is_file() => "file",
            () if kind.is_dir() => "directory",
            () if kind.is_symlink() => "symbolic link",
            () if kind.is_char_device() => "character device",
            () if kind.is_block_device() => "block device",
            () if kind.is_fifo() => "FIFO",
            () if kind.is_socket() => "socket",
            () => "unknown",
        }
    }

    /// The fields that must agree, each as text.
    fn fields(&self) -> Vec<(&'static str, String)> {
        let m = &self.metadata;
        // The size of a directory is the file system's own affair.
        let size = if m.is_dir() { 0 } else { m.len() };
        vec![
            ("type", self.kind().to_owned()),
            ("permissions", format!("{:04o}", m.mode() & 0o7777)),
            ("owner", m.uid().to_string()),
            ("group", m.gid().to_string()),
            ("size", size.to_string()),
            ("modified", format!("{} s {} ns", m.mtime(), m.mtime_nsec())),
            ("device", format!("{:#x}", m.rdev())),
            ("link count", m.nlink().to_string()),
            ("target", format!("{:?}", self.target)),
            ("hard links", format!("{:?}", self.hard_links)),
            ("data", format!("{:?}", self.data)),
        ]
    }

    fn compare(&self, other: &Self, mut add: impl FnMut(What)) {
        for ((name, left), (_, right)) in self.fields().into_iter().zip(other.fields()) {
            if left != right {
                add(What::Field(name, left, right));
            }
        }
        let names: BTreeSet<&OsString> =
            self.attributes.keys().chain(other.attributes.keys()).collect();
        for name in names {
            let left = self.attributes.get(name);
            let right = other.attributes.get(name);
            if left != right {
                add(What::Attribute(name.clone(), left.cloned(), right.cloned()));
            }
        }
    }

    fn first_different_byte(&self, other: &Self) -> Result<Option<u64>, NotSame> {
        if !self.metadata.is_file() || !other.metadata.is_file() {
            return Ok(None);
        }
        let mut at = 0;
        let mut left = Pieces::open(&self.path)?;
        let mut right = Pieces::open(&other.path)?;
        loop {
            let (a, b) = (left.next()?, right.next()?);
            if a != b {
                let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
                return Ok(Some(at + same as u64));
            }
            if a.is_empty() {
                return Ok(None);
            }
            at += a.len() as u64;
        }
    }
}

/// A file's content, piece by piece; both sides of a comparison have pieces of the same length.
struct Pieces<'a> {
    path: &'a Path,
    file: File,
    buffer: Vec<u8>,
}

impl<'a> Pieces<'a> {
    const LEN: u64 = 256 * 1024;

    fn open(path: &'a Path) -> Result<Self, NotSame> {
        let file = File::open(path).map_err(|e| NotSame::Unreadable(path.to_path_buf(), e))?;
        Ok(Self { path, file, buffer: Vec::new() })
    }

    fn next(&mut self) -> Result<&[u8], NotSame> {
        self.buffer.clear();
        (&self.file)
            .take(Self::LEN)
            .read_to_end(&mut self.buffer)
            .map_err(|e| NotSame::Unreadable(self.path.to_path_buf(), e))?;
        Ok(&self.buffer)
    }
}

/// Where a file has data, as the file system tells with `SEEK_DATA` and `SEEK_HOLE`.
pub fn data_ranges(file: &File, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        ranges.push((start, at));
    }
    Ok(ranges)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}: ", self.path.display())?;
        match &self.what {
            What::OnlyLeft => write!(f, "only in the left tree"),
            What::OnlyRight => write!(f, "only in the right tree"),
            What::Field(name, left, right) => write!(f, "{name}: {left} / {right}"),
            What::Bytes(at) => write!(f, "contents differ from offset {at}"),
            What::Attribute(name, left, right) => {
                let text = |value: &Option<Vec<u8>>| {
                    value.as_ref().map_or("none".into(), |value| value.escape_ascii().to_string())
                };
                write!(f, "attribute {}: {} / {}", name.display(), text(left), text(right))
            }
        }
    }
}

impl fmt::Debug for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 40;
        for difference in self.0.iter().take(SHOWN) {
            writeln!(f, "\n  {difference}")?;
        }
        let more = self.0.len().saturating_sub(SHOWN);
        if more > 0 {
            writeln!(f, "  and {more} more")?;
        }
        Ok(())
    }
}
