//! Tests of requests with keys, against a service that counts executions.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::any;
use tokio::sync::Semaphore;
use tower_service::Service;

use super::*;

/// How often the service was entered and completed; it waits for a permit in between.
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

    /// A path that is a number is answered with that status.
    fn router(counts: &Arc<Counts>, state: &Path) -> Router {
        Self::router_of(counts, Once::open(state).unwrap())
    }

    fn router_of(counts: &Arc<Counts>, once_of: Once) -> Router {
        let counts = Arc::clone(counts);
        let count = move |request: Request| {
            let counts = Arc::clone(&counts);
            async move {
                let begun = counts.begun.fetch_add(1, SeqCst) + 1;
                counts.go.acquire().await.unwrap().forget();
                counts.done.fetch_add(1, SeqCst);
                let path = request.uri().path().trim_start_matches('/');
                if path == "long" {
                    let text = "x".repeat(super::super::api::ANSWER_LEN_MAX);
                    return axum::Json(text).into_response();
                }
                let status = StatusCode::from_u16(path.parse().unwrap_or(200)).unwrap();
                (status, axum::Json(begun)).into_response()
            }
        };
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
    // Another daemon on the same state.
    of.router = Fixture::router(&of.counts, of.state.path());
    assert_eq!(of.ask("k", "/", "a").await, (200, "1".into(), true));
    for (path, body) in [("/", "b"), ("/x", "a"), ("/?x", "a")] {
        let (status, text, _) = of.ask("k", path, body).await;
        assert!(status == 422 && text.contains("key-reused"), "{text}");
    }
    assert_eq!(of.begun(), 2);
}

#[tokio::test]
async fn only_requests_that_took_effect_are_remembered() {
    let of = Fixture::new();
    for status in [200, 201, 202] {
        let (key, path) = (format!("k{status}"), format!("/{status}"));
        let answer = of.ask(&key, &path, "").await;
        assert_eq!(of.ask(&key, &path, "").await, (status, answer.1, true));
    }
    for status in [400, 404, 408, 409, 422, 429, 500, 503, 504] {
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
async fn waiting_for_another_request_has_an_end() {
    let mut of = Fixture::new();
    let wait_max = Duration::from_millis(20);
    let once_of = Once::waiting_at_most(wait_max, of.state.path()).unwrap();
    of.router = Fixture::router_of(&of.counts, once_of);
    of.counts.go.forget_permits(Semaphore::MAX_PERMITS);
    let first = tokio::spawn(of.ask("k", "/", "a"));
    while of.begun() == 0 {
        tokio::task::yield_now().await;
    }
    let (status, text, replayed) = of.ask("k", "/", "a").await;
    assert!(status == 503 && text.contains("still under way") && !replayed, "{text}");
    assert_eq!(of.begun(), 1);
    first.abort();
}

#[tokio::test]
async fn a_long_answer_is_not_given_twice_and_the_request_does_not_run_twice() {
    let state = tempfile::tempdir().unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let long = move || {
        counted.fetch_add(1, SeqCst);
        async { axum::Json("x".repeat(BODY_LEN_MAX)) }
    };
    let once_of = Once::open(state.path()).unwrap();
    let mut router = Router::new().fallback(any(long)).layer(from_fn_with_state(once_of, once));
    for status in [200, 409, 409] {
        let request = Request::post("/").header(IDEMPOTENCY_KEY, "k").body(Body::empty()).unwrap();
        assert_eq!(router.call(request).await.unwrap().status(), status);
    }
    assert_eq!(runs.load(SeqCst), 1);
}

#[tokio::test]
async fn a_damaged_answer_refuses_its_key() {
    let mut of = Fixture::new();
    of.ask("k", "/", "a").await;
    let dir = of.state.path().join("answers");
    let path = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&path, "").unwrap();
    for _ in 0..2 {
        let (status, text, _) = of.ask("k", "/", "a").await;
        assert!(status == 409 && text.contains("can't be read"), "{text}");
        of.router = Fixture::router(&of.counts, of.state.path());
    }
    assert_eq!(of.begun(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    assert_eq!(of.ask("l", "/", "a").await, first(200, "2"));
}

#[tokio::test]
async fn without_room_for_answers_requests_are_refused_before_they_run() {
    let mut of = Fixture::new();
    let dir = of.state.path().join("answers");
    std::fs::remove_dir(&dir).unwrap();
    for number in 1..=UNWRITTEN_MAX {
        let key = number.to_string();
        assert_eq!(of.ask(&key, "/", "").await, first(200, &key));
    }
    for _ in 0..2 {
        let (status, text, _) = of.ask("more", "/", "").await;
        assert!(status == 503 && text.contains("busy"), "{status} {text}");
        assert_eq!(of.ask("1", "/", "").await, (200, "1".into(), true));
    }
    assert_eq!(of.begun() as usize, UNWRITTEN_MAX);
    // Removing something may be the only way to make room.
    let stopped = (UNWRITTEN_MAX + 1).to_string();
    assert_eq!(of.ask("stop", "/stop", "").await, first(200, &stopped));
    assert_eq!(of.ask("more", "/", "").await.0, 503);
    // Once there is room, all answers are written.
    std::fs::create_dir(&dir).unwrap();
    let next = (UNWRITTEN_MAX + 2).to_string();
    assert_eq!(of.ask("more", "/", "").await, first(200, &next));
    of.router = Fixture::router(&of.counts, of.state.path());
    for (key, text) in [("1", "1"), ("64", "64"), ("more", next.as_str())] {
        assert_eq!(of.ask(key, "/", "").await, (200, text.into(), true));
    }
}

#[test]
fn effects_that_end_with_the_boot_are_told_apart() {
    for (method, path) in [(Method::POST, "/v1/mounts"), (Method::POST, "/v1/sandboxes/a/start")] {
        assert_eq!(lasts(&method, path), Lasts::UntilBoot, "{method} {path}");
    }
    for (method, path) in [
        (Method::DELETE, "/v1/mounts"),
        (Method::POST, "/v1/sandboxes/a/mounts"),
        (Method::POST, "/v1/sandboxes/a/stop"),
        (Method::POST, "/v1/snapshots"),
        (Method::DELETE, "/v1/sandboxes/a"),
        (Method::POST, "/v1/sandboxes"),
    ] {
        assert_eq!(lasts(&method, path), Lasts::Forever, "{method} {path}");
    }
}

#[tokio::test]
async fn a_request_with_too_long_an_answer_does_not_run_again() {
    let of = Fixture::new();
    for _ in 0..2 {
        let (status, text, _) = of.ask("k", "/long", "").await;
        assert!(status == 409 && text.contains("was carried out"), "{text}");
    }
    assert_eq!(of.begun(), 1);
}

#[tokio::test]
async fn keys_are_checked() {
    let of = Fixture::new();
    for key in ["", " ", "a b", &"k".repeat(129)] {
        assert_eq!(of.ask(key, "/", "").await.0, 400, "{key}");
    }
    assert_eq!(of.ask(&"k".repeat(128), "/", "").await.0, 200);
    let long = "x".repeat(COMMAND_REQUEST_LEN_MAX + 1);
    assert_eq!(of.ask("long", "/", &long).await.0, 413);
    // GET requests need no key, and a key changes nothing.
    let mut router = of.router.clone();
    for _ in 0..2 {
        let request = Request::get("/").header(IDEMPOTENCY_KEY, "g").body(Body::empty()).unwrap();
        assert_eq!(router.call(request).await.unwrap().status(), 200);
    }
    assert_eq!(of.begun(), 3);
}
