//! Threads that decode and store what no reader waits for, at a lower priority than everything else.
//!
//! Decoding what comes at 2 Gbit/s takes a core. On a host of two, readers and the programs that wait
//! for them would share what is left; as it is, the kernel gives them nearly all they want.

use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::oneshot;

/// How nice the threads are: with 10, one gets a tenth of what a usual thread gets beside it. More
/// would let a reader that joins what is being decoded wait too long on a busy host.
const NICE: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads and their queue. Dropping it ends them, after what is queued.
#[derive(Debug)]
pub(crate) struct Workers {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, one at least. Fewer come if the system has no more.
    pub(crate) fn start(count: usize) -> Self {
        let (queue, jobs) = bounded(1024);
        let threads = (0..count.max(1)).filter_map(|_| spawn(jobs.clone())).collect();
        Self { queue: Some(queue), threads }
    }

    /// Runs `job` on one of the threads. `None` if there are none, or if it panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (sender, done) = oneshot::channel();
        let job: Job = Box::new(move || {
            // Nobody may wait any more.
            drop(sender.send(job()));
        });
        // Many small groups of one request may be more than the queue holds: a reader may have joined
        // one of them, so none is dropped.
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
            tracing::debug!(%error, "a thread stays at the usual priority");
        }
        for job in jobs {
            // A job that panics is the answer `None` to whoever gave it.
            drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        }
    };
    let started = thread::Builder::new().name("inlay-ahead".into()).spawn(work);
    started
        .inspect_err(|error| tracing::warn!(%error, "a thread for prefetching can't be had"))
        .ok()
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            // The last job may hold the last reference to what holds this.
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
        // More than the queue holds: each has its answer.
        let all = futures::future::join_all((0..3000).map(|n| workers.run(move || n))).await;
        assert!(all.into_iter().eq((0..3000).map(Some)));
        let priority = workers.run(|| rustix::process::getpriority_process(Some(gettid())));
        assert_eq!(priority.await, Some(Ok(NICE)));
    }
}
