//! Retries store requests with exponential backoff and deadlines.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use object_store::ObjectStore;
use tokio::time::{Instant, sleep, timeout};

use super::endpoint::Endpoint;
use super::error::StoreError;
use super::failure::{Failure, Remedy};

/// The operation of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads a whole object.
    Get,
    /// Reads part of an object.
    GetRange,
    /// Reads the length of an object.
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

/// How failed requests are retried. The timeouts nest: `stall` < `attempt` < `total`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// The maximum time without data: until the first byte, and between two.
    pub stall: Duration,
    /// The maximum duration of one attempt. Extended for large requests, see `rate_min`.
    pub attempt: Duration,
    /// The maximum duration of all attempts and the waits between them. Extended likewise.
    pub total: Duration,
    /// The maximum number of attempts. 0 counts as 1.
    pub attempts_max: u32,
    /// The wait after the first failure. Doubles with each further failure.
    pub backoff_first: Duration,
    /// The maximum wait, except for a longer one that the server requests by `Retry-After`.
    pub backoff_max: Duration,
    /// The slowest acceptable rate, in bytes per second. `attempt` and `total` are extended by the
    /// time that the bytes of a request take at this rate.
    pub rate_min: u64,
    /// The random share of a wait.
    pub jitter: Jitter,
}

/// The random share of a wait, which keeps clients that failed together from retrying together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Jitter {
    /// Half of the wait is fixed, half is random: the "equal jitter" of Marc Brooker's "Exponential
    /// Backoff And Jitter" (AWS Architecture Blog, 2015).
    Equal,
    /// No randomness.
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
    /// Returns the default budget of a call.
    pub fn budget(&self) -> RetryBudget {
        RetryBudget { total: self.total, attempts_max: self.attempts_max }
    }

    /// Returns the wait after this number of failures.
    fn backoff(&self, failures: u32) -> Duration {
        let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.backoff_first.saturating_mul(doubled).min(self.backoff_max);
        match self.jitter {
            Jitter::Equal => wait.mul_f64(0.5 + fastrand::f64() / 2.0),
            Jitter::None => wait,
        }
    }

    /// Returns the maximum duration of an attempt that transfers `bytes`.
    pub(super) fn attempt_limit(&self, bytes: u64) -> Duration {
        self.attempt + self.allowance(bytes)
    }

    /// Returns the maximum duration of all attempts of a request that transfers `bytes`.
    pub(super) fn limit(&self, bytes: u64) -> Duration {
        self.total + self.allowance(bytes)
    }

    /// Returns the time that `bytes` take at `rate_min`, in whole seconds.
    fn allowance(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / self.rate_min.max(1))
    }
}

/// The retry budget of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// The maximum duration of the call. Extended for large requests by the policy's `rate_min`.
    pub total: Duration,
    /// The maximum number of attempts. 0 counts as 1.
    pub attempts_max: u32,
}

/// A request, as seen by the retry loop.
#[derive(Debug, Clone)]
pub(super) struct RetriedRequest {
    pub(super) operation: Operation,
    /// Full name of the object, for errors.
    pub(super) object: String,
    /// Number of bytes to transfer, as far as known in advance.
    pub(super) bytes: u64,
    /// Set by the attempt to the actual number of bytes, if `bytes` is only an upper bound. It then
    /// determines the deadline of retries, and the attempt limits its own duration.
    pub(super) known: Option<Arc<AtomicU64>>,
    pub(super) budget: RetryBudget,
}

/// Calls `attempt` until it succeeds, a retry cannot help, or the budget is exhausted.
///
/// A wait that the server requests by `Retry-After` is respected in full, like clients of Azure do:
/// retrying earlier would use up the attempts on a server that has announced that it will refuse
/// them. A wait that does not fit the deadline is shortened so that the next attempt has `stall`
/// left, because the alternative is certain failure.
pub(super) async fn run<T, F, Fut>(
    endpoint: &Endpoint,
    policy: &RetryPolicy,
    request: RetriedRequest,
    mut attempt: F,
) -> Result<T, StoreError>
where
    F: FnMut(Arc<dyn ObjectStore>) -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    let begin = Instant::now();
    let most = begin + request.budget.total + policy.allowance(request.bytes);
    let (known, total) = (request.known.clone(), request.budget.total);
    let deadline = || match &known {
        Some(known) => begin + total + policy.allowance(known.load(Ordering::Relaxed)),
        None => most,
    };
    // The longest wait that leaves the next attempt time for an answer.
    let longest = || {
        let left = deadline().saturating_duration_since(Instant::now());
        left.saturating_sub(policy.stall)
    };
    let mut attempts = 0;
    let mut refreshed = false;
    loop {
        attempts += 1;
        let left = most.saturating_duration_since(Instant::now());
        let limit = policy.attempt_limit(request.bytes).min(left);
        let store = endpoint.current();
        let failure = match timeout(limit, attempt(Arc::clone(&store))).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Timeout(limit),
        };
        let RetriedRequest { operation, ref object, .. } = request;
        tracing::debug!(%operation, object, attempts, %failure, "attempt failed");
        let wait = match failure.remedy() {
            Remedy::Nothing => None,
            Remedy::Again(at_least) => {
                let wait = policy.backoff(attempts);
                Some(at_least.map_or(wait, |least| wait.max(least.min(longest()))))
            }
            Remedy::FreshCredentials if refreshed => None,
            Remedy::FreshCredentials => {
                refreshed = true;
                endpoint.refresh(&store).then_some(Duration::ZERO)
            }
        };
        let may_go_on = attempts < request.budget.attempts_max;
        match wait.filter(|wait| may_go_on && Instant::now() + *wait < deadline()) {
            Some(wait) => sleep(wait).await,
            None => return Err(give_up(request, attempts, begin.elapsed(), failure)),
        }
    }
}

fn give_up(
    request: RetriedRequest,
    attempts: u32,
    elapsed: Duration,
    cause: Failure,
) -> StoreError {
    let RetriedRequest { operation, object, .. } = request;
    match cause {
        Failure::NotFound => StoreError::NotFound { operation, object },
        cause => StoreError::Failed { operation, object, attempts, elapsed, cause },
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
