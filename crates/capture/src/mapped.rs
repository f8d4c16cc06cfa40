//! Finds files that may change without a new ctime: those that a process has mapped shared and
//! writable. Once such a page is dirty, further writes to it leave no trace until it is written
//! back.

use std::collections::HashSet;
use std::fs;
use std::io::Read;

use super::stat::Stat;

/// The maximum size of a process's list of mappings, in bytes: 64 Ki mappings with long paths.
const LEN_MAX: u64 = 64 << 20;

/// Files mapped shared and writable. An overlay reports other inode numbers than its layers, so
/// names count, too: false positives are harmless, false negatives are not.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    names: HashSet<Box<[u8]>>,
    inodes: HashSet<u64>,
    /// A list could not be read completely: any file may be mapped.
    all: bool,
}

impl Mapped {
    /// Adds the mappings of the processes `pids`. Skips processes that have exited.
    pub(super) fn add(&mut self, pids: &[u32]) {
        for pid in pids {
            let mut text = Vec::new();
            let read = fs::File::open(format!("/proc/{pid}/maps"))
                .and_then(|file| file.take(LEN_MAX).read_to_end(&mut text));
            match read {
                Ok(_) => self.all |= text.len() as u64 >= LEN_MAX,
                // It has exited in the meantime.
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound
                        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                }
                Err(error) => {
                    tracing::warn!(pid, %error, "can't read its mappings; reading every file while frozen");
                    self.all = true;
                }
            }
            self.parse(&text);
        }
    }

    fn parse(&mut self, text: &[u8]) {
        for line in text.split(|byte| *byte == b'\n') {
            // Addresses, permissions, offset, device, inode, path.
            let mut fields = line.splitn(6, |byte| *byte == b' ');
            let permissions = fields.nth(1).unwrap_or(&[]);
            if permissions.get(1) != Some(&b'w') || permissions.get(3) != Some(&b's') {
                continue;
            }
            let inode = fields.nth(2).and_then(|field| std::str::from_utf8(field).ok());
            let path = fields.next().map_or(&[][..], <[u8]>::trim_ascii_start);
            if !path.starts_with(b"/") {
                continue;
            }
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                self.inodes.insert(inode);
            }
            let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
            let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
            self.names.insert(unescape(name).into());
        }
    }

    /// Reports whether the file `name` may be mapped.
    pub(super) fn may_be(&self, name: &[u8], stat: &Stat) -> bool {
        self.all
            || self.names.contains(name)
            || self.inodes.contains(&stat.id.inode)
            // It may be mapped under another of its names.
            || (stat.nlink > 1 && !self.names.is_empty())
    }
}

/// Decodes `\012`, which the kernel writes for a newline in a name.
fn unescape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = after;
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_writable_mappings_count() {
        let mut mapped = Mapped::default();
        mapped.parse(
            b"7f00-7f01 rw-s 00000000 00:2f 4711                       /project/a b.db\n\
              7f00-7f01 rw-p 00000000 00:2f 4712                       /project/private\n\
              7f00-7f01 r--s 00000000 00:2f 4713                       /project/read\n\
              7f00-7f01 rw-s 00000000 00:01 9                          /x/new\\012line (deleted)\n\
              7f00-7f01 rw-s 00000000 00:01 10                         anon\n\
              nonsense\n",
        );
        let names: HashSet<&[u8]> = mapped.names.iter().map(AsRef::as_ref).collect();
        assert_eq!(names, HashSet::from([&b"a b.db"[..], b"new\nline"]));
        assert_eq!(mapped.inodes, HashSet::from([4711, 9]));
    }

    #[test]
    fn a_mapping_of_this_process_is_found() {
        let file = tempfile::Builder::new().prefix("mapped-").tempfile().unwrap();
        file.as_file().set_len(4096).unwrap();
        let find = || {
            let mut mapped = Mapped::default();
            mapped.add(&[std::process::id(), u32::MAX]);
            let name = file.path().file_name().unwrap().as_encoded_bytes().to_vec();
            mapped.names.contains(name.as_slice())
        };
        assert!(!find());
        let map = Mapping::new(file.as_file());
        assert!(find());
        drop(map);
        assert!(!find());
    }

    /// A shared, writable mapping.
    struct Mapping(*mut std::ffi::c_void);

    #[allow(unsafe_code, reason = "a mapping is what is tested")]
    impl Mapping {
        fn new(file: &fs::File) -> Self {
            use rustix::mm::{MapFlags, ProtFlags, mmap};
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: the mapping has no fixed address and is never read.
            let address = unsafe {
                mmap(std::ptr::null_mut(), 4096, rights, MapFlags::SHARED, file, 0).unwrap()
            };
            Self(address)
        }
    }

    #[allow(unsafe_code, reason = "a mapping is what is tested")]
    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: this owns the mapping and nothing refers to it.
            unsafe { rustix::mm::munmap(self.0, 4096).unwrap() };
        }
    }
}
