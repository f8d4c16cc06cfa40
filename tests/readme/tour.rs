//! Every line of the tour, in order, against the image that the demo uses.
//!
//! Only what README can't know is put in: where the state, the image and the mount points are, and the
//! servers with their keys. `cargo build` is not run, because this program is built already; the demo
//! runs it. The mount points' directory and the terminal for `inlay top` are the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use inlay_testkit::cli::Inlay;
use inlay_testkit::output::output;
use inlay_testkit::registry::{Access, Registry};
use inlay_testkit::rootfs::{Fixture, find};
use inlay_testkit::scratch;
use inlay_testkit::weed::{ACCESS_KEY, BUCKET, SECRET_KEY, Weed};

use crate::section;

const RUNNER: &str = include_str!("tour.sh");
const WITHIN: Duration = Duration::from_mins(10);

/// Where the tour happens. Dropping it ends what runs there.
struct Place {
    inlay: Inlay,
    dir: PathBuf,
}

impl Place {
    fn new() -> Self {
        let scratch = scratch().unwrap();
        let dir = scratch.path().to_owned();
        let state = dir.join("state");
        for name in ["here", "mnt"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        Self { inlay: Inlay::with_state(env!("CARGO_BIN_EXE_inlay"), scratch, state), dir }
    }

    /// Runs commands as somebody does who has just logged in.
    fn run(&self, commands: &str) -> Output {
        let file = self.dir.join("commands");
        fs::write(&file, commands).unwrap();
        let mut shell = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("INLAY_") || text.starts_with("AWS_") {
                shell.env_remove(&name);
            }
        }
        shell
            .args(["-c", RUNNER])
            .env("HOME", &self.dir)
            .env("TERM", "xterm")
            .env("PROGRAM", env!("CARGO_BIN_EXE_inlay"))
            .current_dir(self.dir.join("here"))
            .stdin(Stdio::from(fs::File::open(file).unwrap()));
        output(&mut shell, WITHIN).unwrap()
    }

    /// What the commands print; none of them may fail.
    fn succeed(&self, commands: &str) -> String {
        let ran = self.run(commands);
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success(), "{printed}\n{}", self.inlay.daemon_log());
        printed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.inlay.run(["daemon", "stop", "--force"]);
    }
}

/// The lines of all blocks of the section, as they stand there.
fn tour() -> String {
    let blocks: Vec<&str> = section("A first tour").split("\n```\n").collect();
    assert!(blocks.len() % 2 == 1 && blocks.len() > 1, "blocks of code do not end");
    blocks.into_iter().skip(1).step_by(2).fold(String::new(), |all, block| all + block + "\n")
}

/// Puts `value` in, which must be needed.
fn put(commands: &str, placeholder: &str, value: &str) -> String {
    assert!(commands.contains(placeholder), "{placeholder} is not in the tour");
    commands.replace(placeholder, value)
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn push(registry: &Registry) {
    let from = format!("oci:{}:test", find(Fixture::OciLayout).unwrap().display());
    let to = format!("docker://{}/app:1", registry.address());
    let copy = ["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &from, &to];
    let ran = output(Command::new("skopeo").args(copy), WITHIN).unwrap();
    assert!(ran.status.success(), "{ran:?}");
}

#[test]
fn every_line_of_the_tour_works() {
    let place = Place::new();
    let (weed, registry) = (Weed::start().unwrap(), Registry::start(Access::Open).unwrap());
    push(&registry);
    let commands = tour();
    let commands = put(&commands, "/tmp/inlay-tour", path(place.inlay.state()));
    let commands = put(&commands, "/srv/root", path(&find(Fixture::Directory).unwrap()));
    let commands = put(&commands, "/mnt/", &format!("{}/", place.dir.join("mnt").display()));
    let commands =
        put(&commands, "AWS_ACCESS_KEY_ID=…", &format!("AWS_ACCESS_KEY_ID={ACCESS_KEY}"));
    let commands =
        put(&commands, "AWS_SECRET_ACCESS_KEY=…", &format!("AWS_SECRET_ACCESS_KEY={SECRET_KEY}"));
    let commands = put(&commands, "127.0.0.1:8333", &weed.address().to_string());
    let commands = put(&commands, "s3://bucket/prefix", &format!("s3://{BUCKET}/prefix"));
    let port = registry.address().port();
    let commands = put(&commands, "localhost:5000", &format!("localhost:{port}"));

    let printed = place.succeed(&commands);
    let lines: Vec<&str> = printed.lines().collect();
    // chroot and `inlay run`; the project, which one sandbox has written and another one runs.
    assert!(lines.iter().filter(|line| **line == "hello").count() >= 2, "{printed}");
    assert!(lines.contains(&"42"), "{printed}");
    let page = fs::read_to_string(place.dir.join("here/start.html")).unwrap();
    assert!(page.contains("<html"), "{page}");
    assert!(fs::metadata(place.dir.join("here/base.tar")).unwrap().len() > 100_000_000);
    // Each line of README's was run.
    for line in commands.lines().filter(|line| !line.trim().is_empty()) {
        assert!(printed.contains(&format!("$ {line}\n")), "not run: {line}\n{printed}");
    }
}

#[test]
fn a_line_that_fails_ends_the_tour() {
    let place = Place::new();
    let build = tour().lines().next().unwrap().to_owned() + "\n";
    for (line, reason) in [
        ("inlay import dir:absent --name base", "absent"),
        ("inlay ls", "Usage"),
        ("absent-program && echo more", "absent-program"),
        ("inlay snapshots; inlay show absent; echo more", "absent"),
        ("echo 'half", "not a command"),
    ] {
        let ran = place.run(&format!("{build}{line}\necho after\n"));
        let printed = String::from_utf8_lossy(&ran.stdout);
        assert!(!ran.status.success() && printed.contains(reason), "{line}: {printed}");
        assert!(!printed.lines().any(|line| line == "after"), "{line}: {printed}");
    }
    let printed =
        place.succeed(&format!("{build}cat <<'END'\none\nEND\nprintf '%s\\n' \\\n  two\n"));
    assert!(printed.contains("\none\n") && printed.ends_with("two\n"), "{printed}");
}
