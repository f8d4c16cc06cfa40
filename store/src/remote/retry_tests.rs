//! Tests of the retry loop on a paused clock.

use std::cell::RefCell;

use object_store::memory::InMemory;

use super::*;

fn policy() -> RetryPolicy {
    RetryPolicy { jitter: Jitter::None, ..RetryPolicy::default() }
}

fn request(policy: &RetryPolicy) -> RetriedRequest {
    RetriedRequest {
        operation: Operation::Get,
        object: "s3://b/blobs/00".to_owned(),
        bytes: 0,
        known: None,
        budget: policy.budget(),
    }
}

/// Fails the attempts with these failures in order, then succeeds. Records the time of each
/// attempt.
async fn play(
    policy: RetryPolicy,
    request: RetriedRequest,
    failures: &[Failure],
) -> (Result<(), StoreError>, Vec<Duration>) {
    let endpoint = Endpoint::fixed(Arc::new(InMemory::new()));
    let begin = Instant::now();
    let times = RefCell::new(Vec::new());
    let result = run(&endpoint, &policy, request, |_| {
        let number = times.borrow().len();
        times.borrow_mut().push(begin.elapsed());
        let outcome = failures.get(number).cloned().map_or(Ok(()), Err);
        async move { outcome }
    })
    .await;
    (result, times.into_inner())
}

fn broken() -> Failure {
    Failure::Transport("broken".to_owned())
}

#[tokio::test(start_paused = true)]
async fn waits_double_up_to_their_maximum() {
    let policy = RetryPolicy {
        backoff_first: Duration::from_millis(100),
        backoff_max: Duration::from_millis(500),
        ..policy()
    };
    let (result, times) = play(policy, request(&policy), &vec![broken(); 6]).await;
    result.unwrap();
    let times: Vec<_> = times.iter().map(Duration::as_millis).collect();
    assert_eq!(times, [0, 100, 300, 700, 1200, 1700, 2200]);
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_at_least_half_and_at_most_whole() {
    let policy = RetryPolicy { jitter: Jitter::Equal, ..RetryPolicy::default() };
    for failures in 1..8 {
        let whole = RetryPolicy { jitter: Jitter::None, ..policy }.backoff(failures);
        for _ in 0..100 {
            let wait = policy.backoff(failures);
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} {whole:?}");
        }
    }
    assert_eq!(
        RetryPolicy { jitter: Jitter::None, ..policy }.backoff(u32::MAX),
        policy.backoff_max
    );
}

