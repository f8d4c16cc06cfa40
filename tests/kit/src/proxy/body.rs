//! A body on its way through a proxy: counted, and broken if a fault says so.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::seen::{Entry, UntilEnd};
use super::{AnyBody, Failure};
use crate::faults::Fault;
use crate::link::{Direction, Paced};

/// A request's body that is counted.
pub(super) fn up(inner: Paced<Incoming>, entry: &Arc<Entry>) -> AnyBody {
    let entry = Arc::clone(entry);
    let direction = Direction::Up;
    Watched { inner, entry, direction, fault: None, passed: 0, _until_end: None }.boxed()
}

/// An answer's body that is counted and broken; the request ends with it.
pub(super) fn down(inner: Paced<Incoming>, fault: Option<Fault>, until_end: UntilEnd) -> AnyBody {
    let entry = Arc::clone(&until_end.0);
    let direction = Direction::Down;
    Watched { inner, entry, direction, fault, passed: 0, _until_end: Some(until_end) }.boxed()
}

struct Watched {
    inner: Paced<Incoming>,
    entry: Arc<Entry>,
    direction: Direction,
    fault: Option<Fault>,
    passed: u64,
    _until_end: Option<UntilEnd>,
}

impl Watched {
    /// What of these bytes is let through; none when the body has come to its early end.
    fn pass(&mut self, data: &Bytes) -> Bytes {
        let left = |at: u64| usize::try_from(at.saturating_sub(self.passed)).unwrap_or(usize::MAX);
        let data = match self.fault {
            Some(Fault::CutBody(at) | Fault::StallBody(at)) => {
                data.slice(..left(at).min(data.len()))
            }
            Some(Fault::FlipByte(at)) if at >= self.passed => {
                let mut changed = data.to_vec();
                if let Some(byte) = changed.get_mut(left(at)) {
                    *byte ^= 0x10;
                }
                changed.into()
            }
            _ => data.clone(),
        };
        let passed = data.len() as u64;
        self.passed += passed;
        self.entry.pass(self.direction, passed);
        data
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.fault {
            Some(Fault::CutBody(at)) if self.passed >= at => {
                return Poll::Ready(Some(Err("cut on purpose".into())));
            }
            // Nothing will wake this task: that is the point.
            Some(Fault::StallBody(at)) if self.passed >= at => return Poll::Pending,
            _ => {}
        }
        Pin::new(&mut self.inner).poll_frame(context).map(|frame| {
            let frame = frame?;
            Some(frame.map(|frame| frame.map_data(|data| self.pass(&data))))
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
