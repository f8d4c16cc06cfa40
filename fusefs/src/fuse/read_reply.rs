//! The reply to a READ, which another thread may send, or which is left to the next server.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use fuser::{ReplyData, Request};

use super::{Adapter, Origin, Shared, entry};
use crate::error::FsError;
use crate::inflight::Unique;
use crate::kind::ConnectionKind;

/// The reply to a READ.
pub(super) struct ReadReply {
    reply: Option<ReplyData>,
    pending: Pending,
    shared: Arc<Shared>,
    /// Device for sending contents past fuser, for a request replayed from a record: they may be
    /// too long for the socket that fuser replies through.
    device: Option<Arc<OwnedFd>>,
}

/// Tracks whether a READ is still unanswered, on the thread that received it from fuser.
#[derive(Clone)]
pub(super) struct Pending {
    kind: ConnectionKind,
    unique: Unique,
    answered: Arc<AtomicBool>,
    /// Left unanswered: the snapshot was not open.
    left: Arc<AtomicBool>,
}

impl Adapter {
    /// Wraps `reply`, the reply to `request`.
    pub(super) fn read_reply(&self, request: &Request, reply: ReplyData) -> ReadReply {
        ReadReply {
            reply: Some(reply),
            pending: Pending {
                kind: self.kind,
                unique: Unique(request.unique().0),
                answered: Arc::default(),
                left: Arc::default(),
            },
            shared: Arc::clone(&self.host.shared),
            device: match self.origin {
                Origin::Kernel => None,
                Origin::Records => self.host.shared_device(self.kind),
            },
        }
    }

    /// Records a READ that is still unanswered, if the kernel cannot resend it: this thread's next
    /// request overwrites its buffer.
    pub(super) fn keep_unanswered(&self, request: &Request, pending: &Pending) {
        let Some(in_flight) = self.host.shared.in_flight() else { return };
        if pending.left.load(Relaxed) {
            // Its reply is gone, so a failure here cannot be reported.
            self.leave(request);
        } else if let Err(error) =
            in_flight.hand_over(pending.kind, pending.unique, &pending.answered)
        {
            tracing::error!(%error, "a read would not outlive this process");
        }
    }
}

impl ReadReply {
    pub(super) fn pending(&self) -> Pending {
        self.pending.clone()
    }

    pub(super) fn answer(mut self, outcome: Result<&[u8], FsError>) {
        match outcome {
            Ok(bytes) => {
                if let Some(reply) = self.reply.take() {
                    match &self.device {
                        None => reply.data(bytes),
                        Some(device) => {
                            entry::send(device, self.pending.unique, bytes);
                            // `reply` owns no memory; dropping it would send a second reply.
                            std::mem::forget(reply);
                        }
                    }
                    self.is_answered();
                }
            }
            // A server that is shutting down leaves failed reads to its successor.
            Err(_) if self.shared.is_leaving() => {}
            // The request comes again.
            Err(FsError::NotYet) => {
                self.pending.left.store(true, Relaxed);
                std::mem::forget(self.reply.take());
            }
            Err(error) => {
                let errno = self.shared.refuse(&error);
                if let Some(reply) = self.reply.take() {
                    reply.error(errno);
                    self.is_answered();
                }
            }
        }
    }

    fn is_answered(&self) {
        if let Some(in_flight) = self.shared.in_flight() {
            let Pending { kind, unique, answered, .. } = &self.pending;
            in_flight.answered(*kind, *unique, Some(answered));
        }
    }
}

impl Drop for ReadReply {
    fn drop(&mut self) {
        let Some(reply) = self.reply.take() else { return };
        if self.shared.is_leaving() {
            // fuser replies with an I/O error when a reply is dropped; a forgotten one is left to
            // the next server.
            std::mem::forget(reply);
        } else {
            drop(reply);
            self.is_answered();
        }
    }
}
