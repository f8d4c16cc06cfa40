//! Tests of the store over HTTP: server responses and how the client handles them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::http_server::{Reply, Server, ServerRequest};
use super::*;
use crate::ids::{BlobId, Digest};

fn key() -> ObjectKey {
    ObjectKey::Blob(BlobId(Digest::of(b"blob")))
}

fn policy() -> RetryPolicy {
    RetryPolicy {
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        attempts_max: 4,
        ..RetryPolicy::default()
    }
}

fn s3(server: &Server, token: &str) -> StoreConfig {
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    StoreConfig {
        options: vec![
            option("AWS_ENDPOINT_URL", &server.url()),
            option("AWS_ACCESS_KEY_ID", "a"),
            option("AWS_SECRET_ACCESS_KEY", "s"),
            option("AWS_SESSION_TOKEN", token),
        ],
        retry: policy(),
        ..StoreConfig::new("s3://bucket/prefix")
    }
}

/// A server that sends these replies in order, repeats the last one, and counts requests.
async fn playing(replies: Vec<Reply>) -> (Server, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let server = Server::start(move |_| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        replies[number.min(replies.len() - 1)].clone()
    })
    .await;
    (server, count)
}

fn ranged(body: &[u8], from: usize, to: usize, of: usize) -> Reply {
    let range = format!("bytes {from}-{}/{of}", to - 1);
    Reply { headers: vec![("Content-Range", range)], ..Reply::new(206, body) }
}

