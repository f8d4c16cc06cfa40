//! A tree that holds every kind of object a root file system may hold. Making it needs root.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};

use crate::acl::{self, Entry};
use crate::content;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The sizes at which formats have their boundaries.
const SIZES: [usize; 17] = [
    0,
    1,
    255,
    256,
    257,
    4095,
    4096,
    4097,
    16 * KIB,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    256 * KIB,
    MIB - 1,
    MIB,
    MIB + 1,
    3 * MIB + 7,
];

/// A recipe for a tree with every kind of object.
#[derive(Clone, Copy, Debug)]
pub struct EveryKind {
    /// How many files the directory `many` holds.
    pub entries: usize,
    /// How many bytes each of the large files has.
    pub large: usize,
}

impl Default for EveryKind {
    fn default() -> Self {
        Self { entries: 1000, large: 20 * MIB }
    }
}

impl EveryKind {
    /// Makes the tree in `root`, a directory that exists and is empty. Two trees made from the
    /// same recipe are the same.
    pub fn make(&self, root: &Path) -> io::Result<()> {
        sizes(root, self.large)?;
        hard_links(root)?;
        symbolic_links(root)?;
        special_files(root)?;
        sparse_files(root)?;
        permissions(root)?;
        attributes(root)?;
        access_lists(root)?;
        names(root)?;
        directories(root, self.entries)?;
        fs::set_permissions(root, Permissions::from_mode(0o751))?;
        set_times(root)?;
        times(root)
    }
}

fn directory(root: &Path, name: &str) -> io::Result<PathBuf> {
    let path = root.join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn sizes(root: &Path, large: usize) -> io::Result<()> {
    let dir = directory(root, "sizes")?;
    for size in SIZES {
        fs::write(dir.join(format!("random-{size}")), content::random("sizes", size))?;
        let text = content::compressible("sizes", size);
        fs::write(dir.join(format!("text-{size}")), text)?;
    }
    fs::write(dir.join("written-zeros"), vec![0; 128 * KIB])?;

    let dir = directory(root, "large")?;
    let random = content::random("large", large);
    fs::write(dir.join("random"), &random)?;
    fs::write(dir.join("random-again"), &random)?;
    let mut shifted = File::create(dir.join("random-shifted"))?;
    shifted.write_all(b"a few bytes before all the others")?;
    shifted.write_all(&random)?;
    fs::write(dir.join("text"), content::compressible("large", large))?;

    let dir = directory(root, "duplicates")?;
    for copy in ["one", "two", "three"] {
        fs::write(dir.join(copy), content::random("duplicate", 40_000))?;
    }
    Ok(())
}

fn hard_links(root: &Path) -> io::Result<()> {
    let dir = directory(root, "hard-links")?;
    let elsewhere = directory(root, "hard-links/elsewhere")?;
    fs::write(dir.join("file-1"), b"one inode, three names\n")?;
    fs::hard_link(dir.join("file-1"), dir.join("file-2"))?;
    fs::hard_link(dir.join("file-1"), elsewhere.join("file-3"))?;
    symlink("file-1", dir.join("symlink-1"))?;
    fs::hard_link(dir.join("symlink-1"), dir.join("symlink-2"))?;
    node(&dir.join("fifo-1"), FileType::Fifo, 0, 0)?;
    fs::hard_link(dir.join("fifo-1"), dir.join("fifo-2"))?;
    fs::write(dir.join("empty-1"), b"")?;
    fs::hard_link(dir.join("empty-1"), dir.join("empty-2"))
}

fn symbolic_links(root: &Path) -> io::Result<()> {
    let dir = directory(root, "symbolic-links")?;
    symlink("../sizes/text-257", dir.join("relative"))?;
    symlink("/etc/hostname", dir.join("absolute"))?;
    symlink("nowhere/at/all", dir.join("dangling"))?;
    symlink("..", dir.join("to-a-directory"))?;
    symlink("itself", dir.join("itself"))?;
    symlink(OsStr::from_bytes(b"not \xff UTF-8 \x80"), dir.join("not-utf-8"))?;
    // The longest target that the kernel takes: PATH_MAX without the closing zero.
    symlink(OsStr::from_bytes(&[b'x'; 4095]), dir.join("longest"))
}

fn node(path: &Path, kind: FileType, major: u32, minor: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o640);
    Ok(mknodat(CWD, path, kind, mode, makedev(major, minor))?)
}

