//! Retries: attempts with a time each, waits between them, and an end.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use tokio::time::{Instant, sleep, timeout};

use super::endpoint::Endpoint;
use super::error::StoreError;
use super::failure::{Failure, Remedy};

/// What a request does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads a whole object.
    Get,
    /// Reads part of an object.
    GetRange,
    /// Asks for an object's length.
    Head,
    /// Writes an object.
    Put,
    /// Lists objects.
    List,
    /// Removes an object.
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get | Self::GetRange => "read",
            Self::Head => "look up",
            Self::Put => "write",
            Self::List => "list",
            Self::Delete => "remove",
        })
    }
}

/// How a store is asked again after a failure. The times nest: `stall` < `attempt` < `total`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// The longest silence: until the first byte, and between two.
    pub stall: Duration,
    /// The longest that one attempt takes, and `rate_min` gives more for many bytes.
    pub attempt: Duration,
    /// The longest that all attempts and the waits between them take, with the same addition.
    pub total: Duration,
    /// The most attempts. 0 is taken for 1.
    pub attempts_max: u32,
    /// The wait after the first failure. It doubles with each further one.
    pub backoff_first: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// The slowest link that is worth waiting for, in bytes a second: `attempt` and `total` are
    /// longer by the time that the request's bytes take at this rate.
    pub rate_min: u64,
    /// How much of a wait is drawn by lot.
    pub jitter: Jitter,
}

/// How much of a wait is drawn by lot, so that those who failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Jitter {
    /// Half of the wait is certain, half is drawn: the "equal jitter" of Marc Brooker's
    /// "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
    Equal,
    /// Nothing is drawn.
    None,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(10),
            attempt: Duration::from_secs(20),
            total: Duration::from_mins(1),
            attempts_max: 8,
            backoff_first: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            rate_min: 256 * 1024,
            jitter: Jitter::Equal,
        }
    }
}

impl RetryPolicy {
    /// The budget of a call that was given none of its own.
    pub fn budget(&self) -> RetryBudget {
        RetryBudget { total: self.total, attempts_max: self.attempts_max }
    }

    fn backoff(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.backoff_first.saturating_mul(doubled).min(self.backoff_max);
        match self.jitter {
            Jitter::Equal => wait.mul_f64(0.5 + fastrand::f64() / 2.0),
            Jitter::None => wait,
        }
    }

    /// The longest that an attempt takes that is about this many bytes.
    pub(super) fn attempt_limit(&self, bytes: u64) -> Duration {
        self.attempt + self.allowance(bytes)
    }

    fn allowance(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / self.rate_min.max(1))
    }
}

/// What one call may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// The longest that the call takes, all in all. For large requests the policy's `rate_min`
    /// adds to it.
    pub total: Duration,
    /// The most attempts. 0 is taken for 1.
    pub attempts_max: u32,
}

/// One request as seen by the loop: what it is, on what, and how large.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) operation: Operation,
    /// The object's full name, for errors.
    pub(super) object: String,
    /// Bytes that pass, as far as it is known before.
    pub(super) bytes: u64,
    pub(super) budget: RetryBudget,
}

/// Calls `attempt` until it succeeds, nothing can help, or the budget is used up.
pub(super) async fn run<T, F, Fut>(
    endpoint: &Endpoint,
    policy: &RetryPolicy,
    request: Request,
    mut attempt: F,
) -> Result<T, StoreError>
where
    F: FnMut(Arc<dyn ObjectStore>) -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    let begin = Instant::now();
    let allowance = policy.allowance(request.bytes);
    let deadline = begin + request.budget.total + allowance;
    let mut attempts = 0;
    let mut refreshed = false;
    loop {
        attempts += 1;
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = policy.attempt_limit(request.bytes).min(left);
        let store = endpoint.current();
        let failure = match timeout(limit, attempt(Arc::clone(&store))).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Timeout(limit),
        };
        let Request { operation, ref object, .. } = request;
        tracing::debug!(%operation, object, attempts, %failure, "attempt failed");
        let wait = match failure.remedy() {
            Remedy::Nothing => None,
            Remedy::Again(at_least) => {
                let wait = policy.backoff(attempts);
                Some(at_least.map_or(wait, |least| wait.max(least.min(policy.backoff_max))))
            }
            Remedy::FreshCredentials if refreshed => None,
            Remedy::FreshCredentials => {
                refreshed = true;
                endpoint.refresh(&store).then_some(Duration::ZERO)
            }
        };
        let may_go_on = attempts < request.budget.attempts_max;
        match wait.filter(|wait| may_go_on && Instant::now() + *wait < deadline) {
            Some(wait) => sleep(wait).await,
            None => return Err(give_up(request, attempts, begin.elapsed(), failure)),
        }
    }
}

fn give_up(request: Request, attempts: u32, elapsed: Duration, cause: Failure) -> StoreError {
    let Request { operation, object, .. } = request;
    match cause {
        Failure::NotFound => StoreError::NotFound { operation, object },
        cause => StoreError::Failed { operation, object, attempts, elapsed, cause },
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
