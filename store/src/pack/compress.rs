//! The threads behind the packer: groups are compressed side by side and put into blobs in order.
//!
//! Every queue is bounded, so memory does not depend on the image's size: a few groups in each
//! queue, one blob that grows, and those that `BlobStore` holds. Order is kept by number: the same
//! input gives the same blobs, whatever the threads do, so a repeated import finds what an earlier
//! one has stored.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::options::PackOptions;
use super::toc::{TocChunk, TocGroup, write_toc};
use super::{BlobStore, PackError};
use crate::format::Blob;
use crate::ids::{BlobId, Digest, GroupDigest};

/// A closed group.
pub(crate) struct Job {
    /// Counts up without a gap, in the order in which groups were closed.
    pub(crate) sequence: u64,
    /// The packer's number of the group.
    pub(crate) number: u32,
    pub(crate) raw: Vec<u8>,
    pub(crate) exclusive: bool,
    pub(crate) chunks: Vec<TocChunk>,
}

struct Done {
    sequence: u64,
    number: u32,
    raw_len: u32,
    exclusive: bool,
    chunks: Vec<TocChunk>,
    stored: Vec<u8>,
    digest: GroupDigest,
}

/// Where a group came to lie.
#[derive(Debug, Clone, Copy)]
pub struct PackedGroup {
    /// The packer's number of the blob.
    pub blob: u32,
    /// Its place among the blob's groups.
    pub ordinal: u32,
    /// Where its compressed bytes begin in the blob.
    pub offset: u64,
    /// The compressed bytes' number.
    pub stored_len: u32,
    /// The decoded bytes' number.
    pub raw_len: u32,
    /// Whether it holds nothing but pieces of one large file.
    pub exclusive: bool,
    /// BLAKE3 of the compressed bytes.
    pub digest: GroupDigest,
}

/// What the threads made.
#[derive(Debug, Default)]
pub(crate) struct Assembled {
    pub(crate) groups: Vec<(u32, PackedGroup)>,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) stored_bytes: u64,
}

/// The running threads.
pub(crate) struct Pipeline {
    jobs: Option<Sender<Job>>,
    spare: Receiver<Vec<u8>>,
    workers: Vec<JoinHandle<Result<(), PackError>>>,
    assembler: Option<JoinHandle<Result<Assembled, PackError>>>,
}

impl Pipeline {
    pub(crate) fn start(
        options: &PackOptions,
        store: Box<dyn BlobStore>,
    ) -> Result<Self, PackError> {
        let workers = options.workers.max(1);
        let (jobs, job_queue) = bounded::<Job>(2 * workers);
        let (done, done_queue) = bounded::<Done>(2 * workers);
        let (spare_in, spare) = bounded::<Vec<u8>>(4 * workers);
        let level = options.level;
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let mut handles = Vec::new();
        for _ in 0..workers {
            let (queue, done, spare) = (job_queue.clone(), done.clone(), spare_in.clone());
            let handle = spawn("inlay-compress")
                .spawn(move || compress(level, &queue, &done, &spare))
                .map_err(PackError::Thread)?;
            handles.push(handle);
        }
        let blob_len = options.blob_len;
        let assembler = spawn("inlay-assemble")
            .spawn(move || Assembler::new(blob_len, store).run(&done_queue))
            .map_err(PackError::Thread)?;
        Ok(Self { jobs: Some(jobs), spare, workers: handles, assembler: Some(assembler) })
    }

    /// An empty buffer, used before if there is one.
    pub(crate) fn buffer(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.reserve(capacity);
        buffer
    }

    /// Hands a group over; waits while the threads are behind. False if they have failed: `finish`
    /// tells why.
    pub(crate) fn submit(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Waits until all is stored.
    pub(crate) fn finish(mut self) -> Result<Assembled, PackError> {
        self.jobs = None;
        let mut failed = None;
        for worker in self.workers.drain(..) {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed = Some(error),
                Err(_) => failed = Some(PackError::Panicked),
            }
        }
        let assembled = match self.assembler.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(PackError::Panicked),
        };
        // The assembler's own error is the cause where a worker only found its queue closed.
        match (assembled, failed) {
            (Err(error), _) | (Ok(_), Some(error)) => Err(error),
            (Ok(assembled), None) => Ok(assembled),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.jobs = None;
        for worker in self.workers.drain(..) {
            drop(worker.join());
        }
        drop(self.assembler.take().map(JoinHandle::join));
    }
}

fn compress(
    level: i32,
    queue: &Receiver<Job>,
    done: &Sender<Done>,
    spare: &Sender<Vec<u8>>,
) -> Result<(), PackError> {
    let mut compressor = zstd::bulk::Compressor::new(level).map_err(PackError::Compress)?;
    for job in queue {
        let stored = compressor.compress(&job.raw).map_err(PackError::Compress)?;
        let result = Done {
            sequence: job.sequence,
            number: job.number,
            raw_len: u32::try_from(job.raw.len()).unwrap_or(u32::MAX),
            exclusive: job.exclusive,
            chunks: job.chunks,
            digest: GroupDigest(Digest::of(&stored)),
            stored,
        };
        match spare.try_send(job.raw) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        if done.send(result).is_err() {
            // The assembler has failed, and tells why itself.
            return Ok(());
        }
    }
    Ok(())
}

struct Assembler {
    blob_len: usize,
    store: Box<dyn BlobStore>,
    open: Vec<u8>,
    toc: Vec<TocGroup>,
    result: Assembled,
}

impl Assembler {
    fn new(blob_len: usize, store: Box<dyn BlobStore>) -> Self {
        Self { blob_len, store, open: Vec::new(), toc: Vec::new(), result: Assembled::default() }
    }

    fn run(mut self, queue: &Receiver<Done>) -> Result<Assembled, PackError> {
        // Holds what came before its turn: no more than is under way at once.
        let mut early: BTreeMap<u64, Done> = BTreeMap::new();
        let mut next = 0;
        for done in queue {
            early.insert(done.sequence, done);
            while let Some(done) = early.remove(&next) {
                self.append(done)?;
                next += 1;
            }
        }
        if !early.is_empty() {
            return Err(PackError::Panicked);
        }
        self.close()?;
        self.store.finish()?;
        Ok(self.result)
    }

    fn append(&mut self, done: Done) -> Result<(), PackError> {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let stored_len = number(done.stored.len());
        let offset = self.open.len() as u64;
        let group = PackedGroup {
            blob: number(self.result.blobs.len()),
            ordinal: number(self.toc.len()),
            offset,
            stored_len,
            raw_len: done.raw_len,
            exclusive: done.exclusive,
            digest: done.digest,
        };
        self.result.groups.push((done.number, group));
        self.toc.push(TocGroup {
            offset,
            stored_len,
            raw_len: done.raw_len,
            exclusive: done.exclusive,
            digest: done.digest,
            chunks: done.chunks,
        });
        self.open.extend_from_slice(&done.stored);
        if self.open.len() >= self.blob_len { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), PackError> {
        if self.toc.is_empty() {
            return Ok(());
        }
        let toc = write_toc(&self.toc);
        let toc_offset = self.open.len() as u64;
        self.open.extend_from_slice(&toc);
        let bytes = std::mem::take(&mut self.open);
        let blob = Blob {
            id: BlobId(Digest::of(&bytes)),
            size: bytes.len() as u64,
            toc_offset,
            toc_digest: Digest::of(&toc),
        };
        self.toc.clear();
        self.result.blobs.push(blob);
        self.result.stored_bytes += blob.size;
        self.store.put(blob.id, bytes)
    }
}