fn special_files(root: &Path) -> io::Result<()> {
    let dir = directory(root, "special")?;
    node(&dir.join("null"), FileType::CharacterDevice, 1, 3)?;
    node(&dir.join("char-large-numbers"), FileType::CharacterDevice, 511, 1_048_575)?;
    node(&dir.join("disk"), FileType::BlockDevice, 8, 0)?;
    node(&dir.join("block-large-numbers"), FileType::BlockDevice, 259, 70_000)?;
    node(&dir.join("fifo"), FileType::Fifo, 0, 0)?;
    node(&dir.join("socket"), FileType::Socket, 0, 0)
}

fn sparse_files(root: &Path) -> io::Result<()> {
    let dir = directory(root, "sparse")?;
    let sparse = |name: &str, len: usize, pieces: &[(usize, usize)]| -> io::Result<()> {
        let file = File::create(dir.join(name))?;
        file.set_len(len as u64)?;
        for &(offset, piece) in pieces {
            file.write_all_at(&content::random(name, piece), offset as u64)?;
        }
        Ok(())
    };
    sparse("several-holes", 8 * MIB, &[(MIB, 64 * KIB), (3 * MIB, 4096), (5 * MIB, 2 * MIB)])?;
    sparse("leading-hole", 2 * MIB, &[(2 * MIB - 5000, 5000)])?;
    sparse("trailing-hole", 2 * MIB, &[(0, 10_000)])?;
    sparse("only-a-hole", 3 * MIB + 17, &[])?;
    sparse("small-hole", 20_000, &[(0, 100), (16 * KIB, 100)])?;
    sparse("tiny-hole", 200, &[])
}

