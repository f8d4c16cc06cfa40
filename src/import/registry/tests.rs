//! Tests against a real registry, and through a proxy that injects faults.

use std::fs;
use std::net::SocketAddr;
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

    /// Puts the image into the registry as `name`.
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
        let retry = Retry {
            tries: 3,
            first_pause: Duration::from_millis(1),
            idle_timeout: Duration::from_millis(500),
        };
        let registry = RegistryOptions { docker_config, retry, ..RegistryOptions::default() };
        let options = ImportOptions { registry, ..options(self.scratch.path()) };
        let imported = import_registry(reference, &options, sink, &NoProgress);
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
    // The registry keeps the manifest as the client above wrote it.
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
            // Each blob logs in anew once, so one refusal each is what can be ridden out.
            proxy.heal();
            proxy.inject(Rule::new(fault).method("GET").path(path).times(1));
        }
        setup.succeeds(&reference);
    }
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
        (bottom, Fault::FlipByte(3), "Invalid digest"),
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

#[test]
fn what_names_no_image_is_said_before_anything_is_asked() {
    let setup = Setup::new();
    for name in ["", "UPPER", "a b", "host/", "a@sha256:zz", "-x", "a@sha384:00"] {
        let error = setup.failure(name);
        assert!(error.contains("is no name of an image"), "{name}: {error}");
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
