//! From a part that has every byte to a whole, durable file: hashed, synced, renamed, recorded.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::content::{Content, Part, Right, Sealed, State, sealed_cost};
use super::disk::{Open, Stamp};
use super::placement::ContentId;
use super::stats::count;
use super::store::Inner;
use super::{CacheError, lease};
use crate::ids::Digest;

const MAGIC: [u8; 8] = *b"INLAYSEA";
const VERSION: u32 = 1;
/// How much is hashed at once.
const HASH_LEN: usize = 1 << 20;

/// Which file was hashed and synced. If the file of that name has another identity, it was not.
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

    /// Whether it tells of this file, which then holds this content.
    pub(super) fn is_of(&self, id: &ContentId, stamp: &Stamp) -> bool {
        stamp.len == id.size && self.as_bytes() == Self::new(id, stamp).as_bytes()
    }
}

/// What hashing a file came to.
pub(super) enum Hashed {
    Right,
    Wrong,
    /// The cache is being closed.
    Stopped,
}

impl Inner {
    /// Seals a content that has every byte, or proves one that has lost its seal. For the worker.
    pub(super) fn seal(&self, id: &ContentId) {
        let content = self.contents.get(id);
        let _writing = content.writing.lock();
        let state = content.state.read().clone();
        let done = match state {
            State::Sealed(_) | State::Lie => return,
            State::Part(part) if part.right == Right::Write => self.seal_part(&content, &part),
            // Whoever filled it is gone, or is about to seal it.
            State::Part(_) => match self.writable(&content) {
                Ok(Some(part)) => self.seal_part(&content, &part),
                Ok(None) => return,
                Err(error) => Err(error),
            },
            State::Absent { .. } => self.prove_sealed(&content),
        };
        if let Err(error) = done {
            self.write_failed();
            self.health.failed(&error);
        }
    }

    fn seal_part(&self, content: &Content, part: &Arc<Part>) -> Result<(), CacheError> {
        let whole = part.ranges.read().is_whole(&content.id);
        if !whole || part.condemned.load(Ordering::Relaxed) {
            return Ok(());
        }
        let paths = &content.paths;
        match self.hash(&part.file, &content.id) {
            Ok(Hashed::Right) => {}
            Ok(Hashed::Stopped) => return Ok(()),
            // Damage of the disk, which is fetched again.
            Ok(Hashed::Wrong) if !self.prove_ranges(part) => return Ok(()),
            Ok(Hashed::Wrong) => {
                tracing::warn!(content = %content.id.digest, "a file's groups do not make its contents");
                count(&self.counters.verify_failures);
                self.discard(content, part.cost());
                *content.state.write() = State::Lie;
                return Ok(());
            }
            Err(error) => {
                count(&self.counters.read_failures);
                self.discard(content, part.cost());
                return Err(CacheError::io("reading", &paths.part)(error));
            }
        }
        let cost = part.cost();
        match self.disk.sync(&part.file).and_then(|()| self.name_sealed(content, cost)) {
            Ok(sealed) => {
                // The part's name is gone, unless another process was first.
                for path in [&paths.ready, &paths.part] {
                    let _ = self.disk.remove(path);
                }
                *content.state.write() = State::Sealed(sealed);
                count(&self.counters.sealed);
                self.health.succeeded();
                Ok(())
            }
            Err(error) => {
                // What a failed sync left in memory only looks written: it is fetched again.
                self.discard(content, cost);
                Err(CacheError::io("sealing", &paths.sealed)(error))
            }
        }
    }

    /// Gives a part that was hashed and synced its name, or takes what another process has sealed.
    fn name_sealed(&self, content: &Content, cost: u64) -> io::Result<Arc<Sealed>> {
        let paths = &content.paths;
        match self.open_sealed(content) {
            Ok(Some(sealed)) => {
                self.room.release(cost);
                return Ok(sealed);
            }
            // A file that nobody vouches for makes room.
            Ok(None) => {
                self.disk.remove(&paths.sealed)?;
                self.room.release(sealed_cost(&content.id));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.disk.rename_new(&paths.part, &paths.sealed)?;
        let sealed = self.publish(content)?;
        self.room.exchange(cost, sealed_cost(&content.id));
        Ok(sealed)
    }

    /// Records the file that has just got its name, and opens it for readers.
    fn publish(&self, content: &Content) -> io::Result<Arc<Sealed>> {
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

    /// A whole file without a seal: a crash came between its name and its seal.
    fn prove_sealed(&self, content: &Content) -> Result<(), CacheError> {
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
                *content.state.write() = State::Sealed(sealed);
                count(&self.counters.verified);
                Ok(())
            }
            Ok(Hashed::Stopped) => Ok(()),
            Ok(Hashed::Wrong) => {
                tracing::warn!(path = %paths.sealed.display(), "a damaged cache file is removed");
                count(&self.counters.verify_failures);
                self.discard(content, sealed_cost(&content.id));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

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

    /// Removes all files of a content. What says that bytes are there goes before the bytes.
    pub(super) fn discard(&self, content: &Content, cost: u64) {
        let paths = &content.paths;
        let gone = |path| match self.disk.remove(path) {
            Err(error) => error.kind() == ErrorKind::NotFound,
            Ok(()) => true,
        };
        let mut all_gone = true;
        for path in [&paths.ready, &paths.seal, &paths.part, &paths.sealed] {
            all_gone &= gone(path);
        }
        *content.state.write() = State::Absent { epoch: self.epoch() };
        if all_gone {
            self.room.release(cost);
        } else {
            self.write_failed();
        }
    }
}
