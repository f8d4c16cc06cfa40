//! Tests against a real registry, and through a proxy that injects faults.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::registry::{Access, PASSWORD, Registry as Server, USER};
use oci_client::RegistryOperation;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::manifest::{OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::import::NoProgress;
use crate::import::image::testing::{TestImage, assert_is_the_image, message, options};
use crate::import::testing::MemorySink;

struct Setup {
    runtime: Runtime,
    scratch: TempDir,
    image: TestImage,
}

impl Setup {
    fn new() -> Self {
        Self {
            runtime: Runtime::new().unwrap(),
            scratch: tempfile::tempdir().unwrap(),
            image: TestImage::new(),
        }
    }

    /// Pushes the image to the registry as `name`.
    fn push(&self, registry: SocketAddr, name: &str, auth: &RegistryAuth) {
        let reference: Reference = format!("{registry}/{name}").parse().unwrap();
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let client = Client::new(config);
        let manifest: OciImageManifest =
            serde_json::from_slice(&self.image.blobs[&self.image.manifest]).unwrap();
        self.runtime.block_on(async {
            client.auth(&reference, auth, RegistryOperation::Push).await.unwrap();
            for (digest, bytes) in &self.image.blobs {
                client.push_blob(&reference, bytes.clone(), digest).await.unwrap();
            }
            client.push_manifest(&reference, &OciManifest::Image(manifest)).await.unwrap();
        });
    }

    fn import(
        &self,
        reference: &str,
        sink: &mut MemorySink,
        docker_config: Option<PathBuf>,
    ) -> Result<Imported, ImportError> {
        self.import_with(reference, sink, docker_config, &NoProgress)
    }

    fn import_with(
        &self,
        reference: &str,
        sink: &mut MemorySink,
        docker_config: Option<PathBuf>,
        progress: &dyn Progress,
    ) -> Result<Imported, ImportError> {
        let retry = Retry {
            tries: 3,
            first_pause: Duration::from_millis(1),
            idle_timeout: Duration::from_millis(500),
        };
        let registry = RegistryOptions { docker_config, retry, ..RegistryOptions::default() };
        let options = ImportOptions { registry, ..options(self.scratch.path()) };
        let imported = import_registry(reference, &options, sink, progress);
        assert_eq!(fs::read_dir(self.scratch.path()).unwrap().count(), 0, "files are left");
        imported
    }

    fn succeeds(&self, reference: &str) {
        let mut sink = MemorySink::default();
        let imported = self.import(reference, &mut sink, None).unwrap();
        assert_is_the_image(&imported, &sink, &self.image);
    }

    fn failure(&self, reference: &str) -> String {
        message(self.import(reference, &mut MemorySink::default(), None))
    }
}

#[test]
fn an_image_is_brought_by_tag_and_by_digest() {
    let setup = Setup::new();
    let server = Server::start(Access::Open).unwrap();
    let address = server.address();
    setup.push(address, "some/image:v1", &RegistryAuth::Anonymous);
    setup.succeeds(&format!("{address}/some/image:v1"));
    // The registry stores the manifest as the client above wrote it.
    let client =
        Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: Reference = format!("{address}/some/image:v1").parse().unwrap();
    let digest = client.fetch_manifest_digest(&reference, &RegistryAuth::Anonymous);
    let digest = setup.runtime.block_on(digest).unwrap();
    setup.succeeds(&format!("{address}/some/image@{digest}"));

    let error = setup.failure(&format!("{address}/some/image:v2"));
    assert!(error.contains("check the name and the tag"), "{error}");
    let error = setup.failure(&format!("{address}/some/image@sha256:{}", "0".repeat(64)));
    assert!(error.contains("check the name and the tag"), "{error}");
}

#[test]
fn a_password_is_taken_from_dockers_file() {
    let setup = Setup::new();
    let server = Server::start(Access::Password).unwrap();
    let address = server.address();
    let auth = RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned());
    setup.push(address, "private:v1", &auth);
    let reference = format!("{address}/private:v1");
    let error = setup.failure(&reference);
    assert!(error.contains(&format!("docker login {address}")), "{error}");

    let docker = tempfile::tempdir().unwrap();
    let write = |password: &str| {
        let user = serde_json::json!({ "username": USER, "password": password });
        let config = serde_json::json!({ "auths": { address.to_string(): user } });
        fs::write(docker.path().join("config.json"), config.to_string()).unwrap();
    };
    let import =
        |sink: &mut MemorySink| setup.import(&reference, sink, Some(docker.path().to_owned()));
    write("wrong");
    let error = message(import(&mut MemorySink::default()));
    assert!(error.contains("docker login") && !error.contains("wrong"), "{error}");
    write(PASSWORD);
    let mut sink = MemorySink::default();
    let imported = import(&mut sink).unwrap();
    assert_is_the_image(&imported, &sink, &setup.image);
}