#[tokio::test]
async fn passing_errors_are_retried() {
    let (server, count) = playing(vec![
        Reply::s3_error(503, "SlowDown"),
        Reply::new(500, ""),
        Reply::new(429, ""),
        Reply::new(200, "bytes"),
    ])
    .await;
    let remote = Remote::open(&s3(&server, "t")).unwrap();
    assert_eq!(remote.get(&key(), 100).await.unwrap(), "bytes");
    assert_eq!(count.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn bodies_that_are_cut_are_read_again() {
    let cut = Reply { sent: 3, ..ranged(b"bytes", 2, 7, 10) };
    let (server, count) = playing(vec![cut, ranged(b"bytes", 2, 7, 10)]).await;
    let remote = Remote::open(&s3(&server, "t")).unwrap();
    let got = remote.get_range(&key(), 2..7, policy().budget()).await.unwrap();
    assert_eq!(got, "bytes");
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_never_returned() {
    let lies = [
        ranged(b"bytes", 3, 8, 10),
        ranged(b"byte", 2, 6, 10),
        ranged(b"byte", 2, 7, 10),
        ranged(b"bytesbytes", 2, 7, 10),
        Reply::new(200, "bytes"),
        ranged(b"byte", 2, 6, 6),
    ];
    for lie in lies {
        let (server, _) = playing(vec![lie.clone()]).await;
        let remote = Remote::open(&s3(&server, "t")).unwrap();
        let error = remote.get_range(&key(), 2..7, policy().budget()).await.unwrap_err();
        assert!(error.to_string().contains(&remote.object_name(&key())), "{error}");
    }
}

#[tokio::test]
async fn permanent_errors_fail_at_once_with_the_reason() {
    for (reply, text) in [
        (Reply::s3_error(403, "AccessDenied"), "AccessDenied"),
        (Reply::s3_error(404, "NoSuchBucket"), "create the bucket"),
        (Reply::s3_error(416, "InvalidRange"), "InvalidRange"),
        (Reply::new(400, "go\naway\u{1b}[2J"), "400: go away"),
        (Reply::s3_error(404, "NoSuchKey"), "not in the store"),
    ] {
        let (server, count) = playing(vec![reply]).await;
        let remote = Remote::open(&s3(&server, "t")).unwrap();
        let error = remote.get(&key(), 100).await.unwrap_err().to_string();
        assert_eq!(count.load(Ordering::SeqCst), 1, "{error}");
        assert!(error.contains(text) && error.contains("s3://bucket/prefix/blobs/"), "{error}");
        assert!(error.chars().all(|c| !c.is_control()), "{error:?}");
    }
}

#[tokio::test]
async fn a_missing_bucket_is_not_taken_for_a_missing_object() {
    let (server, _) = playing(vec![Reply::s3_error(404, "NoSuchBucket")]).await;
    let remote = Remote::open(&s3(&server, "t")).unwrap();
    let error = remote.name(&"base".parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
}

#[tokio::test]
async fn an_error_with_an_endless_body_is_reported() {
    let (server, _) = playing(vec![Reply::new(400, vec![b'x'; 5_000_000])]).await;
    let remote = Remote::open(&s3(&server, "t")).unwrap();
    let error = remote.get(&key(), 100).await.unwrap_err().to_string();
    assert!(error.len() < 1000, "{}", error.len());
}

#[tokio::test]
async fn expired_credentials_are_gathered_again() {
    for refusal in [
        Reply::s3_error(400, "ExpiredToken"),
        Reply::s3_error(403, "RequestExpired"),
        Reply::s3_error(401, "Unauthorized"),
        Reply::new(403, ""),
    ] {
        let server = Server::start(move |request: &ServerRequest| {
            match request.headers.get("x-amz-security-token").map(String::as_str) {
                Some("new") => Reply::new(200, "bytes"),
                _ => refusal.clone(),
            }
        })
        .await;
        let stale = Remote::open(&s3(&server, "old")).unwrap();
        let error = stale.get(&key(), 100).await.unwrap_err();
        assert!(error.to_string().contains("renew the credentials"), "{error}");
        let fresh = s3(&server, "new").options;
        let refresh = OptionsRefresh(Arc::new(move || fresh.clone()));
        let config = StoreConfig { refresh: Some(refresh), ..s3(&server, "old") };
        let remote = Remote::open(&config).unwrap();
        assert_eq!(remote.get(&key(), 100).await.unwrap(), "bytes");
        // Responses to HEAD have no body that states a reason.
        let remote = Remote::open(&config).unwrap();
        assert_eq!(remote.len(&key()).await.unwrap(), Some(5));
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let server = Server::start(|_| Reply::new(200, "")).await;
    let config = s3(&server, "t");
    drop(server);
    let error = Remote::open(&config).unwrap().get(&key(), 100).await.unwrap_err();
    assert!(matches!(&error, StoreError::Failed { attempts: 4, .. }), "{error}");
    assert!(error.to_string().contains("reachable"), "{error}");
}

#[tokio::test]
async fn without_conditional_writes_names_are_still_set() {
    let server = Server::start(|request: &ServerRequest| {
        let conditional = ["if-match", "if-none-match"].map(|h| request.headers.contains_key(h));
        match (request.method.as_str(), conditional) {
            ("PUT", [false, false]) => {
                Reply { headers: vec![("ETag", "\"x\"".to_owned())], ..Reply::new(200, "") }
            }
            ("PUT", _) => Reply::s3_error(501, "NotImplemented"),
            _ => Reply::s3_error(404, "NoSuchKey"),
        }
    })
    .await;
    let remote = Remote::open(&s3(&server, "t")).unwrap();
    let record = records::tests::name_record("base", 1);
    assert_eq!(remote.set_name(&record).await.unwrap(), None);
}

/// A server that redirects all requests to `to`.
async fn redirecting(to: String) -> Server {
    Server::start(move |request: &ServerRequest| {
        let headers = vec![("Location", format!("{to}{}", request.path))];
        Reply { headers, ..Reply::new(307, "") }
    })
    .await
}

#[tokio::test]
async fn redirects_lead_to_no_other_server_with_credentials_and_to_no_other_machine() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let other = Server::start(move |_: &ServerRequest| {
        counter.fetch_add(1, Ordering::SeqCst);
        Reply::new(200, "bytes")
    })
    .await;
    // A redirect to another server on this machine: allowed for a store without credentials.
    let server = redirecting(other.url()).await;
    let web = Remote::open(&StoreConfig::new(server.url())).unwrap();
    assert_eq!(web.get(&key(), 100).await.unwrap(), "bytes");
    assert_eq!(seen.swap(0, Ordering::SeqCst), 1);
    let signed = Remote::open(&s3(&server, "t")).unwrap();
    let error = signed.get(&key(), 100).await.unwrap_err().to_string();
    assert!(error.contains("another server") && error.contains(&other.url()), "{error}");
    assert!(error.contains("attempts: 1,"), "{error}");
    assert_eq!(seen.load(Ordering::SeqCst), 0, "the request went to the other server");
    let put = signed.put_immutable(&key(), bytes::Bytes::from_static(b"x")).await.unwrap_err();
    assert!(put.to_string().contains("another server"), "{put}");
    assert_eq!(seen.load(Ordering::SeqCst), 0, "the request went to the other server");
    // A redirect to another machine over plain HTTP: an unused documentation address.
    let server = redirecting("http://192.0.2.1:1".to_owned()).await;
    let web = Remote::open(&StoreConfig::new(server.url())).unwrap();
    let error = web.get(&key(), 100).await.unwrap_err().to_string();
    assert!(error.contains("plain HTTP to another machine"), "{error}");
    assert!(error.contains("attempts: 1,"), "{error}");
}
