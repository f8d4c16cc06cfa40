//! Programs in sandboxes, their output, and files, for clients that stay for as long as it takes.

use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::{Sandbox, Service};
use crate::copy::{Owners, PIECES, Piece, PieceReader, PieceWriter, Root, pack, unpack};
use crate::daemon::api::{AttachTo, CopiedInto};
use crate::daemon::error::DaemonError;
use crate::sandbox::{ExecOptions, LogEntry, LogFrom, LogReader, Stream, Waited};

/// What is sent, piece by piece. It ends with an error or without.
pub(in crate::daemon) type Pieces = mpsc::Receiver<Piece>;

/// How soon it is noticed that nobody follows a log any more.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Which part of a log is wanted.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon) struct LogWanted {
    pub(in crate::daemon) tail: Option<usize>,
    pub(in crate::daemon) since_ns: u64,
    /// Whether what comes is wanted, too.
    pub(in crate::daemon) follow: bool,
}

impl Service {
    /// Does something until it is done or the daemon ends.
    pub(in crate::daemon) fn while_serving(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop_token().clone();
        self.sandboxes().streams.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Runs a program in a sandbox.
    pub(in crate::daemon) async fn exec_in(
        &self,
        reference: &str,
        options: ExecOptions,
    ) -> Result<Stream, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let started = spawn_blocking(move || {
            sandbox.running()?;
            Ok(sandbox.monitor().exec(&options)?)
        });
        started.await.map_err(|_| DaemonError::Panicked)?
    }

    /// The first program's input and output.
    pub(in crate::daemon) async fn attach_to(
        &self,
        reference: &str,
        wanted: AttachTo,
    ) -> Result<Stream, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let attached = spawn_blocking(move || {
            sandbox.running()?;
            Ok(sandbox.monitor().attach(wanted.stdin, wanted.size, wanted.shown)?)
        });
        attached.await.map_err(|_| DaemonError::Panicked)?
    }

    /// The first program's output, as lines of JSON.
    pub(in crate::daemon) fn logs_of(
        &self,
        reference: &str,
        wanted: LogWanted,
    ) -> Result<Pieces, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let from = LogFrom { tail: wanted.tail, since_ns: wanted.since_ns };
        let mut reader = LogReader::open(sandbox.layout(), from)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let stop = self.stop_token().clone();
        self.sandboxes().streams.spawn_blocking(move || {
            while !sender.is_closed() {
                if stop.is_cancelled() {
                    // Else what is cut off would look whole.
                    let _ = sender.blocking_send(Err(io::Error::other(DaemonError::Ending)));
                    return;
                }
                let next = if wanted.follow {
                    reader.wait_entry(LOOK_AGAIN)
                } else {
                    reader.next_entry().map(|entry| entry.map_or(Waited::Ended, Waited::Entry))
                };
                let piece = match next {
                    Ok(Waited::Entry(entry)) => line(&entry),
                    Ok(Waited::Nothing) => continue,
                    Ok(Waited::Ended) => return,
                    Err(error) => Err(io::Error::other(error)),
                };
                let failed = piece.is_err();
                if sender.blocking_send(piece).is_err() || failed {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    /// The object at `path` in a sandbox, with all below it, as a tar archive.
    pub(in crate::daemon) async fn copy_out(
        &self,
        reference: &str,
        path: PathBuf,
    ) -> Result<Pieces, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let failed = sender.clone();
        let (begun, begins) = oneshot::channel();
        self.sandboxes().streams.spawn_blocking(move || {
            let mut out = Begun { begun: Some(begun), out: PieceWriter::new(sender) };
            let packed = sandbox.root().and_then(|root| Ok(pack(&root, &path, &mut out)?));
            let begun = out.begun.take();
            let outcome = packed.and_then(|_| out.out.finish().map_err(|_| DaemonError::Ending));
            match (outcome, begun) {
                (Ok(()), _) => {}
                // What fails before anything was found is an answer of its own.
                (Err(error), Some(begun)) => {
                    let _ = begun.send(Err(error));
                }
                (Err(error), None) => {
                    let _ = failed.blocking_send(Err(io::Error::other(error)));
                }
            }
        });
        begins.await.map_err(|_| DaemonError::Panicked)?.map(|()| receiver)
    }

    /// Makes what a tar archive has at `path` in a sandbox.
    pub(in crate::daemon) async fn copy_in(
        &self,
        reference: &str,
        path: PathBuf,
        owners: Owners,
        pieces: Pieces,
    ) -> Result<CopiedInto, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let copied = spawn_blocking(move || {
            let place = sandbox.root()?.place(&path)?;
            Ok::<_, DaemonError>(unpack(&place, PieceReader::new(pieces), owners)?)
        });
        let copied = copied.await.map_err(|_| DaemonError::Panicked)??;
        let (objects, bytes, left_out) = (copied.objects, copied.bytes, copied.left_out);
        Ok(CopiedInto { objects, bytes, left_out })
    }
}

impl Sandbox {
    /// What it sees as its root; if it does not run, its root without what was mounted in it.
    fn root(self: &Arc<Self>) -> Result<Root, DaemonError> {
        let path = match self.running() {
            Ok(first) => Path::new("/proc").join(first.pid.to_string()).join("root"),
            Err(_) => self.layout().rootfs(),
        };
        Ok(Root::open(&path)?)
    }
}

fn line(entry: &LogEntry) -> io::Result<Bytes> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line.into())
}

/// Tells when there is something of an archive.
struct Begun {
    begun: Option<oneshot::Sender<Result<(), DaemonError>>>,
    out: PieceWriter,
}

impl Begun {
    fn begins(&mut self) {
        if let Some(begun) = self.begun.take() {
            // Nobody may wait for it any more; that is noticed when more is sent.
            let _ = begun.send(Ok(()));
        }
    }
}

impl Write for Begun {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begins();
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
