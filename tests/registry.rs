//! Images come out of a real registry, with and without a password.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

mod common;

use std::fs;
use std::process::Command;

use common::{import, local, of};
use inlay_testkit::Comparison;
use inlay_testkit::cli::Inlay;
use inlay_testkit::faults::{Fault, Rule};
use inlay_testkit::proxy::Proxy;
use inlay_testkit::registry::{Access, PASSWORD, Registry, USER};
use inlay_testkit::rootfs::{self, Fixture};

fn skopeo(arguments: &[&str]) {
    let output = Command::new("skopeo").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Puts the Debian image into the registry; gives its reference.
fn push(registry: &Registry, options: &[&str]) -> String {
    let layout = rootfs::find(Fixture::OciLayout).unwrap();
    let reference = format!("{}/team/debian:test", registry.address());
    let (from, to) = (format!("oci:{}:test", layout.display()), format!("docker://{reference}"));
    let copy = ["--insecure-policy", "copy", "--dest-tls-verify=false"];
    skopeo(&[&copy, options, &[from.as_str(), to.as_str()]].concat());
    reference
}

fn is_the_image(inlay: &Inlay, name: &str) {
    let layout = rootfs::find(Fixture::OciLayout).unwrap();
    let reference = local();
    let expected = import(&reference, &format!("{}:test", of("oci", &layout)), "expected");
    let shown = inlay.succeed(["show", "--json", name]).unwrap().text();
    let id = expected["id"].as_str().unwrap();
    if shown.contains(id) {
        return;
    }
    // The image's configuration may have been rewritten on the way; its files must not.
    let (left, right) =
        (reference.mount("expected", &[]).unwrap(), inlay.mount(name, &[]).unwrap());
    Comparison::default().run(left.path(), right.path()).unwrap();
}

#[test]
fn an_image_from_an_open_registry() {
    let registry = Registry::start(Access::Open).unwrap();
    let reference = push(&registry, &[]);
    let inlay = local();
    import(&inlay, &format!("docker://{reference}"), "image");
    is_the_image(&inlay, "image");

    let absent = format!("docker://{}/team/absent:test", registry.address());
    let ran = inlay.fail(["import", &absent]).unwrap();
    assert!(ran.stderr.contains("team/absent"), "the image is not named: {ran:?}");
}

#[test]
fn an_image_from_a_registry_with_a_password() {
    let registry = Registry::start(Access::Password).unwrap();
    let reference = push(&registry, &["--dest-creds", &format!("{USER}:{PASSWORD}")]);
    let source = format!("docker://{reference}");
    let inlay = local();
    let ran = inlay.fail(["import", &source]).unwrap();
    assert!(ran.stderr.contains(&registry.address().to_string()), "{ran:?}");

    // The file that `docker login` writes.
    let file = inlay.state().join(".docker/config.json");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let (file, address) = (file.display().to_string(), registry.address().to_string());
    let login = ["login", "--tls-verify=false", "--authfile", &file, "--username", USER];
    skopeo(&[login.as_slice(), &["--password", PASSWORD, &address]].concat());
    import(&inlay, &source, "image");
    is_the_image(&inlay, "image");
}

#[test]
fn a_registry_that_fails_now_and_then_is_asked_again() {
    let registry = Registry::start(Access::Open).unwrap();
    push(&registry, &[]);
    let proxy = Proxy::start(registry.address()).unwrap();
    proxy.inject(Rule::new(Fault::Status(503)).path("/manifests/").times(1));
    proxy.inject(Rule::new(Fault::Status(500)).path("/blobs/").times(1));
    proxy.inject(Rule::new(Fault::CutBody(5_000_000)).path("/blobs/").times(1));
    proxy.inject(Rule::new(Fault::FlipByte(2_000_000)).path("/blobs/").times(1));
    let inlay = local();
    import(&inlay, &format!("docker://{}/team/debian:test", proxy.address()), "image");
    is_the_image(&inlay, "image");
}
