//! Guesses the groups that a start of an image needs first, from file names and the image
//! configuration, for images without a profile.
//!
//! A runtime reads `/etc/passwd` and `/etc/group` first. Then every program start needs the dynamic
//! loader, the C library and the files they read, then the program itself. The scheduler predicts
//! everything else better from actual reads.

use std::collections::HashSet;

use inlay_store::format::{FileData, FileKind, FormatError, GroupIdx, Index, InodeIdx};

use crate::find::{LastLink, find};

/// Maximum groups guessed.
const GROUPS_MAX: usize = 256;
/// Maximum bytes guessed at the start of a file; its last byte is added. Loaders first map the
/// start and end of a program; the middle of a large one is mostly not needed.
const FILE_BYTES: u64 = 2 << 20;

/// Directories of loaders and the C library.
const LIBRARY_DIRS: [&[u8]; 6] = [
    b"lib64",
    b"usr/lib64",
    b"lib",
    b"usr/lib",
    b"usr/lib/x86_64-linux-gnu",
    b"usr/lib/aarch64-linux-gnu",
];
/// Name prefixes of libraries that nearly every program maps.
const LIBRARIES: [&[u8]; 9] = [
    b"ld-linux",
    b"ld-musl",
    b"libc.so",
    b"libm.so",
    b"libdl.so",
    b"libpthread.so",
    b"libz.so",
    b"libgcc_s.so",
    b"libstdc++.so",
];
/// Files that container runtimes read to find the user of a process.
const RUNTIME_FILES: [&[u8]; 2] = [b"etc/passwd", b"etc/group"];
/// Files that the C library, shells and interpreters read first.
const FILES: [&[u8]; 8] = [
    b"etc/ld.so.cache",
    b"etc/ld.so.preload",
    b"etc/nsswitch.conf",
    b"etc/localtime",
    b"bin/sh",
    b"usr/bin/env",
    b"usr/lib/locale/C.utf8/LC_CTYPE",
    b"usr/lib/ssl/openssl.cnf",
];

/// Returns the groups that a start of the image most likely needs, in order. Scans a few
/// directories; a damaged index yields fewer groups.
pub fn guess(index: &Index) -> Vec<GroupIdx> {
    let mut guess = Guess { index, groups: Vec::new(), met: HashSet::new() };
    for file in RUNTIME_FILES {
        guess.file(file);
    }
    for dir in LIBRARY_DIRS {
        // Best effort: a read of the damaged directory reports the error.
        let _ = guess.libraries(dir);
    }
    for program in programs(index.config()) {
        guess.program(program.as_bytes());
    }
    for file in FILES {
        guess.file(file);
    }
    guess.groups
}

struct Guess<'a> {
    index: &'a Index,
    groups: Vec<GroupIdx>,
    met: HashSet<GroupIdx>,
}

impl Guess<'_> {
    fn libraries(&mut self, path: &[u8]) -> Result<(), FormatError> {
        let Some(inode) = self.resolve(path) else { return Ok(()) };
        let wanted = |name: &[u8]| LIBRARIES.iter().any(|start| name.starts_with(start));
        for entry in self.index.dir(inode)?.iter() {
            let entry = entry?;
            if wanted(entry.name) && entry.kind == FileKind::Regular {
                self.inode(entry.inode)?;
            }
        }
        Ok(())
    }

    /// Adds a program of the configuration: a path, or a name to search for in the usual
    /// directories.
    fn program(&mut self, name: &[u8]) {
        if name.contains(&b'/') {
            return self.file(name);
        }
        for dir in [&b"usr/local/sbin/"[..], b"usr/local/bin/", b"usr/sbin/", b"usr/bin/", b"bin/"]
        {
            self.file(&[dir, name].concat());
        }
    }

    fn file(&mut self, path: &[u8]) {
        if let Some(inode) = self.resolve(path) {
            let _ = self.inode(inode);
        }
    }

    fn inode(&mut self, inode: InodeIdx) -> Result<(), FormatError> {
        let FileData::Extents(extents) = self.index.data(inode)? else { return Ok(()) };
        let size = self.index.attr(inode)?.size;
        let head = 0..size.min(FILE_BYTES);
        let tail = size.saturating_sub(1)..size;
        for range in [head, tail] {
            for extent in extents.within(range) {
                let group = extent?.group;
                if self.groups.len() < GROUPS_MAX && self.met.insert(group) {
                    self.groups.push(group);
                }
            }
        }
        Ok(())
    }

    fn resolve(&self, path: &[u8]) -> Option<InodeIdx> {
        find(self.index, path, LastLink::Follow).ok()
    }
}

/// Returns the programs that an image configuration starts.
fn programs(config: &[u8]) -> Vec<String> {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(config) else { return Vec::new() };
    let first = |list: &str| {
        let word = config.pointer(&format!("/config/{list}/0"))?;
        word.as_str().map(str::to_owned)
    };
    ["Entrypoint", "Cmd"].into_iter().filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_images::export::testing::{Builder, meta};
    use inlay_store::tree::NodeId;

    #[test]
    fn users_then_loaders_then_the_program_come_first() {
        let mut builder = Builder::new();
        let mut dirs = Vec::new();
        for name in [&b"lib64"[..], b"opt", b"etc"] {
            dirs.push(builder.dir(NodeId::ROOT, name));
        }
        // Each in a group of its own.
        let mut file = |dir: usize, name: &str| {
            let data = 0..600_000;
            let data = std::slice::from_ref(&data);
            builder.file(dirs[dir], name.as_bytes(), meta(0o755), 600_000, data);
        };
        file(0, "ld-linux-x86-64.so.2");
        file(0, "libunheard.so.7");
        file(1, "app");
        file(2, "passwd");
        file(2, "unheard");
        let snapshot = builder.finish(br#"{"config": {"Entrypoint": ["/opt/app", "-x"]}}"#);
        let index = &snapshot.index;
        let search = Guess { index, groups: Vec::new(), met: HashSet::new() };
        let groups = |path: &[u8]| {
            let inode = search.resolve(path).unwrap();
            let FileData::Extents(extents) = index.data(inode).unwrap() else { panic!() };
            extents.iter().map(|extent| extent.unwrap().group).collect::<Vec<_>>()
        };
        let mut expected = Vec::new();
        for path in [&b"etc/passwd"[..], b"lib64/ld-linux-x86-64.so.2", b"opt/app"] {
            let mut groups = groups(path);
            groups.dedup();
            expected.extend(groups);
        }
        assert_eq!(guess(index), expected);
        // A path through a file does not resolve, as in Linux.
        assert_eq!(search.resolve(b"opt/app/../app"), None);
    }

    #[test]
    fn programs_are_read_from_any_configuration() {
        assert!(programs(b"").is_empty());
        assert!(programs(b"[1]").is_empty());
        let config = br#"{"config": {"Entrypoint": null, "Cmd": ["python3"]}}"#;
        assert_eq!(programs(config), ["python3"]);
    }
}
