//! What a snapshot of a large directory costs: 152,314 files, 1.4 GiB, all of them changes in an upper
//! directory, in the page cache; into the embedded store.
//!
//! `scripts/bench capture` runs it on the file system of its work directory and on an XFS of its own,
//! which has reflinks. `--files N` makes fewer files, `--work DIR` names the directory, `--tree DIR` makes
//! the tree there if it is not there yet, and leaves it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss, missing_docs)]

mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inlay_capture::{
    CaptureOptions, Captured, Frozen, Plan, Stood, Subject, SubjectError, Thawed, View, capture,
};
use inlay_images::import::NoProgress;
use inlay_snapshots::host::Host;
use inlay_snapshots::state::State;
use inlay_store::ids::Kind;
use inlay_store::remote::StoreConfig;

const ROUNDS: u64 = 5;
const CHANGED: u32 = 100;

/// A directory that nobody works in: there is nothing to freeze, but the time is measured.
struct Quiet(PathBuf);

impl Subject for Quiet {
    fn plan(&self) -> Result<Plan, SubjectError> {
        let view = View { lower: None, upper: Some(self.0.clone()), owners: None };
        Ok(Plan { view, path: PathBuf::new(), grafts: Vec::new(), left_out: Vec::new() })
    }

    fn freeze(&self) -> Result<Box<dyn Frozen + '_>, SubjectError> {
        struct Still(Instant);
        impl Frozen for Still {
            fn until(&self) -> Option<Instant> {
                None
            }

            fn thaw(self: Box<Self>) -> Result<Thawed, SubjectError> {
                Ok(Thawed { stood: Stood::Throughout, frozen: self.0.elapsed() })
            }
        }
        Ok(Box::new(Still(Instant::now())))
    }

    fn processes(&self) -> Result<Vec<u32>, SubjectError> {
        Ok(Vec::new())
    }
}

struct Bench {
    host: Host,
    subject: Quiet,
    options: CaptureOptions,
}

impl Bench {
    fn run(&self) -> (Captured, Duration) {
        let begun = Instant::now();
        let captured =
            capture(self.host.site(), &self.subject, &self.options, &NoProgress).unwrap();
        (captured, begun.elapsed())
    }
}

fn main() {
    let mut work = std::env::temp_dir();
    let mut files = tree::FILES;
    let mut made: Option<PathBuf> = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--work" => work = arguments.next().unwrap().into(),
            "--tree" => made = Some(arguments.next().unwrap().into()),
            "--files" => files = arguments.next().unwrap().parse().unwrap(),
            // Cargo's own.
            _ => {}
        }
    }
    let dir = tempfile::tempdir_in(work).unwrap();
    let upper = match &made {
        Some(tree) => tree.clone(),
        None => dir.path().join("rw/upper"),
    };
    if !upper.exists() {
        fs::create_dir_all(&upper).unwrap();
        let bytes = tree::make(&upper, files).unwrap();
        println!("{files} files, {:.2} GiB", bytes as f64 / f64::from(1 << 30));
    }
    // Otherwise the disk is busy with writing them for the first seconds.
    rustix::fs::sync();
    measure(dir.path(), &upper, files);
}

fn measure(dir: &Path, upper: &Path, files: u32) {
    let host = {
        let state = State::open(&dir.join("state")).unwrap();
        let store = StoreConfig::new(state.store_url(None));
        Host::open(state, &store).unwrap()
    };
    let options = CaptureOptions {
        seen_dir: Some(dir.join("seen")),
        ..CaptureOptions::new(Kind::Directory, "bench")
    };
    let bench = Bench { host, subject: Quiet(upper.to_owned()), options };
    // What was changed just now is read once more: a sandbox is rarely that quick.
    std::thread::sleep(Duration::from_millis(100));
    let (captured, first) = bench.run();
    report("first", &captured, first);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let changed = tree::change(upper, files, CHANGED, 100 + round).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let (captured, time) = bench.run();
        report("100 changed", &captured, time);
        let record = &captured.record;
        println!(
            "    {changed} bytes changed, {} of blobs, {} of index: growth {:.2}",
            captured.stats.stored_bytes,
            record.index_packed_bytes,
            captured.stats.stored_bytes as f64 / changed as f64
        );
        times.push((time, captured.frozen));
    }
    times.sort();
    let (time, frozen) = times[times.len() / 2];
    println!("second, median of {ROUNDS}: {}, frozen {}", ms(time), ms(frozen));
    let (captured, time) = bench.run();
    assert!(captured.unchanged);
    report("nothing changed", &captured, time);
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn report(what: &str, captured: &Captured, time: Duration) {
    let stats = &captured.stats;
    println!(
        "{what}: {}, frozen {}, {} files read, {} set aside, {} blobs, {} rounds",
        ms(time),
        ms(captured.frozen),
        stats.files_read,
        stats.files_set_aside,
        stats.blobs,
        stats.rounds
    );
    let times = &stats.times;
    println!(
        "    ahead {}, set aside packed {}, built {}, packed {}, written {}, published {}",
        ms(times.ahead),
        ms(times.aside),
        ms(times.build),
        ms(times.blobs),
        ms(times.write),
        ms(times.publish)
    );
}
