//! Writes a program's output on a separate thread, so that a blocked pipe does not delay signals.

use std::io::{self, Write, stderr, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use inlay_sandbox::{Frame, FrameKind};

/// Capacity of the queue of frames to write; senders block when it is full.
const WAITING_MAX: usize = 8;

/// Writer of standard output and standard error.
pub(super) struct Printer {
    to: mpsc::Sender<Frame>,
    progress: Progress,
    failed: Arc<Mutex<Option<io::Error>>>,
}

/// Progress of a printer. Clones share the counters.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    /// Total number of frames passed to the printer.
    wanted: Arc<AtomicU64>,
    /// Number of frames written.
    written: watch::Receiver<u64>,
}

impl Progress {
    /// Progress of a printer with `wanted` frames pending and none written.
    #[cfg(test)]
    pub(super) fn for_tests(wanted: u64) -> Self {
        Self { wanted: Arc::new(wanted.into()), written: watch::channel(0).1 }
    }

    /// Returns the number of frames written, or `None` if none is pending.
    pub(super) fn unfinished(&self) -> Option<u64> {
        let written = *self.written.borrow();
        (written < self.wanted.load(Relaxed)).then_some(written)
    }
}

impl Printer {
    /// Starts the thread. It exits when the printer is dropped, or with the process if a write blocks
    /// forever.
    pub(super) fn start() -> Self {
        let (to, mut frames) = mpsc::channel::<Frame>(WAITING_MAX);
        let (count, written) = watch::channel(0);
        let failed = Arc::new(Mutex::new(None));
        let failure = Arc::clone(&failed);
        thread::spawn(move || {
            while let Some(frame) = frames.blocking_recv() {
                if let Err(error) = show(&frame) {
                    *failure.lock() = Some(error);
                    return;
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Self { to, progress: Progress { wanted: Arc::default(), written }, failed }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Queues a frame, and waits while the queue is full. Fails with the error of an earlier write.
    pub(super) async fn print(&mut self, frame: Frame) -> io::Result<()> {
        self.progress.wanted.fetch_add(1, Relaxed);
        self.to.send(frame).await.map_err(|_| self.failure())
    }

    /// Waits until all queued frames are written. Fails with the error of a failed write.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let wanted = self.progress.wanted.load(Relaxed);
        let flushed = self.progress.written.wait_for(|written| *written >= wanted).await.map(drop);
        flushed.map_err(|_| self.failure())
    }

    fn failure(&self) -> io::Error {
        self.failed.lock().take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

fn show(frame: &Frame) -> io::Result<()> {
    match frame.kind {
        FrameKind::Stderr => write(&mut stderr().lock(), &frame.bytes),
        _ => write(&mut stdout().lock(), &frame.bytes),
    }
}

fn write(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