fn permissions(root: &Path) -> io::Result<()> {
    let dir = directory(root, "permissions")?;
    for mode in [0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1644, 0o7777] {
        let path = dir.join(format!("file-{mode:04o}"));
        fs::write(&path, format!("{mode:o}\n"))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        let path = directory(&dir, &format!("directory-{mode:04o}"))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for (uid, gid) in [(1000, 1000), (0, 42), (65_534, 65_534), (u32::MAX - 1, u32::MAX - 1)] {
        let path = dir.join(format!("owner-{uid}-{gid}"));
        fs::write(&path, b"owned\n")?;
        lchown(&path, Some(uid), Some(gid))?;
    }
    let path = dir.join("owned-symlink");
    symlink("target", &path)?;
    lchown(&path, Some(1000), Some(1001))
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    lsetxattr(path, name, value, XattrFlags::empty())
        .map_err(|error| io::Error::other(format!("{}: {name}: {error}", path.display())))
}

/// `struct vfs_cap_data`, revision 2, with the effective bit: `cap_net_bind_service`.
fn file_capability() -> Vec<u8> {
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    const NET_BIND_SERVICE: u32 = 1 << 10;
    [REVISION_2_EFFECTIVE, NET_BIND_SERVICE, 0, 0, 0].map(u32::to_le_bytes).concat()
}

fn attributes(root: &Path) -> io::Result<()> {
    let dir = directory(root, "attributes")?;
    let file = dir.join("file");
    fs::write(&file, b"with attributes\n")?;
    set_attribute(&file, "user.plain", b"value")?;
    set_attribute(&file, "user.empty", b"")?;
    set_attribute(&file, "user.binary", b"\0\xff\n\x80")?;
    set_attribute(&file, "user.large", &content::random("attribute", 2000))?;
    set_attribute(&file, "trusted.hidden", b"for root alone")?;
    set_attribute(&dir, "user.on-a-directory", b"yes")?;
    set_attribute(&dir, "trusted.on-a-directory", b"yes")?;

    let program = dir.join("program-with-capability");
    fs::write(&program, b"#!/bin/true\n")?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    set_attribute(&program, "security.capability", &file_capability())?;

    let link = dir.join("symlink");
    symlink("file", &link)?;
    set_attribute(&link, "trusted.on-a-symlink", b"yes")?;
    let fifo = dir.join("fifo");
    node(&fifo, FileType::Fifo, 0, 0)?;
    set_attribute(&fifo, "trusted.on-a-fifo", b"yes")?;

    // Many files with the same attributes, as a labelled system has them.
    for name in 0..20 {
        let path = dir.join(format!("labelled-{name}"));
        fs::write(&path, b"")?;
        set_attribute(&path, "user.label", b"system_u:object_r:usr_t:s0")?;
    }
    Ok(())
}

fn access_lists(root: &Path) -> io::Result<()> {
    let dir = directory(root, "access-lists")?;
    let access = acl::encode(&[
        Entry::Owner(6),
        Entry::User(1000, 6),
        Entry::User(1001, 4),
        Entry::OwningGroup(4),
        Entry::Group(50, 5),
        Entry::Mask(7),
        Entry::Other(0),
    ]);
    let file = dir.join("file");
    fs::write(&file, b"with a list\n")?;
    set_attribute(&file, "system.posix_acl_access", &access)?;

    let default = acl::encode(&[
        Entry::Owner(7),
        Entry::User(1000, 7),
        Entry::OwningGroup(5),
        Entry::Mask(7),
        Entry::Other(5),
    ]);
    let inherited = directory(&dir, "default")?;
    set_attribute(&inherited, "system.posix_acl_default", &default)?;
    set_attribute(&inherited, "system.posix_acl_access", &access)?;
    fs::write(inherited.join("inherits"), b"from its directory\n")
}

fn names(root: &Path) -> io::Result<()> {
    let dir = directory(root, "names")?;
    let bytes: [&[u8]; 12] = [
        b"not-utf-8-\xff\xfe\x80",
        b"\x01control\x1f",
        b"new\nline",
        b" spaces ",
        b"back\\slash",
        b"quote'\"",
        b"-rf",
        b"...",
        b".wh",
        "gr\u{fc}n".as_bytes(),
        "gru\u{308}n".as_bytes(),
        b"*?[a]",
    ];
    for name in bytes {
        fs::write(dir.join(OsStr::from_bytes(name)), name)?;
    }
    fs::write(dir.join(OsStr::from_bytes(&[b'n'; 255])), b"a long name\n")?;
    fs::create_dir(dir.join(OsStr::from_bytes(&[0xe9; 255])))?;
    // Where sorting by name and sorting by path differ.
    for name in ["a", "b"] {
        fs::create_dir(dir.join(name))?;
        fs::write(dir.join(name).join("inside"), b"")?;
        for after in ["-", ".", "0", "\u{fc}"] {
            fs::write(dir.join(format!("{name}{after}")), after)?;
        }
    }
    Ok(())
}

fn directories(root: &Path, entries: usize) -> io::Result<()> {
    directory(root, "empty-directory")?;
    let many = directory(root, "many")?;
    for number in 0..entries {
        fs::write(many.join(format!("entry-{number:06}")), format!("{number}\n"))?;
    }
    let mut deep = directory(root, "deep")?;
    for _ in 0..200 {
        deep.push("d");
    }
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), b"deep\n")
}

fn set_time(path: &Path, secs: i64, nanos: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Gives everything below and with `path` a time of its own, what is inside first.
fn set_times(path: &Path) -> io::Result<()> {
    fn below(path: &Path, at: &mut i64) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_dir() {
            let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                below(&entry.path(), at)?;
            }
        }
        *at += 1;
        set_time(path, 1_600_000_000 + *at * 61, (*at * 123_456_789) % 1_000_000_000)
    }
    below(path, &mut 0)
}

fn times(root: &Path) -> io::Result<()> {
    let dir = directory(root, "times")?;
    let times = [
        ("epoch", 0, 0),
        ("one-nanosecond", 0, 1),
        ("last-nanosecond", 1_700_000_000, 999_999_999),
        ("before-1970", -1, 500_000_000),
        ("1902", -2_145_916_800, 250_000_000),
        ("after-2038", 1 << 32, 7),
    ];
    for (name, secs, nanos) in times {
        let path = dir.join(name);
        fs::write(&path, name)?;
        set_time(&path, secs, nanos)?;
    }
    let link = dir.join("symlink");
    symlink("epoch", &link)?;
    set_time(&link, -77, 77)?;
    set_time(&dir, 1_234_567_890, 987_654_321)?;
    set_time(root, 1_650_000_000, 123_456_789)
}