#[tokio::test(start_paused = true)]
async fn attempts_end_and_the_error_tells_about_them() {
    let policy = RetryPolicy { attempts_max: 3, ..policy() };
    let (result, times) = play(policy, request(&policy), &vec![broken(); 9]).await;
    assert_eq!(times.len(), 3);
    let error = result.unwrap_err();
    assert!(matches!(&error, StoreError::Failed { attempts: 3, cause, .. } if *cause == broken()));
    let text = error.to_string();
    assert!(text.contains("s3://b/blobs/00") && text.contains("attempts: 3"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_ended_and_repeated_until_the_deadline() {
    let policy = RetryPolicy {
        attempt: Duration::from_secs(10),
        total: Duration::from_secs(35),
        ..policy()
    };
    let endpoint = Endpoint::fixed(Arc::new(InMemory::new()));
    let begin = Instant::now();
    let result: Result<(), _> =
        run(&endpoint, &policy, request(&policy), |_| std::future::pending()).await;
    assert_eq!(begin.elapsed(), Duration::from_secs(35));
    let error = result.unwrap_err();
    assert!(
        matches!(error, StoreError::Failed { attempts: 4, cause: Failure::Timeout(_), .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_wait_goes_beyond_the_deadline() {
    let policy = RetryPolicy {
        backoff_first: Duration::from_secs(4),
        backoff_max: Duration::from_mins(1),
        ..policy()
    };
    let budget = RetryBudget { total: Duration::from_secs(10), attempts_max: 100 };
    let begin = Instant::now();
    let request = RetriedRequest { budget, ..request(&policy) };
    let (result, times) = play(policy, request, &vec![broken(); 9]).await;
    // After 0 s and 4 s; the next would be at 12 s.
    assert_eq!(times.len(), 2);
    assert_eq!(begin.elapsed(), Duration::from_secs(4));
    result.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn many_bytes_get_more_time() {
    let policy = RetryPolicy { rate_min: 1000, ..policy() };
    let endpoint = Endpoint::fixed(Arc::new(InMemory::new()));
    let slow = |bytes| {
        let request = RetriedRequest { bytes, ..request(&policy) };
        run(&endpoint, &policy, request, |_| async {
            sleep(Duration::from_secs(100)).await;
            Ok(())
        })
    };
    slow(0).await.unwrap_err();
    slow(100_000).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_are_not_retried() {
    let lasting = [
        Failure::NotFound,
        Failure::Denied(String::new()),
        Failure::Conflict,
        Failure::Unsupported(String::new()),
        Failure::Disk(String::new()),
        Failure::Credentials("nobody can renew them".to_owned()),
    ];
    for failure in lasting {
        let (result, times) = play(policy(), request(&policy()), &[failure]).await;
        assert_eq!(times.len(), 1);
        result.unwrap_err();
    }
}

fn answer(status: u16, code: Option<&str>) -> crate::remote::ServerAnswer {
    crate::remote::ServerAnswer {
        status,
        code: code.map(str::to_owned),
        message: Some("text".to_owned()),
        retry_after: None,
    }
}

#[test]
fn answers_are_told_apart_by_status_and_code() {
    for status in [408, 429, 500, 502, 503, 504] {
        let remedy = Failure::from(answer(status, None)).remedy();
        assert_eq!(remedy, Remedy::Again(None), "{status}");
    }
    for (status, code) in [
        (400, None),
        (403, None),
        (403, Some("AccessDenied")),
        (403, Some("SignatureDoesNotMatch")),
        (404, None),
        (404, Some("NoSuchBucket")),
        (416, Some("InvalidRange")),
        (501, Some("NotImplemented")),
    ] {
        let remedy = Failure::from(answer(status, code)).remedy();
        assert_eq!(remedy, Remedy::Nothing, "{status} {code:?}");
    }
    for (status, code) in [
        (400, Some("ExpiredToken")),
        (400, Some("TokenRefreshRequired")),
        (401, None),
        (403, Some("RequestExpired")),
        (403, Some("InvalidToken")),
    ] {
        let remedy = Failure::from(answer(status, code)).remedy();
        assert_eq!(remedy, Remedy::FreshCredentials, "{status} {code:?}");
    }
    let busy = Failure::from(answer(400, Some("SlowDown"))).remedy();
    assert_eq!(busy, Remedy::Again(None));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_a_pause_gets_it_within_bounds() {
    let asks = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        Failure::from(crate::remote::ServerAnswer { retry_after, ..answer(503, None) })
    };
    // Longer than `backoff_max`.
    let (result, times) = play(policy(), request(&policy()), &[asks(2), asks(20)]).await;
    result.unwrap();
    assert_eq!(times, [0, 2, 22].map(Duration::from_secs));
    // Too long for the deadline: the last attempt starts as late as it can still get an answer.
    let (result, times) = play(policy(), request(&policy()), &[asks(2), asks(3600)]).await;
    result.unwrap();
    assert_eq!(times, [0, 2, 50].map(Duration::from_secs));
    let (result, times) = play(policy(), request(&policy()), &vec![asks(3600); 9]).await;
    result.unwrap_err();
    let last = *times.last().unwrap();
    assert!(last >= Duration::from_secs(50) && last < Duration::from_mins(1), "{times:?}");
    // Never shorter than the backoff.
    let failures = [broken(), broken(), broken(), asks(0)];
    let (result, times) = play(policy(), request(&policy()), &failures).await;
    result.unwrap();
    assert_eq!(times, [0, 50, 150, 350, 750].map(Duration::from_millis));
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_renewed_once_for_a_call() {
    let reopened = Arc::new(parking_lot::Mutex::new(0));
    let counter = Arc::clone(&reopened);
    let endpoint = Endpoint::reopened_by(
        Arc::new(InMemory::new()),
        Box::new(move || {
            *counter.lock() += 1;
            Some(Arc::new(InMemory::new()))
        }),
    );
    let policy = policy();
    let old = endpoint.current();
    let refused = |store: Arc<dyn ObjectStore>| {
        let is_old = Arc::ptr_eq(&store, &old);
        let refusal = Failure::Credentials("expired".to_owned());
        async move { if is_old { Err(refusal) } else { Ok(()) } }
    };
    run(&endpoint, &policy, request(&policy), refused).await.unwrap();
    run(&endpoint, &policy, request(&policy), refused).await.unwrap();
    assert_eq!(*reopened.lock(), 1);
    // A request rejected together with the first finds the new client.
    assert!(endpoint.refresh(&old));
    assert_eq!(*reopened.lock(), 1);
    let always = |_| async { Err::<(), _>(Failure::Credentials("expired".to_owned())) };
    let error = run(&endpoint, &policy, request(&policy), always).await.unwrap_err();
    assert!(matches!(error, StoreError::Failed { attempts: 2, .. }), "{error}");
    assert_eq!(*reopened.lock(), 2);
}
