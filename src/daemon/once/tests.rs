//! Requests with keys, against a service that counts.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::any;
use tokio::sync::Semaphore;
use tower_service::Service;

use super::*;

/// How often the service was begun and how often it came to its end; it waits for a permit in between.
struct Counts {
    begun: AtomicU32,
    done: AtomicU32,
    go: Semaphore,
}

struct Fixture {
    counts: Arc<Counts>,
    state: tempfile::TempDir,
    router: Router,
}

impl Fixture {
    fn new() -> Self {
        let go = Semaphore::new(Semaphore::MAX_PERMITS);
        let counts = Counts { begun: AtomicU32::new(0), done: AtomicU32::new(0), go };
        let (counts, state) = (Arc::new(counts), tempfile::tempdir().unwrap());
        let router = Self::router(&counts, state.path());
        Self { counts, state, router }
    }

    /// A path that is a number is the status that it is answered with.
    fn router(counts: &Arc<Counts>, state: &Path) -> Router {
        let counts = Arc::clone(counts);
        let count = move |request: Request| {
            let counts = Arc::clone(&counts);
            async move {
                let begun = counts.begun.fetch_add(1, SeqCst) + 1;
                counts.go.acquire().await.unwrap().forget();
                counts.done.fetch_add(1, SeqCst);
                let status = request.uri().path().trim_start_matches('/').parse().unwrap_or(200);
                (StatusCode::from_u16(status).unwrap(), axum::Json(begun))
            }
        };
        let once_of = Once::open(state).unwrap();
        Router::new().fallback(any(count)).layer(from_fn_with_state(once_of, once))
    }

    fn ask(&self, key: &str, path: &str, body: &str) -> impl Future<Output = Seen> + use<> {
        let request = Request::post(path).header(IDEMPOTENCY_KEY, key);
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let mut router = self.router.clone();
        async move {
            let answer = router.call(request).await.unwrap();
            let status = answer.status().as_u16();
            let replayed = answer.headers().contains_key(IDEMPOTENCY_REPLAYED);
            let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap(), replayed)
        }
    }

    fn begun(&self) -> u32 {
        self.counts.begun.load(SeqCst)
    }
}

type Seen = (u16, String, bool);

fn first(status: u16, text: &str) -> Seen {
    (status, text.to_owned(), false)
}

#[tokio::test]
async fn the_second_gets_the_answer_of_the_first() {
    let mut of = Fixture::new();
    assert_eq!(of.ask("k", "/", "a").await, first(200, "1"));
    assert_eq!(of.ask("k", "/", "a").await, (200, "1".into(), true));
    assert_eq!(of.ask("l", "/", "a").await, first(200, "2"));
    // Another daemon of the same state.
    of.router = Fixture::router(&of.counts, of.state.path());
    assert_eq!(of.ask("k", "/", "a").await, (200, "1".into(), true));
    for (path, body) in [("/", "b"), ("/x", "a"), ("/?x", "a")] {
        let (status, text, _) = of.ask("k", path, body).await;
        assert!(status == 422 && text.contains("key-reused"), "{text}");
    }
    assert_eq!(of.begun(), 2);
}

#[tokio::test]
async fn what_may_go_otherwise_next_time_is_not_remembered() {
    let of = Fixture::new();
    for status in [400, 404, 409, 422] {
        let (key, path) = (format!("k{status}"), format!("/{status}"));
        let answer = of.ask(&key, &path, "").await;
        assert_eq!(of.ask(&key, &path, "").await, (status, answer.1, true));
    }
    for status in [408, 429, 500, 503, 504] {
        let (key, path) = (format!("k{status}"), format!("/{status}"));
        let begun = of.begun();
        of.ask(&key, &path, "").await;
        assert!(!of.ask(&key, &path, "").await.2, "{status}");
        assert_eq!(of.begun(), begun + 2);
    }
}

#[tokio::test]
async fn one_runs_and_the_others_wait_for_it() {
    let of = Fixture::new();
    of.counts.go.forget_permits(Semaphore::MAX_PERMITS);
    let asked: Vec<_> = (0..8).map(|_| tokio::spawn(of.ask("k", "/", "a"))).collect();
    while of.begun() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(of.ask("k", "/", "other").await.0, 422);
    of.counts.go.add_permits(1);
    let mut replayed = 0;
    for asked in asked {
        let seen = asked.await.unwrap();
        assert_eq!(seen.1, "1");
        replayed += u32::from(seen.2);
    }
    assert_eq!((of.begun(), replayed), (1, 7));
}

#[tokio::test]
async fn after_one_that_was_given_up_the_next_one_runs() {
    let of = Fixture::new();
    of.counts.go.forget_permits(Semaphore::MAX_PERMITS);
    let gone = tokio::spawn(of.ask("k", "/", "a"));
    while of.begun() == 0 {
        tokio::task::yield_now().await;
    }
    let next = tokio::spawn(of.ask("k", "/", "a"));
    tokio::time::sleep(Duration::from_millis(1)).await;
    gone.abort();
    while of.begun() == 1 {
        tokio::task::yield_now().await;
    }
    of.counts.go.add_permits(1);
    assert_eq!(next.await.unwrap(), first(200, "2"));
    assert_eq!(of.counts.done.load(SeqCst), 1);
}

#[tokio::test]
async fn keys_are_checked() {
    let of = Fixture::new();
    for key in ["", " ", "a b", &"k".repeat(129)] {
        assert_eq!(of.ask(key, "/", "").await.0, 400, "{key}");
    }
    assert_eq!(of.ask(&"k".repeat(128), "/", "").await.0, 200);
    let long = "x".repeat(REQUEST_LEN_MAX + 1);
    assert_eq!(of.ask("long", "/", &long).await.0, 413);
    // Reading needs no key, and one changes nothing.
    let mut router = of.router.clone();
    for _ in 0..2 {
        let request = Request::get("/").header(IDEMPOTENCY_KEY, "g").body(Body::empty()).unwrap();
        assert_eq!(router.call(request).await.unwrap().status(), 200);
    }
    assert_eq!(of.begun(), 3);
}
