//! Runs work for a waiting caller and cancels it when the caller goes away or the deadline passes.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::DaemonError;

/// Spawns `work` as a task, which starts immediately, and waits at most `limit` for it. When the
/// limit passes or the returned future is dropped, the work is dropped at its current await point.
/// Output that completes at that moment is dropped as well, so its `Drop` should undo the work.
///
/// # Errors
///
/// [`DaemonError::Deadline`], [`DaemonError::Panicked`], or the error of the work.
pub(super) fn unless_given_up<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, DaemonError>> + Send + 'static,
) -> impl Future<Output = Result<T, DaemonError>> + Send {
    let given_up = CancellationToken::new();
    let guard = given_up.clone().drop_guard();
    let work = tokio::spawn(async move {
        tokio::select! {
            done = work => done,
            () = given_up.cancelled() => Err(DaemonError::Deadline(limit)),
        }
    });
    async move {
        let _guard = guard;
        let done = timeout(limit, work).await.map_err(|_| DaemonError::Deadline(limit))?;
        done.map_err(|_| DaemonError::Panicked)?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Work that never ends, and a count that drops when the work is dropped.
    fn endless() -> (Arc<()>, impl Future<Output = Result<(), DaemonError>> + Send + 'static) {
        let held = Arc::new(());
        let inside = Arc::clone(&held);
        (held, async move {
            std::future::pending::<()>().await;
            drop(inside);
            Ok(())
        })
    }

    async fn is_dropped(held: &Arc<()>) {
        while Arc::strong_count(held) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_past_its_deadline_is_dropped() {
        let (held, work) = endless();
        let limit = Duration::from_millis(1);
        let late = unless_given_up(limit, work).await.unwrap_err();
        assert!(matches!(late, DaemonError::Deadline(of) if of == limit), "{late}");
        is_dropped(&held).await;
    }

    #[tokio::test]
    async fn abandoned_work_is_dropped() {
        let (held, work) = endless();
        let gone = timeout(Duration::from_millis(1), unless_given_up(Duration::MAX, work)).await;
        assert!(gone.is_err());
        is_dropped(&held).await;
    }

    #[tokio::test]
    async fn work_done_in_time_returns_its_result() {
        let done = unless_given_up(Duration::from_mins(1), async { Ok(7) }).await;
        assert_eq!(done.unwrap(), 7);
    }
}
