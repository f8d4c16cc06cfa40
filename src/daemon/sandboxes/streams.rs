//! Exec, attach, logs and file copies: streams that last as long as their clients stay.

use std::future::Future;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use inlay_sandbox::copy::{
    Holes, Keep, PIECES, Piece, PieceReader, PieceWriter, Root, pack, unpack,
};
use inlay_sandbox::{ExecOptions, LogEntry, LogFrom, LogReader, Phase, StdinFlow, Stream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::{Sandbox, Service};
use crate::daemon::api::{AttachTo, CopiedInto};
use crate::daemon::error::DaemonError;

/// Data to send, in pieces. Ends with an error or without.
pub(in crate::daemon) type Pieces = mpsc::Receiver<Piece>;

/// Log entries read per batch.
const ENTRIES_AT_ONCE: usize = 64;

/// Requested part of a log.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon) struct LogWanted {
    pub(in crate::daemon) tail: Option<usize>,
    pub(in crate::daemon) since_ns: u64,
    /// Whether to keep sending new entries.
    pub(in crate::daemon) follow: bool,
}

impl Service {
    /// Runs `work` until it completes or the daemon stops.
    pub(in crate::daemon) fn while_serving(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.lifecycle().stop_token().clone();
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
        flow: StdinFlow,
    ) -> Result<Stream, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let started = spawn_blocking(move || {
            sandbox.running()?;
            Ok(sandbox.monitor().with_stdin(flow).exec(&options)?)
        });
        started.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Attaches to the first program's input and output.
    pub(in crate::daemon) async fn attach_to(
        &self,
        reference: &str,
        wanted: AttachTo,
        flow: StdinFlow,
    ) -> Result<Stream, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let attached = spawn_blocking(move || {
            sandbox.running()?;
            let monitor = sandbox.monitor().with_stdin(flow);
            Ok(monitor.attach(wanted.stdin, wanted.size, wanted.shown)?)
        });
        attached.await.map_err(|_| DaemonError::Panicked)?
    }

    /// Streams the first program's output as lines of JSON.
    pub(in crate::daemon) fn logs_of(
        &self,
        reference: &str,
        wanted: LogWanted,
    ) -> Result<Pieces, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let from = LogFrom { tail: wanted.tail, since_ns: wanted.since_ns };
        let reader = LogReader::open(sandbox.layout(), from)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let stop = self.lifecycle().stop_token().clone();
        self.sandboxes().streams.spawn(async move {
            let follower = Follower { sandbox, reader, wanted };
            let sent = tokio::select! {
                sent = follower.send_to(&sender) => sent,
                // Otherwise a truncated stream would look complete.
                () = stop.cancelled() => Err(DaemonError::Ending),
            };
            if let Err(error) = sent {
                // A client that is gone needs no error.
                let _ = sender.send(Err(io::Error::other(error))).await;
            }
        });
        Ok(receiver)
    }

    /// Streams the file or tree at `path` in a sandbox as a tar archive.
    pub(in crate::daemon) async fn copy_out(
        &self,
        reference: &str,
        path: PathBuf,
        holes: Holes,
    ) -> Result<Pieces, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let failed = sender.clone();
        let (begun, begins) = oneshot::channel();
        self.sandboxes().streams.spawn_blocking(move || {
            let mut out = Begun { begun: Some(begun), out: PieceWriter::new(sender) };
            let packed = sandbox.root().and_then(|root| Ok(pack(&root, &path, holes, &mut out)?));
            let packed = packed.map_err(|error| sandbox.blame_removal(error));
            let begun = out.begun.take();
            let outcome = packed.and_then(|_| out.out.finish().map_err(|_| DaemonError::Ending));
            match (outcome, begun) {
                (Ok(()), _) => {}
                // A failure before the first byte is returned as the answer.
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

    /// Unpacks a tar archive at `path` in a sandbox. When the daemon stops, fails with
    /// [`DaemonError::Ending`]; the objects created so far remain.
    pub(in crate::daemon) async fn copy_in(
        &self,
        reference: &str,
        path: PathBuf,
        keep: Keep,
        archive: impl futures::Stream<Item = Piece>,
    ) -> Result<CopiedInto, DaemonError> {
        let sandbox = self.sandboxes().find(reference)?;
        let (sender, receiver) = mpsc::channel(PIECES);
        let copying = self.sandboxes().streams.spawn_blocking(move || {
            let unpacked = || {
                let place = sandbox.root()?.place(&path)?;
                Ok::<_, DaemonError>(unpack(&place, PieceReader::new(receiver), keep)?)
            };
            unpacked().map_err(|error| sandbox.blame_removal(error))
        });
        let stop = self.lifecycle().stop_token();
        let feeding = async {
            let mut archive = pin!(archive);
            loop {
                let piece = tokio::select! {
                    piece = archive.next() => piece,
                    () = stop.cancelled() => Some(Err(io::Error::other(DaemonError::Ending))),
                };
                let Some(piece) = piece else { break };
                let failed = piece.is_err();
                // If the receiver has failed, its result says why.
                if sender.send(piece).await.is_err() || failed {
                    break;
                }
            }
            drop(sender);
        };
        let (copied, ()) = tokio::join!(copying, feeding);
        let copied = match copied.map_err(|_| DaemonError::Panicked)? {
            Err(_) if stop.is_cancelled() => return Err(DaemonError::Ending),
            copied => copied?,
        };
        Ok(CopiedInto {
            objects: copied.objects,
            bytes: copied.bytes,
            left_out: copied.left_out,
            attributes_left_out: copied.attributes_left_out,
        })
    }
}

impl Sandbox {
    /// Returns the cause of a failed copy: files of a sandbox that is being removed are missing.
    fn blame_removal(&self, error: DaemonError) -> DaemonError {
        let record = self.record.lock();
        match record.phase {
            Phase::Removing => DaemonError::BeingRemoved(record.name.clone()),
            Phase::Creating | Phase::Running | Phase::Stopped { .. } => error,
        }
    }
}

/// A client that reads a log.
struct Follower {
    sandbox: Arc<Sandbox>,
    reader: LogReader,
    wanted: LogWanted,
}

impl Follower {
    /// Sends the log's entries and, with `follow`, new ones. Occupies no thread while it waits.
    async fn send_to(self, to: &mpsc::Sender<Piece>) -> Result<(), DaemonError> {
        let Self { sandbox, mut reader, wanted } = self;
        let mut pulse = wanted.follow.then(|| sandbox.pulse());
        loop {
            let mark = match &mut pulse {
                Some(pulse) => pulse.mark().await?,
                None => None,
            };
            let read = spawn_blocking(move || {
                let mut entries = Vec::new();
                while entries.len() < ENTRIES_AT_ONCE
                    && let Some(entry) = reader.next_entry()?
                {
                    entries.push(entry);
                }
                Ok::<_, DaemonError>((reader, entries))
            });
            let (back, entries) = read.await.map_err(|_| DaemonError::Panicked)??;
            reader = back;
            let more = entries.len() == ENTRIES_AT_ONCE;
            for entry in &entries {
                let line = line(entry).map_err(DaemonError::io("send", "a log".as_ref()))?;
                if to.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
            match (&mut pulse, mark) {
                _ if more => {}
                (Some(pulse), Some(mark)) if mark.open => tokio::select! {
                    () = pulse.changed(mark) => {}
                    () = to.closed() => return Ok(()),
                },
                _ => return Ok(()),
            }
        }
    }
}

impl Sandbox {
    /// Returns the root as the sandbox sees it; if it does not run, its root without the mounts in
    /// it.
    fn root(self: &Arc<Self>) -> Result<Root, DaemonError> {
        if let Some(first) = self.process()? {
            let opened =
                Root::open(&Path::new("/proc").join(first.id().pid.to_string()).join("root"));
            match opened {
                // A process about to end loses its root before it is dead.
                Err(error) if error.is_not_found() => {}
                // If it has ended, the pid, and so the opened root, may be another process's.
                opened if first.is_alive() => return Ok(opened?),
                _ => {}
            }
        }
        Ok(Root::open(&self.layout().rootfs())?)
    }
}

fn line(entry: &LogEntry) -> io::Result<Bytes> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line.into())
}

/// Signals the first byte of an archive.
struct Begun {
    begun: Option<oneshot::Sender<Result<(), DaemonError>>>,
    out: PieceWriter,
}

impl Begun {
    fn begins(&mut self) {
        if let Some(begun) = self.begun.take() {
            // The receiver may be gone; the next write notices.
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use inlay_sandbox::copy::{FilePrivileges, Owners};
    use inlay_sandbox::{Layout, SandboxId};
    use tokio::runtime::Handle;
    use tokio::time::timeout;

    use super::*;
    use crate::daemon::sandboxes::damaged::unknown;
    use crate::daemon::testing;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upload_keeps_the_daemon_until_it_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let service = testing::service(dir.path(), &Handle::current());
        let id: SandboxId = "sb-0123456789ab".parse().unwrap();
        let sandbox = Sandbox::new(Layout::of(dir.path(), &id), unknown(&id));
        fs::create_dir_all(sandbox.layout().rootfs()).unwrap();
        service.sandboxes().add(&sandbox).unwrap();
        let (sender, mut pieces) = mpsc::channel(1);
        let archive = futures::stream::poll_fn(move |context| pieces.poll_recv(context));
        let copying = service.clone();
        let copied = tokio::spawn(async move {
            let keep = Keep { owners: Owners::Kept, privileges: FilePrivileges::Kept };
            copying.copy_in(id.as_str(), "/".into(), keep, archive).await
        });
        // More than the channels hold, so that the copy has begun.
        for byte in 0..u8::try_from(PIECES).unwrap() + 3 {
            let sent = timeout(Duration::from_mins(1), sender.send(Ok(vec![byte].into())));
            sent.await.unwrap().unwrap();
        }
        assert!(!service.close_if_idle());
        service.lifecycle().stop_token().cancel();
        let copied = timeout(Duration::from_mins(1), copied).await.unwrap().unwrap();
        assert!(matches!(copied, Err(DaemonError::Ending)), "{copied:?}");
        let idle = async {
            while !service.close_if_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_mins(1), idle).await.unwrap();
    }
}
