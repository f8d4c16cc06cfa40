//! Turns a complete part into a durable, sealed file: hash, fsync, rename, record.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::content::{CachedContent, ContentState, Part, Right, Sealed, WholeFile, sealed_cost};
use super::disk::{Open, Stamp};
use super::fill::Writable;
use super::placement::ContentId;
use super::stats::count;
use super::store::CacheInner;
use super::{CacheError, lease};
use crate::ids::Digest;

const MAGIC: [u8; 8] = *b"INLAYSEA";
const VERSION: u32 = 1;
/// Bytes hashed at a time.
const HASH_LEN: usize = 1 << 20;

/// The record of the file that was hashed and synced. A file with another identity is not sealed.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Seal {
    magic: [u8; 8],
    version: U32,
    zero: U32,
    content: Digest,
    size: U64,
    inode: U64,
    mtime: [I64; 2],
    ctime: [I64; 2],
    check: Digest,
}

impl Seal {
    fn new(id: &ContentId, stamp: &Stamp) -> Self {
        let time = |(secs, nanos)| [I64::new(secs), I64::new(nanos)];
        let mut seal = Self {
            magic: MAGIC,
            version: U32::new(VERSION),
            zero: U32::new(0),
            content: id.digest,
            size: U64::new(stamp.len),
            inode: U64::new(stamp.inode),
            mtime: time(stamp.mtime),
            ctime: time(stamp.ctime),
            check: Digest::from_bytes([0; 32]),
        };
        let body = seal.as_bytes();
        seal.check = Digest::of(body.get(..body.len() - 32).unwrap_or_default());
        seal
    }

    /// Returns whether this seals the file with this `stamp` as the content `id`.
    pub(super) fn is_of(&self, id: &ContentId, stamp: &Stamp) -> bool {
        stamp.len == id.size && self.as_bytes() == Self::new(id, stamp).as_bytes()
    }
}

/// The result of hashing a file.
pub(super) enum Hashed {
    Right,
    Wrong,
    /// Aborted, because the cache is being closed.
    Stopped,
}

impl CacheInner {
    /// Seals a complete content, or verifies one that has lost its seal. Runs on the worker thread.
    pub(super) fn seal(&self, id: &ContentId) {
        let content = self.contents.get(id);
        let _writing = content.writing.lock();
        let state = content.state.read().clone();
        let done = match state {
            ContentState::Sealed(_) | ContentState::Lie => return,
            ContentState::Part(part) if part.right == Right::Write => {
                self.seal_part(&content, &part)
            }
            // The process that filled it is gone, or is about to seal it.
            ContentState::Part(_) => match self.writable(&content) {
                Ok(Writable::Part(part)) => self.seal_part(&content, &part),
                Ok(Writable::Elsewhere | Writable::NoRoom) => return,
                Err(error) => Err(error),
            },
            ContentState::Absent { .. } => self.prove_sealed(&content),
        };
        if let Err(error) = done {
            self.write_failed();
            self.health.failed(&error);
        }
    }

    /// Hashes, syncs and renames a complete part. The caller holds `content.writing`.
    fn seal_part(&self, content: &CachedContent, part: &Arc<Part>) -> Result<(), CacheError> {
        let whole = part.ranges.read().is_whole(&content.id);
        if !whole || part.condemned.load(Ordering::Relaxed) {
            return Ok(());
        }
        let paths = &content.paths;
        match self.hash(&part.file, &content.id) {
            Ok(Hashed::Right) => {}
            Ok(Hashed::Stopped) => return Ok(()),
            // A damaged range, now removed: it will be fetched again.
            Ok(Hashed::Wrong) if !self.prove_ranges(part) => return Ok(()),
            Ok(Hashed::Wrong) => {
                tracing::warn!(content = %content.id.digest, "the groups of a file do not match its digest");
                count(&self.counters.verify_failures);
                self.discard_part(content, part.cost());
                *content.state.write() = ContentState::Lie;
                return Ok(());
            }
            Err(error) => {
                count(&self.counters.read_failures);
                self.discard_part(content, part.cost());
                return Err(CacheError::io("reading", &paths.part)(error));
            }
        }
        let cost = part.cost();
        match self.disk.sync(&part.file).and_then(|()| self.name_sealed(content, cost)) {
            // It stays a part, and is sealed on its next use.
            Ok(None) => Ok(()),
            Ok(Some(sealed)) => {
                // The part was renamed, unless another process sealed first.
                for path in [&paths.ready, &paths.part] {
                    let _ = self.disk.remove(path);
                }
                *content.state.write() = ContentState::Sealed(sealed);
                count(&self.counters.sealed);
                self.health.succeeded();
                Ok(())
            }
            Err(error) => {
                // After a failed fsync, the page cache may hold bytes that are not on disk: discard
                // them and fetch again.
                self.discard(content, cost);
                Err(CacheError::io("sealing", &paths.sealed)(error))
            }
        }
    }

