//! Each way to start from an image that `inlay bench startup` compares with, on a small image: it shows
//! what the image has, again on a warm host, and leaves nothing behind. A way whose programs are
//! not on this machine is left out, and said to be.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use inlay_testkit::scratch::source_root;
use inlay_testkit::{Comparison, leftover, scratch};
use serde_json::Value;

const ADAPTERS: [&str; 6] = ["pull", "containerd", "squashfs", "squashfs-lazy", "erofs", "juicefs"];
/// What an adapter ends with if something that it needs is missing.
const MISSING: i32 = 3;

struct Servers {
    child: Child,
    output: RefCell<BufReader<ChildStdout>>,
    greeting: Value,
}

impl Servers {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shaped-store"))
            .arg("--registry")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let greeting = serde_json::from_str(&line).unwrap();
        Self { child, output: RefCell::new(output), greeting }
    }

    /// How many requests have passed the link since this was last asked.
    fn passed(&self) -> u64 {
        let mut input = self.child.stdin.as_ref().unwrap();
        writeln!(input, "stats\nforget").unwrap();
        let mut lines = [String::new(), String::new()];
        for line in &mut lines {
            self.output.borrow_mut().read_line(line).unwrap();
        }
        let stats: Value = serde_json::from_str(&lines[0]).unwrap();
        stats["requests"].as_u64().unwrap()
    }

    fn get(&self, name: &str) -> &str {
        self.greeting[name].as_str().unwrap()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// One adapter with its directories.
struct Adapter<'a> {
    name: &'static str,
    servers: &'a Servers,
    work: PathBuf,
    host: PathBuf,
    root: PathBuf,
    layout: PathBuf,
}

impl Adapter<'_> {
    fn call(&self, arguments: &[&str]) -> Output {
        let variables = self.servers.greeting["environment"].as_object().unwrap();
        Command::new(source_root().join("benches/startup/adapters").join(self.name))
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value.as_str().unwrap())))
            .env("BENCH_WORK", &self.work)
            .env("BENCH_HOST", &self.host)
            .env("BENCH_ROOT", &self.root)
            .env("BENCH_OCI", &self.layout)
            .env("BENCH_S3_DIRECT", self.servers.get("direct"))
            .env("BENCH_BUCKET", self.servers.get("bucket"))
            .env("BENCH_REGISTRY", self.servers.get("registry"))
            .env("BENCH_REGISTRY_DIRECT", self.servers.get("registry_direct"))
            .output()
            .unwrap()
    }

    fn must(&self, arguments: &[&str]) {
        let output = self.call(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {said}", self.name);
    }

    /// Shows the image at `point`, looks at it, and takes it away.
    fn show(&self, point: &Path) {
        let shown = point.to_str().unwrap();
        self.must(&["up", "base", shown]);
        // A copy's directories are of its own making; containerd gives the root a new time.
        let same = Comparison::default()
            .without_field("directory", "links")
            .without_field("directory", "modified")
            .run(&self.root, point);
        assert!(fs::write(point.join("new"), "x").is_err(), "{} can be written to", self.name);
        self.must(&["down", "base", shown]);
        assert!(fs::read_dir(point).unwrap().next().is_none(), "{} is still there", self.name);
        assert!(same.is_ok(), "{}: {same:?}", self.name);
    }
}

impl Drop for Adapter<'_> {
    fn drop(&mut self) {
        // Whatever happened to the test.
        let _ = self.call(&["clean"]);
    }
}

/// What still runs or is mounted on behalf of `dir`.
fn leftovers(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut found: Vec<_> =
        mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        if words.contains(dir) {
            found.push(words.replace('\0', " "));
        }
    }
    let devices = leftover::loop_devices(Path::new(dir));
    found.extend(devices.iter().map(|file| file.display().to_string()));
    found
}

fn make_image(root: &Path, layout: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("usr/bin/program"), vec![7; 3_000_000]).unwrap();
    fs::set_permissions(root.join("usr/bin/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("usr/bin/program"), root.join("usr/bin/other")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    for number in 0..200 {
        fs::write(root.join(format!("etc/{number}")), format!("{number}\n").repeat(number))
            .unwrap();
    }
    std::os::unix::fs::chown(root.join("etc/7"), Some(1000), Some(1001)).unwrap();
    // Whole seconds: not every way keeps more.
    let steps = format!(
        "set -e; find '{root}' -exec touch -h -d @1700000000 {{}} +\n\
         umoci init --layout '{layout}'; umoci new --image '{layout}:bench'\n\
         tar -C '{root}' --numeric-owner -cf '{layout}.tar' .\n\
         umoci raw add-layer --image '{layout}:bench' '{layout}.tar'",
        root = root.display(),
        layout = layout.display()
    );
    assert!(Command::new("sh").args(["-c", &steps]).status().unwrap().success());
}

#[test]
fn each_adapter_shows_the_image_and_leaves_nothing() {
    let scratch = scratch().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let (root, layout) = (path("root"), path("layout"));
    make_image(&root, &layout);
    let servers = Servers::start();
    for name in ADAPTERS {
        let (work, host, point) = (path(name), path("host"), path("point"));
        for dir in [&work, &host, &point] {
            fs::create_dir_all(dir).unwrap();
        }
        let (root, layout) = (root.clone(), layout.clone());
        let adapter = Adapter { name, servers: &servers, work, host, root, layout };
        let described = adapter.call(&["describe"]);
        if described.status.code() == Some(MISSING) {
            eprintln!("left out: {}", String::from_utf8_lossy(&described.stderr).trim());
            continue;
        }
        let described: Value = serde_json::from_slice(&described.stdout).unwrap();
        assert_eq!(described["name"], name);
        assert!(described["lazy"].is_boolean() && described["what"].is_string());
        assert_ne!(described["version"], "");

        // At any time, so also before anything.
        adapter.must(&["clean"]);
        servers.passed();
        adapter.must(&["prepare", "base"]);
        assert_eq!(servers.passed(), 0, "{name} prepares past the link");
        adapter.show(&point);
        assert_ne!(servers.passed(), 0, "{name} uses the link");
        adapter.show(&point);
        if described["lazy"] == false {
            assert_eq!(servers.passed(), 0, "{name} keeps what it has");
        }
        // One part goes while another stays, as on a host that is then left in the middle.
        let other = path("other");
        adapter.must(&["prepare", "project"]);
        adapter.must(&["up", "base", point.to_str().unwrap()]);
        adapter.must(&["up", "project", other.to_str().unwrap()]);
        adapter.must(&["down", "base", point.to_str().unwrap()]);
        assert_eq!(fs::read(other.join("etc/2")).unwrap(), b"2\n2\n", "{name}");
        adapter.must(&["clean"]);
        assert_eq!(leftovers(scratch.path()), Vec::<String>::new(), "{name}");
        fs::remove_dir_all(&adapter.host).unwrap();

        let wrong = adapter.call(&["up", "../base", point.to_str().unwrap()]);
        assert_eq!(wrong.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&wrong.stderr).lines().count(), 1);
    }
}