#[test]
fn passing_faults_are_ridden_out() {
    let setup = Setup::new();
    let server = Server::start(Access::Open).unwrap();
    setup.push(server.address(), "image:v1", &RegistryAuth::Anonymous);
    let proxy = Proxy::start(server.address()).unwrap();
    let reference = format!("{}/image:v1", proxy.address());
    for (path, fault) in [
        ("/v2/", Fault::Status(503)),
        ("/manifests/", Fault::Status(429)),
        ("/manifests/", Fault::CutBody(20)),
        ("/manifests/", Fault::StallBody(20)),
        ("/blobs/", Fault::Status(500)),
        ("/blobs/", Fault::Status(401)),
        ("/blobs/", Fault::CutBody(20)),
        ("/blobs/", Fault::FlipByte(20)),
        ("/blobs/", Fault::Stall),
    ] {
        proxy.heal();
        proxy.inject(Rule::new(fault).method("GET").path(path).times(2));
        if fault == Fault::Status(401) {
            // Each blob logs in again once, so one refusal each is survivable.
            proxy.heal();
            proxy.inject(Rule::new(fault).method("GET").path(path).times(1));
        }
        setup.succeeds(&reference);
    }
}

#[test]
fn a_login_that_fails_for_a_moment_is_repeated() {
    let setup = Setup::new();
    let server = Server::start(Access::Open).unwrap();
    setup.push(server.address(), "image:v1", &RegistryAuth::Anonymous);
    let proxy = Proxy::start(server.address()).unwrap();
    let reference = format!("{}/image:v1", proxy.address());
    // The first login succeeds, the manifest is refused, and the second login gets no answer.
    let refused = Rule::new(Fault::Status(401)).method("GET").path("/manifests/");
    let stalled = Rule::new(Fault::Stall).method("GET").path("/v2/").after(1);
    proxy.inject(refused.clone().times(2));
    proxy.inject(stalled.clone().times(1));
    setup.succeeds(&reference);

    proxy.heal();
    proxy.inject(refused);
    proxy.inject(stalled);
    let error = setup.failure(&reference);
    assert!(error.contains("logging in") && error.contains("check the network"), "{error}");
    assert!(!error.contains("docker login"), "{error}");
}

/// Sums up the bytes that an import expects and reports.
#[derive(Default)]
struct Sums {
    expected: AtomicU64,
    downloaded: AtomicU64,
}

impl Progress for Sums {
    fn phase(&self, _: Phase, _: &str) {}

