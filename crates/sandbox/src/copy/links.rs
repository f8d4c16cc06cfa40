//! Tracks files with several hard links, so that the copy links them, too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rustix::fs::Stat;

/// The maximum memory for this, in bytes.
const MEMORY_MAX: usize = 128 << 20;
/// The approximate cost of a file beyond its path, in bytes.
const OVERHEAD: usize = 64;

/// Files of which more links may follow.
#[derive(Debug, Default)]
pub(super) struct Links {
    files: HashMap<(u64, u64), First>,
    memory: usize,
}

#[derive(Debug)]
struct First {
    path: Box<[u8]>,
    /// The number of links not seen yet.
    left: u64,
}

/// How to copy a link of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Met {
    /// As a file: it is the first link, or the only one.
    First,
    /// As a hard link to the file that was copied with this path.
    Again(Box<[u8]>),
    /// Not at all: too many files have several links.
    TooMany,
}

impl Links {
    /// Records a link of an object that is not a directory.
    pub(super) fn meet(&mut self, stat: &Stat, path: &[u8]) -> Met {
        if stat.st_nlink < 2 {
            return Met::First;
        }
        match self.files.entry((stat.st_dev, stat.st_ino)) {
            Entry::Vacant(free) => {
                self.memory += path.len() + OVERHEAD;
                if self.memory > MEMORY_MAX {
                    return Met::TooMany;
                }
                free.insert(First { path: path.into(), left: stat.st_nlink.saturating_sub(1) });
                Met::First
            }
            Entry::Occupied(mut found) if found.get().left > 1 => {
                found.get_mut().left -= 1;
                Met::Again(found.get().path.clone())
            }
            Entry::Occupied(found) => {
                let path = found.remove().path;
                self.memory = self.memory.saturating_sub(path.len() + OVERHEAD);
                Met::Again(path)
            }
        }
    }

    /// Forgets a file that was not copied after all.
    pub(super) fn forget(&mut self, stat: &Stat) {
        if let Some(first) = self.files.remove(&(stat.st_dev, stat.st_ino)) {
            self.memory = self.memory.saturating_sub(first.path.len() + OVERHEAD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(ino: u64, names: u64) -> Stat {
        let mut stat = rustix::fs::stat("/").unwrap();
        (stat.st_ino, stat.st_nlink) = (ino, names);
        stat
    }

    #[test]
    fn a_file_is_forgotten_after_its_last_name() {
        let mut links = Links::default();
        assert_eq!(links.meet(&stat(1, 1), b"alone"), Met::First);
        assert_eq!(links.meet(&stat(2, 3), b"a"), Met::First);
        assert_eq!(links.meet(&stat(3, 2), b"b"), Met::First);
        assert_eq!(links.meet(&stat(2, 3), b"a2"), Met::Again(b"a"[..].into()));
        assert_eq!(links.meet(&stat(2, 3), b"a3"), Met::Again(b"a"[..].into()));
        assert_eq!(links.files.len(), 1);
        links.forget(&stat(3, 2));
        assert_eq!((links.files.len(), links.memory), (0, 0));
        assert_eq!(links.meet(&stat(3, 2), b"c"), Met::First);
        assert_eq!(links.memory, OVERHEAD + 1);
    }

    #[test]
    fn memory_has_a_limit() {
        let mut links = Links::default();
        let path = vec![b'x'; 1 << 20];
        let met = |links: &mut Links, ino| links.meet(&stat(ino, 2), &path);
        let taken = (1..1000).take_while(|ino| met(&mut links, *ino) == Met::First).count();
        assert!((100..128).contains(&taken), "{taken}");
        assert_eq!(met(&mut links, 5000), Met::TooMany);
    }
}
