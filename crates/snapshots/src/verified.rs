//! Remembers verified local indexes, so that reopening one does not hash it again.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

use inlay_base::bytes::filled;
use inlay_store::ids::{Digest, IndexDigest};
use parking_lot::Mutex;

/// Maximum indexes remembered; beyond this, some are hashed again.
const REMEMBERED_MAX: usize = 65_536;
/// Read size in bytes. The file is read rather than mapped, so that its pages do not become
/// resident in this process.
const PIECE: usize = 1 << 20;

/// Attributes that the kernel changes whenever a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Digests of local indexes that this process has verified.
#[derive(Debug, Default)]
pub(crate) struct VerifiedIndexes {
    known: Mutex<HashMap<Stamp, IndexDigest>>,
}

impl VerifiedIndexes {
    /// Returns the digest of the index in `file`: computed now, or remembered if the file has not
    /// changed.
    pub(crate) fn digest(&self, file: &File) -> io::Result<IndexDigest> {
        let stamp = Stamp::of(&file.metadata()?);
        if let Some(digest) = self.known.lock().get(&stamp) {
            return Ok(*digest);
        }
        let digest = hash(file)?;
        // Modified concurrently: the digest matches no state of the file, so do not remember it.
        if Stamp::of(&file.metadata()?) == stamp {
            self.insert(stamp, digest);
        }
        Ok(digest)
    }

    /// Remembers a file that was verified while it was written.
    pub(crate) fn remember(&self, file: &File, digest: IndexDigest) -> io::Result<()> {
        self.insert(Stamp::of(&file.metadata()?), digest);
        Ok(())
    }

    fn insert(&self, stamp: Stamp, digest: IndexDigest) {
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(stamp, digest);
    }
}

fn hash(mut file: &File) -> io::Result<IndexDigest> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => hasher.update(filled(&piece, len)?),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
    }
    Ok(IndexDigest(Digest::from_bytes(*hasher.finalize().as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn of(bytes: &[u8]) -> IndexDigest {
        IndexDigest(Digest::of(bytes))
    }

    #[test]
    fn a_file_that_was_changed_is_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let verified = VerifiedIndexes::default();
        let digest = || verified.digest(&File::open(&path).unwrap()).unwrap();
        for bytes in [vec![1; PIECE + 5], vec![], vec![2; PIECE + 5]] {
            fs::write(&path, &bytes).unwrap();
            assert_eq!(digest(), of(&bytes));
            assert_eq!(digest(), of(&bytes));
        }
        // Replaced by a file of the same length and modification time.
        let before = fs::metadata(&path).unwrap();
        let other = dir.path().join("other");
        fs::write(&other, vec![3; PIECE + 5]).unwrap();
        File::options()
            .write(true)
            .open(&other)
            .unwrap()
            .set_modified(before.modified().unwrap())
            .unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(digest(), of(&vec![3; PIECE + 5]));
    }

    #[test]
    fn a_file_that_is_as_it_was_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        fs::write(&path, "bytes").unwrap();
        let verified = VerifiedIndexes::default();
        verified.digest(&File::open(&path).unwrap()).unwrap();
        // A read would advance the descriptor's offset.
        let mut again = File::open(&path).unwrap();
        assert_eq!(verified.digest(&again).unwrap(), of(b"bytes"));
        assert_eq!(io::Seek::stream_position(&mut again).unwrap(), 0);
    }
}
