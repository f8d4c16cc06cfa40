//! Runs the packer's threads, which compress groups in parallel and append them to blobs in order.
//!
//! Every queue is bounded, so memory use does not depend on the size of the image: a few groups per
//! queue, the open blob, and the blobs that `BlobStore` holds. Groups are appended by sequence
//! number: the same input produces the same blobs regardless of thread scheduling, so a repeated
//! import reuses the blobs of an earlier one.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::options::PackOptions;
use super::toc::{TocChunk, TocGroup, write_toc};
use super::{BlobStore, PackError};
use crate::format::Blob;
use crate::ids::{BlobId, DecodedDigest, Digest, GroupDigest};

/// A closed group.
pub(crate) struct CompressJob {
    /// Consecutive, in the order in which groups were closed.
    pub(crate) sequence: u64,
    /// The packer's number of the group.
    pub(crate) number: u32,
    pub(crate) raw: Vec<u8>,
    pub(crate) exclusive: bool,
    pub(crate) chunks: Vec<TocChunk>,
}

/// A compressed group.
struct Done {
    sequence: u64,
    number: u32,
    raw_len: u32,
    exclusive: bool,
    chunks: Vec<TocChunk>,
    stored: Vec<u8>,
    digest: GroupDigest,
    decoded: DecodedDigest,
}

/// The position of a packed group.
#[derive(Debug, Clone, Copy)]
pub struct PackedGroup {
    /// The packer's number of the blob.
    pub blob: u32,
    /// Position among the groups of the blob.
    pub ordinal: u32,
    /// Offset of the compressed bytes in the blob.
    pub offset: u64,
    /// Length of the compressed bytes.
    pub stored_len: u32,
    /// Length of the decoded bytes.
    pub raw_len: u32,
    /// Whether all chunks in it come from one large file.
    pub exclusive: bool,
    /// BLAKE3 of the compressed bytes.
    pub digest: GroupDigest,
    /// BLAKE3 of the decoded bytes; `None` if the blob's table does not have it.
    pub decoded: Option<DecodedDigest>,
}

/// The groups and blobs that the threads produced.
#[derive(Debug, Default)]
pub(crate) struct Assembled {
    pub(crate) groups: Vec<(u32, PackedGroup)>,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) stored_bytes: u64,
}

/// The running threads.
pub(crate) struct Pipeline {
    jobs: Option<Sender<CompressJob>>,
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
        let (jobs, job_queue) = bounded::<CompressJob>(2 * workers);
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

    /// Returns an empty buffer, reusing a spare one if possible.
    pub(crate) fn buffer(&self, capacity: usize) -> Vec<u8> {
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.reserve(capacity);
        buffer
    }

    /// Submits a group. Blocks while the queue is full. Returns false if a thread has failed:
    /// `finish` returns the error.
    pub(crate) fn submit(&self, job: CompressJob) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Blocks until every blob is stored.
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
        // The assembler's error is the cause: a worker may only have found its queue closed.
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

/// Runs a compression thread, until the queue is closed.
fn compress(
    level: i32,
    queue: &Receiver<CompressJob>,
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
            decoded: DecodedDigest(Digest::of(&job.raw)),
            stored,
        };
        match spare.try_send(job.raw) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
        if done.send(result).is_err() {
            // The assembler has failed and reports the error itself.
            return Ok(());
        }
    }
    Ok(())
}

/// Appends compressed groups to blobs, and stores the full ones.
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
        // Groups that finished before their turn: no more than are in flight.
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
            decoded: Some(done.decoded),
        };
        self.result.groups.push((done.number, group));
        self.toc.push(TocGroup {
            offset,
            stored_len,
            raw_len: done.raw_len,
            exclusive: done.exclusive,
            digest: done.digest,
            decoded: Some(done.decoded),
            chunks: done.chunks,
        });
        self.open.extend_from_slice(&done.stored);
        if self.open.len() >= self.blob_len { self.close() } else { Ok(()) }
    }

    /// Completes the open blob with its table of chunks and stores it.
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