    /// Renames a part that was hashed and synced to its final name, or adopts a file that another
    /// process has sealed. Returns `None` while another process evicts the file at that name:
    /// removal and accounting are up to that process.
    fn name_sealed(&self, content: &CachedContent, cost: u64) -> io::Result<Option<Arc<Sealed>>> {
        let paths = &content.paths;
        match self.open_sealed(content) {
            Ok(WholeFile::Sealed(sealed)) => {
                self.room.release(cost);
                return Ok(Some(sealed));
            }
            Ok(WholeFile::Leaving) => return Ok(None),
            // The part was just hashed, the other file was not: replace it.
            Ok(WholeFile::Unproved) => {
                self.disk.remove(&paths.sealed)?;
                self.room.release(sealed_cost(&content.id));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.disk.rename_new(&paths.part, &paths.sealed)?;
        let sealed = self.publish(content)?;
        self.room.exchange(cost, sealed_cost(&content.id));
        Ok(Some(sealed))
    }

    /// Writes the seal of a file that was just renamed, and opens the file for readers.
    fn publish(&self, content: &CachedContent) -> io::Result<Arc<Sealed>> {
        let paths = &content.paths;
        self.disk.sync_dir(&paths.dir)?;
        let file = self.disk.open(&paths.sealed, Open::Read)?;
        if !lease::share(&file)? {
            return Err(io::Error::other("it is being evicted"));
        }
        let seal = Seal::new(&content.id, &self.disk.stamp(&file)?);
        let (staged, record) = self.staging.create(&self.disk)?;
        self.disk.write(&record, seal.as_bytes(), 0)?;
        self.disk.sync(&record)?;
        self.disk.rename(staged.path(), &paths.seal)?;
        self.disk.sync_dir(&paths.dir)?;
        Ok(Arc::new(Sealed { file: Arc::new(file) }))
    }

    /// Verifies and seals a complete file that lost its seal, because of a crash between the rename
    /// and the seal.
    fn prove_sealed(&self, content: &CachedContent) -> Result<(), CacheError> {
        let paths = &content.paths;
        let failed = CacheError::io("sealing", &paths.sealed);
        let proved = self.disk.open(&paths.sealed, Open::Read).and_then(|file| {
            if self.disk.stamp(&file)?.len != content.id.size {
                return Ok(Hashed::Wrong);
            }
            let hashed = self.hash(&file, &content.id)?;
            self.disk.sync(&file)?;
            Ok(hashed)
        });
        match proved {
            Ok(Hashed::Right) => {
                let sealed = self.publish(content).map_err(failed)?;
                *content.state.write() = ContentState::Sealed(sealed);
                count(&self.counters.verified);
                Ok(())
            }
            Ok(Hashed::Stopped) => Ok(()),
            Ok(Hashed::Wrong) => {
                tracing::warn!(path = %paths.sealed.display(), "removing a damaged cache file");
                count(&self.counters.verify_failures);
                self.discard_sealed(content, sealed_cost(&content.id));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Hashes a file and compares the digest. Stops if the cache is being closed.
    pub(super) fn hash(&self, file: &File, id: &ContentId) -> io::Result<Hashed> {
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; HASH_LEN];
        let mut at = 0;
        while at < id.size {
            if self.worker.is_stopping() {
                return Ok(Hashed::Stopped);
            }
            let len = usize::try_from(id.size - at).unwrap_or(HASH_LEN).min(HASH_LEN);
            let block = buf.get_mut(..len).unwrap_or_default();
            self.disk.read(file, block, at)?;
            hasher.update(block);
            at += len as u64;
        }
        let right = hasher.finalize().as_bytes() == id.digest.as_bytes();
        Ok(if right { Hashed::Right } else { Hashed::Wrong })
    }

    /// Removes all files of a content, metadata before data, so that a crash leaves no record of
    /// missing bytes.
    pub(super) fn discard(&self, content: &CachedContent, cost: u64) {
        let paths = &content.paths;
        self.remove_all(content, &[&paths.ready, &paths.seal, &paths.part, &paths.sealed], cost);
    }

    /// Removes the part of a content and its metadata. Leaves a sealed file alone.
    pub(super) fn discard_part(&self, content: &CachedContent, cost: u64) {
        self.remove_all(content, &[&content.paths.ready, &content.paths.part], cost);
    }

    /// Removes the sealed file of a content and its seal. Leaves a part alone.
    pub(super) fn discard_sealed(&self, content: &CachedContent, cost: u64) {
        self.remove_all(content, &[&content.paths.seal, &content.paths.sealed], cost);
    }

    fn remove_all(&self, content: &CachedContent, paths: &[&PathBuf], cost: u64) {
        let mut all_gone = true;
        for path in paths {
            all_gone &= match self.disk.remove(path) {
                Err(error) => error.kind() == ErrorKind::NotFound,
                Ok(()) => true,
            };
        }
        *content.state.write() = ContentState::Absent { epoch: self.epoch() };
        if all_gone {
            self.room.release(cost);
        } else {
            self.write_failed();
        }
    }
}
