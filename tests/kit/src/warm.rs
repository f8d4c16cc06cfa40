//! Brings files into the kernel's page cache, as they are on a host that serves all the time.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind};
use std::path::Path;

/// So much of a file is read at once.
const PIECE: usize = 1 << 20;

/// Reads every regular file below `dir`, and says how many bytes that were. Files that go away
/// meanwhile are left out: a server may be using the directory.
pub(crate) fn warm(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut directories = vec![dir.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let Some(entries) = if_there(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(kind) = if_there(entry.file_type())? else { continue };
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file()
                && let Some(file) = if_there(File::open(entry.path()))?
            {
                bytes += io::copy(&mut BufReader::with_capacity(PIECE, file), &mut io::sink())?;
            }
        }
    }
    Ok(bytes)
}

fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use rustix::fs::{Advice, fadvise};
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    use super::*;
    use crate::scratch::scratch;

    /// Whether the first page of the file is in the page cache.
    fn is_cached(file: &File) -> bool {
        let mut page = [0; 4096];
        let mut buffers = [IoSliceMut::new(&mut page)];
        match preadv2(file, &mut buffers, 0, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == 4096,
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn files_at_any_depth_are_in_the_cache() {
        let dir = scratch().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(dir.path().join("outer"), vec![1; 10_000]).unwrap();
        fs::write(inner.join("inner"), vec![2; 20_000]).unwrap();
        std::os::unix::fs::symlink("/dev/zero", inner.join("link")).unwrap();
        let file = File::open(inner.join("inner")).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(!is_cached(&file));

        assert_eq!(warm(dir.path()).unwrap(), 30_000);
        assert!(is_cached(&file));
    }

    #[test]
    fn warming_a_missing_path_is_no_error() {
        let dir = scratch().unwrap();
        assert_eq!(warm(&dir.path().join("gone")).unwrap(), 0);
    }
}