    fn advance(&self, objects: u64, bytes: u64) {
        // Entries are contents of files; downloads have none.
        if objects == 0 {
            self.downloaded.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[test]
fn bytes_of_repeated_downloads_are_counted_once() {
    let setup = Setup::new();
    let server = Server::start(Access::Open).unwrap();
    setup.push(server.address(), "image:v1", &RegistryAuth::Anonymous);
    let proxy = Proxy::start(server.address()).unwrap();
    let bottom = setup.image.layers[0].1.as_str();
    proxy.inject(Rule::new(Fault::CutBody(300)).method("GET").path(bottom).times(1));
    proxy.inject(Rule::new(Fault::FlipByte(3)).method("GET").path(bottom).times(1));
    let sums = Sums::default();
    let mut sink = MemorySink::default();
    let reference = format!("{}/image:v1", proxy.address());
    setup.import_with(&reference, &mut sink, None, &sums).unwrap();
    assert_eq!(proxy.requests("GET", bottom).len(), 3);
    assert_eq!(sums.downloaded.into_inner(), sums.expected.into_inner());
}

#[test]
fn lasting_faults_end_with_the_reason() {
    let setup = Setup::new();
    let server = Server::start(Access::Open).unwrap();
    setup.push(server.address(), "image:v1", &RegistryAuth::Anonymous);
    let proxy = Proxy::start(server.address()).unwrap();
    let reference = format!("{}/image:v1", proxy.address());
    let bottom = setup.image.layers[0].1.as_str();
    for (path, fault, part) in [
        ("/manifests/", Fault::Status(500), "failed 3 times"),
        ("/manifests/", Fault::Status(403), "docker login"),
        ("/blobs/", Fault::Status(503), "failed 3 times"),
        (bottom, Fault::FlipByte(3), "its bytes are not those of its digest"),
        (bottom, Fault::CutBody(3), bottom),
        (bottom, Fault::Status(404), "does not have the layer"),
    ] {
        proxy.heal();
        proxy.inject(Rule::new(fault).method("GET").path(path));
        let error = setup.failure(&reference);
        assert!(error.contains(part) && error.contains(&reference), "{path} {fault:?}: {error}");
    }
    drop(server);
    proxy.heal();
    let error = setup.failure(&reference);
    assert!(error.contains("check the network"), "{error}");
}

/// A server that answers a request's lines with a status, headers and a body, until it is dropped.
struct Fake {
    address: SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Fake {
    fn start(
        answer: impl Fn(SocketAddr, &[String]) -> (String, &'static str) + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                // A connection without a request stops the server.
                if request.is_empty() {
                    return;
                }
                let (head, body) = answer(address, &request);
                let length = body.len();
                let answer = format!("HTTP/1.1 {head}\r\nConnection: close\r\n");
                write!(&stream, "{answer}Content-Length: {length}\r\n\r\n{body}").unwrap();
            }
        });
        Self { address, thread: Some(thread) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(std::net::TcpStream::connect(self.address));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Returns the path in a request's first line.
fn path_of(request: &[String]) -> &str {
    request[0].split(' ').nth(1).unwrap()
}

#[test]
fn an_overloaded_token_server_is_asked_again() {
    let setup = Setup::new();
    for (failures, status, part) in [
        (2, "503 -", "check the name and the tag"),
        (2, "429 -", "check the name and the tag"),
        (u64::MAX, "503 -", "login: status 503"),
        (u64::MAX, "401 -", "docker login"),
        (u64::MAX, "400 -", "docker login"),
    ] {
        let left = AtomicU64::new(failures);
        let registry = Fake::start(move |address, request| match path_of(request) {
            "/v2/" => {
                let realm = format!("Bearer realm=\"http://{address}/token\",service=\"a b\"");
                (format!("401 -\r\nWWW-Authenticate: {realm}"), "")
            }
            "/token?service=a+b&scope=repository%3Aimage%3Apull" => {
                let count = |left: u64| left.checked_sub(1);
                match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
                    Ok(_) => (status.to_owned(), "why"),
                    Err(_) => ("200 -".to_owned(), r#"{"access_token": "good"}"#),
                }
            }
            _ if request.iter().any(|line| line == "authorization: Bearer good") => {
                ("404 -".to_owned(), "")
            }
            _ => ("403 -".to_owned(), ""),
        });
        let error = setup.failure(&format!("{}/image:v1", registry.address));
        assert!(error.contains(part), "{failures} {status}: {error}");
    }
}

#[test]
fn a_password_is_not_sent_over_plain_http_to_another_machine() {
    let setup = Setup::new();
    let realm = "Bearer realm=\"http://192.0.2.1:1/token\",service=\"a\"";
    let registry = Fake::start(move |_, _| (format!("401 -\r\nWWW-Authenticate: {realm}"), ""));
    let error = setup.failure(&format!("{}/image:v1", registry.address));
    assert!(error.contains("http://192.0.2.1:1, which is refused: it is plain HTTP"), "{error}");
}

#[test]
fn plain_http_does_not_leave_this_machine() {
    let setup = Setup::new();
    // An address reserved for documentation, without a host.
    let registry = Fake::start(|_, request| match path_of(request) {
        "/v2/" => ("200 OK".to_owned(), ""),
        path => (format!("307 -\r\nLocation: http://192.0.2.1:1{path}"), ""),
    });
    let error = setup.failure(&format!("{}/image:v1", registry.address));
    assert!(error.contains("plain HTTP to another machine"), "{error}");
    assert!(error.contains("http://192.0.2.1"), "{error}");
}

#[test]
fn invalid_references_are_refused_before_any_request() {
    let setup = Setup::new();
    for name in ["", "UPPER", "a b", "host/", "a@sha256:zz", "-x", "a@sha384:00"] {
        let error = setup.failure(name);
        assert!(error.contains("is not an image reference"), "{name}: {error}");
    }
}

#[test]
fn names_are_completed_as_docker_does() {
    for (short, whole) in [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("user/image", "docker.io/user/image:latest"),
        ("localhost:5000/image", "localhost:5000/image:latest"),
        ("example.org/a/b:c", "example.org/a/b:c"),
    ] {
        assert_eq!(parse(short).unwrap().whole(), whole);
    }
}
