//! A sleep that ends within a fraction of a millisecond of its time.
//!
//! The runtime's own timers count whole milliseconds and round up: too coarse for a link whose
//! latency is two of them. The kernel's timers, waited for as descriptors, are not.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::unix::pipe::Receiver;

/// One timer of the kernel. It has to be made and polled within a runtime.
///
/// A timer is read as a pipe is: there is nothing to read until its time has come. The runtime's
/// type for pipes is what takes such a descriptor without unsafe code.
#[derive(Debug)]
pub(super) struct Timer(Receiver);

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// Lets the timer end after this time, whatever it was set to before.
    pub(super) fn set(&self, time: Duration) -> io::Result<()> {
        // A timer that is set to 0 is switched off.
        let time = time.max(Duration::from_nanos(1));
        let value = Timespec::try_from(time).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Ready when the time has passed; once for each [`Timer::set`].
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut count = [0; 8];
        Pin::new(&mut self.0).poll_read(context, &mut ReadBuf::new(&mut count))
    }
}

/// Sleeps for this time.
pub(super) async fn sleep(time: Duration) -> io::Result<()> {
    let mut timer = Timer::new()?;
    timer.set(time)?;
    poll_fn(|context| timer.poll(context)).await
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_sleep_is_as_long_as_it_was_set_to() {
        let start = Instant::now();
        let mut timer = Timer::new().unwrap();
        for time in [3, 0, 5].map(Duration::from_millis) {
            // Set to something else first: that does not count.
            timer.set(Duration::from_hours(1)).unwrap();
            timer.set(time).unwrap();
            poll_fn(|context| timer.poll(context)).await.unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(8));
    }
}
