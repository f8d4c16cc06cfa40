//! Runs prefetch decoding and cache inserts on low-priority threads.
//!
//! Decoding at 2 Gbit/s takes a full core. On a host with two, readers and the programs blocked on
//! them would share the remainder; low priority lets the kernel give them nearly all the CPU they
//! want.

use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::oneshot;

/// Nice value of the threads. At 10, a thread gets a tenth of the CPU share of a normal thread. A
/// higher value would stall a reader that joins a decode in progress on a busy host.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// A small thread pool with a bounded queue. Dropping it runs the queued jobs, then joins the
/// threads.
#[derive(Debug)]
pub(crate) struct Workers {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, at least one. Starts fewer if the system refuses to create more.
    pub(crate) fn start(count: usize) -> Self {
        let (queue, jobs) = bounded(1024);
        let threads = (0..count.max(1)).filter_map(|_| spawn(jobs.clone())).collect();
        Self { queue: Some(queue), threads }
    }

    /// Runs `job` on a pool thread. Returns `None` if the job panicked. Without threads, or when
    /// the queue is full, the job runs on tokio's blocking pool.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = oneshot::channel();
        let job: Job = Box::new(move || {
            // The receiver is gone if the caller stopped waiting.
            drop(sender.send(job()));
        });
        // One request with many small groups can overflow the queue. A reader may have joined any
        // of them, so jobs fall back to the blocking pool instead of being dropped.
        let refused = match &self.queue {
            Some(queue) if !self.threads.is_empty() => queue.try_send(job).err(),
            _ => Some(TrySendError::Disconnected(job)),
        };
        if let Some(TrySendError::Full(job) | TrySendError::Disconnected(job)) = refused {
            tokio::task::spawn_blocking(job).await.ok()?;
        }
        done.await.ok()
    }
}

fn spawn(jobs: Receiver<Job>) -> Option<JoinHandle<()>> {
    let work = move || {
        if let Err(error) = setpriority_process(Some(gettid()), NICE) {
            tracing::debug!(%error, "can't lower the priority of a thread");
        }
        for job in jobs {
            // The caller of a job that panics gets `None`.
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        }
    };
    let started = thread::Builder::new().name("inlay-ahead".into()).spawn(work);
    started.inspect_err(|error| tracing::warn!(%error, "can't start a prefetch thread")).ok()
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            // The last job may drop the last reference to this pool: a thread must not join itself.
            if thread.thread().id() != thread::current().id() {
                drop(thread.join());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_elsewhere_and_a_panic_is_no_answer() {
        let workers = Workers::start(2);
        let here = thread::current().id();
        assert_ne!(workers.run(move || thread::current().id()).await, Some(here));
        assert_eq!(workers.run(|| -> u32 { panic!("on purpose") }).await, None);
        assert_eq!(workers.run(|| 7).await, Some(7));
        // More jobs than the queue holds: every one must get its result.
        let all = futures::future::join_all((0..3000).map(|n| workers.run(move || n))).await;
        assert!(all.into_iter().eq((0..3000).map(Some)));
        let priority = workers.run(|| rustix::process::getpriority_process(Some(gettid())));
        assert_eq!(priority.await, Some(Ok(NICE)));
    }
}
