//! Eight sandboxes work at once; each then gets the work of its neighbour.

use std::path::PathBuf;
use std::process::Command;
use std::thread;

use crate::house::{House, Sandbox, assert_same};
use crate::jobs::{CARGO, GIT, Job, MAKE, NPM, PIP, SQLITE};

const LAYERS: [&str; 4] =
    ["-v", "upstream:/srv/upstream.git:ro", "-v", "packages:/srv/packages:ro"];

#[test]
fn eight_sandboxes_work_at_once_and_hand_over_their_work() {
    let house = House::shared();
    let jobs = [GIT, NPM, PIP, MAKE, SQLITE, GIT, NPM, PIP];
    let sandboxes = make(&house, "eight", jobs.len(), &LAYERS);
    each(&sandboxes, |_, sandbox| sandbox.sh("test ! -e /project"));
    hand_over(&sandboxes, |n| jobs[n % 8]);
}

/// Takes minutes: the Rust toolchain is imported, and mounted as it is from this machine's.
#[test]
#[ignore = "takes minutes; scripts/real-work runs it"]
fn eight_sandboxes_do_everything_one_after_another() {
    let house = House::shared();
    for part in ["bin", "lib"] {
        house.import(&toolchain().join(part), &format!("rust-{part}"), "directory");
    }
    let rust = ["-v", "rust-bin:/opt/rust/bin:ro", "-v", "rust-lib:/opt/rust/lib:ro"];
    let sandboxes = make(&house, "all", 8, &[LAYERS, rust].concat());
    let jobs = [GIT, NPM, PIP, MAKE, SQLITE, CARGO];
    // In each round all kinds at once, and each sandbox does another kind than before.
    for round in 0..3 {
        hand_over(&sandboxes, |n| jobs[(n + 2 * round) % jobs.len()]);
        each(&sandboxes, |_, sandbox| sandbox.sh("rm -rf /project"));
    }
}

fn toolchain() -> PathBuf {
    let printed = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    PathBuf::from(String::from_utf8(printed.stdout).unwrap().trim())
}

fn make<'a>(house: &'a House, name: &str, count: usize, layers: &[&str]) -> Vec<Sandbox<'a>> {
    thread::scope(|scope| {
        let made: Vec<_> = (0..count)
            .map(|n| scope.spawn(move || house.sandbox("base", &format!("{name}-{n}"), layers)))
            .collect();
        made.into_iter().map(|made| made.join().unwrap()).collect()
    })
}

/// Does something in all sandboxes at once; the results in their order.
fn each<T: Send>(
    sandboxes: &[Sandbox<'_>],
    work: impl Fn(usize, &Sandbox<'_>) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = sandboxes
            .iter()
            .enumerate()
            .map(|(n, sandbox)| scope.spawn(move || work(n, sandbox)))
            .collect();
        running.into_iter().map(|running| running.join().unwrap()).collect()
    })
}

/// Sandbox n does job n, all at once. Then each gets its neighbour's work in place of its own, sees it
/// as the neighbour did, and uses it.
fn hand_over(sandboxes: &[Sandbox<'_>], job: impl Fn(usize) -> Job + Sync) {
    let taken = each(sandboxes, |n, sandbox| {
        sandbox.sh(job(n).make);
        let source = sandbox.walk("/project");
        let taken = sandbox.snapshot("/project", &[]);
        assert_same(&source, &sandbox.walk("/project"), "the source after its snapshot");
        (taken["id"].as_str().unwrap().to_owned(), source)
    });
    each(sandboxes, |n, sandbox| {
        let neighbour = (n + 1) % sandboxes.len();
        let (id, source) = &taken[neighbour];
        let job = job(neighbour);
        sandbox.mount(id, "/project");
        assert_same(source, &sandbox.walk("/project"), job.name);
        sandbox.sh(job.check);
        sandbox.umount("/project");
        assert_same(&taken[n].1, &sandbox.walk("/project"), "what the mount has hidden");
    });
}
