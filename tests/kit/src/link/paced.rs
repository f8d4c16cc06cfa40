//! A body that passes at the pace of a link, in frames small enough to share it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::clock::{Ticket, Turn};
use super::timer::Timer;
use super::{Direction, Link};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A frame that waits for its turn.
struct Held {
    frame: Bytes,
    ticket: Ticket,
    wait: Wait,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    /// The frame is not due.
    Timer,
    /// It is due; others are before it, and will wake it.
    Others,
}

/// A body on its way over a link.
pub(crate) struct Paced<B> {
    inner: B,
    link: Arc<Link>,
    direction: Direction,
    /// What came and has no time on the link yet.
    rest: Bytes,
    held: Option<Held>,
    /// When the last frame was due.
    previous: Option<Duration>,
    /// Made when it is needed: most bodies are shorter than what may pass at once.
    timer: Option<Timer>,
}

impl<B> Paced<B> {
    pub(crate) fn new(inner: B, link: Arc<Link>, direction: Direction) -> Self {
        let rest = Bytes::new();
        Self { inner, link, direction, rest, held: None, previous: None, timer: None }
    }

    /// Takes the next frame off the rest: to pass now, or to be held.
    fn next_frame(&mut self) -> Result<Option<Bytes>, Failure> {
        let slot = self.link.reserve(self.direction, self.rest.len(), self.previous);
        let Some(slot) = slot else { return Ok(Some(std::mem::take(&mut self.rest))) };
        let frame = self.rest.split_to(slot.bytes.min(self.rest.len()));
        self.previous = Some(slot.due);
        let Turn::Waits(ticket) = slot.turn else { return Ok(Some(frame)) };
        let wait = if slot.due > slot.now { Wait::Timer } else { Wait::Others };
        self.held = Some(Held { frame, ticket, wait });
        if wait == Wait::Timer {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                none => none.insert(Timer::new()?),
            };
            timer.set(slot.due.saturating_sub(slot.now))?;
        }
        Ok(None)
    }

    /// Waits for the turn of the held frame; none if there is no such frame.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let Some(held) = &mut self.held else { return Poll::Ready(Ok(None)) };
        if held.wait == Wait::Timer
            && let Some(timer) = &mut self.timer
            && timer.poll(context)?.is_ready()
        {
            held.wait = Wait::Others;
        }
        // Asked even if the timer goes on: the link may have become another one.
        if !self.link.passes(self.direction, held.ticket, context.waker()) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.held.take().map(|held| held.frame)))
    }
}

impl<B> Drop for Paced<B> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.link.give_up(self.direction, held.ticket);
        }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Failure>,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        loop {
            if let Some(frame) = ready!(self.poll_held(context))? {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            if self.rest.is_empty() {
                match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => self.rest = data,
                        Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                    },
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    None => return Poll::Ready(None),
                }
            }
            if let Some(frame) = self.next_frame()? {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.held.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let own = (self.rest.len() + self.held.as_ref().map_or(0, |held| held.frame.len())) as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(own));
        if let Some(upper) = inner.upper().and_then(|upper| upper.checked_add(own)) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http_body_util::{BodyExt as _, Full};

    use super::*;
    use crate::link::profile::{Bandwidth, LinkProfile};

    fn paced(bytes: usize, profile: LinkProfile) -> Paced<Full<Bytes>> {
        let link = Arc::new(Link::new());
        link.shape(profile);
        Paced::new(Full::from(vec![7; bytes]), link, Direction::Down)
    }

    #[tokio::test]
    async fn large_frames_are_split_and_take_their_time() {
        let bandwidth = Bandwidth::bytes_per_second(10_000_000);
        let mut body = paced(300_000, LinkProfile::new(Duration::ZERO, Some(bandwidth)));
        let start = Instant::now();
        let mut passed = 0;
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.len() <= 16 << 10);
            passed += data.len();
            assert_eq!(body.size_hint().exact(), Some(300_000 - passed as u64));
            assert_eq!(body.is_end_stream(), passed == 300_000);
        }
        assert_eq!(passed, 300_000);
        assert!(start.elapsed() >= Duration::from_millis(29));
    }

    #[tokio::test]
    async fn a_link_without_a_shape_passes_bytes_unchanged() {
        let mut body = paced(300_000, LinkProfile::NONE);
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap().len(), 300_000);
        assert!(body.frame().await.is_none());
    }
}
